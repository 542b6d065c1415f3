import numpy as np
import pytest

from weightsmith.demo.tasks import PLAIN, SPLITS, TASKS, examples, imported
from weightsmith.errors import ResourceError

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def plain():
    return examples(3, (PLAIN,))[0]


def test_eight_tasks_or_more_with_names_that_can_be_folders():
    names = [task.name for task in TASKS]
    assert len(names) >= 8
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


@pytest.mark.parametrize("number", range(len(TASKS)), ids=[task.name for task in TASKS])
def test_every_task_is_well_formed(number):
    example = examples(3)[number]
    for split, size in SPLITS.items():
        images, labels = example.images[split], example.labels[split]
        assert images.shape == (size, 8, 8)
        assert images.dtype == np.float32
        assert 0 <= images.min() <= images.max() <= 1
        assert labels.dtype == np.int64
        assert set(labels) == set(range(example.task.classes))


def test_splits_use_every_digit_once(plain):
    from sklearn.datasets import load_digits

    found = np.concatenate(list(plain.images.values())) * 16
    rows = np.sort(found.reshape(-1, 64).astype(np.float64) @ 1.1 ** np.arange(64))
    assert sum(SPLITS.values()) == len(load_digits().data)
    np.testing.assert_allclose(rows, np.sort(load_digits().data @ 1.1 ** np.arange(64)))


def test_all_tasks_split_the_same_digits_in_the_same_way(plain):
    tasks = {e.task.name: e for e in examples(3)}
    for split in SPLITS:
        np.testing.assert_array_equal(tasks["parity"].images[split], plain.images[split])
        np.testing.assert_array_equal(tasks["parity"].labels[split], plain.labels[split] % 2)
        np.testing.assert_array_equal(tasks["above_four"].labels[split], plain.labels[split] > 4)
        np.testing.assert_array_equal(tasks["inverted"].images[split], 1 - plain.images[split])
        np.testing.assert_array_equal(np.rot90(tasks["rotated"].images[split], -1, (1, 2)), plain.images[split])
        np.testing.assert_array_equal(tasks["noisy"].labels[split], plain.labels[split])


def test_scrambling_moves_whole_patches(plain):
    scrambled = next(e for e in examples(3) if e.task.name == "scrambled").images["test"]

    def patches(images):
        return [images[:, y : y + 2, x : x + 2] for y in range(0, 8, 2) for x in range(0, 8, 2)]

    before, after = patches(plain.images["test"]), patches(scrambled)
    places = [next(i for i, b in enumerate(before) if np.array_equal(a, b)) for a in after]
    assert places != list(range(16))
    assert len(set(places)) >= 14  # an always empty patch may be found in another's place


def test_same_seed_same_examples_and_another_seed_others():
    for a, b, c in zip(examples(5), examples(5), examples(6), strict=True):
        for split in SPLITS:
            np.testing.assert_array_equal(a.images[split], b.images[split])
            np.testing.assert_array_equal(a.labels[split], b.labels[split])
        assert not np.array_equal(a.images["test"], c.images["test"])


def test_a_missing_extra_is_named():
    with pytest.raises(ResourceError, match=r"no_such_module is not installed.*weightsmith\[demo\]"):
        imported("no_such_module")
