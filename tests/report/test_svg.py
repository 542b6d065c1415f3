import re

from weightsmith.report.svg import labels_below, nice, powers, share_of


def labels(found):
    return re.findall(r">([^<]+)</text>", found)


def test_labels_with_room_are_all_written():
    assert labels(labels_below(["0", "1", "2"], 0.0, 50.0, 0.0)) == ["0", "1", "2"]


def test_crowded_numbers_are_written_at_round_distances():
    found = labels(labels_below([str(i) for i in range(300)], 0.0, 3.0, 0.0))
    assert found[:3] == ["0", "20", "40"]
    assert len(found) == 15


def test_words_at_the_ends_come_before_numbers():
    found = labels(labels_below(["embedding", *map(str, range(101)), "head"], 0.0, 9.0, 0.0))
    assert found[0] == "embedding"
    assert found[-2:] == ["95", "head"]
    assert "0" not in found


def test_round_numbers_enclose_the_values():
    for low, high in ((0.0, 1.0), (-0.3, 7.1), (0.0, 1e-9), (5.0, 5.0), (0.0, 0.0)):
        ticks = nice(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 9


def test_powers_of_ten_enclose_the_values():
    assert powers([1.0]) == [1.0, 10.0]
    found = powers([1e-12, 1.0])
    assert found[0] <= 1e-12
    assert found[-1] >= 1.0
    assert len(found) <= 8


def test_places_on_axes():
    assert share_of(5.0, [0.0, 10.0], False) == 0.5
    assert share_of(10.0, [1.0, 100.0], True) == 0.5
