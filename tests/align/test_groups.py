"""Groups files: what they say, and every way in which they can be wrong."""

import pytest

from weightsmith.align import read_groups, write_groups
from weightsmith.align.groups import Groups, Member, parse_groups, resolve
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.errors import ArgumentError, MismatchError

SHAPES = {
    **{
        f"h.{i}.{n}": s
        for i in range(2)
        for n, s in (("up.weight", (6, 4)), ("up.bias", (6,)), ("down.weight", (4, 6)))
    },
    "embed.weight": (10, 4),
    "norm.weight": (4,),
}


@pytest.fixture
def model(tmp_path, save_arrays, make_arrays):
    return open_checkpoint(save_arrays(tmp_path / "model", make_arrays(shapes=SHAPES)))


def axes(group):
    return {(p.entry.name, p.where.axis) for p in group.places}


def test_layers_globs_and_blocks(model):
    text = """
groups:
  mlp.{layer}:
    - {tensor: "h.{layer}.up.*", axis: 0, block: 2}
    - {tensor: "h.{layer}.down.weight", axis: 1, block: 2}
  stream:
    - {tensor: "h.{layer}.down.weight", axis: 0}
    - {tensor: "*.up.weight", axis: 1}
    - {tensor: [embed.weight, head.weight], axis: 1, side: writes}
    - {tensor: norm.weight, axis: 0}
counted: [stream]
"""
    groups = {g.name: g for g in resolve(parse_groups(text), model, "align")}
    assert list(groups) == ["mlp.0", "mlp.1", "stream"]
    assert [groups[n].units for n in groups] == [3, 3, 4]
    assert [groups[n].counted for n in groups] == [False, False, True]
    assert axes(groups["mlp.1"]) == {("h.1.up.weight", 0), ("h.1.up.bias", 0), ("h.1.down.weight", 1)}
    ends = {(f"h.{i}.{n}.weight", a) for i in range(2) for n, a in (("down", 0), ("up", 1))}
    assert axes(groups["stream"]) == ends | {("embed.weight", 1), ("norm.weight", 0)}
    reads = {p.entry.name: p.reads for p in groups["stream"].places}
    assert reads["h.0.up.weight"]
    assert not reads["embed.weight"]
    assert not reads["norm.weight"]


def test_a_file_in_json_says_the_same():
    yaml = parse_groups("groups: {a: [{tensor: x, axis: 0, repeat: 3}]}\ncounted: [a]")
    assert parse_groups('{"groups": {"a": [{"tensor": "x", "axis": 0, "repeat": 3}]}, "counted": ["a"]}') == yaml


def test_what_is_written_is_read(tmp_path):
    members = {
        "a: b #{layer}": (Member("x.{layer}.w", 1, 2, 3, "writes"), Member(("tied", "also [this]"), 0)),
        "0": (Member("yes", 0),),
    }
    groups = Groups(members, ("0",), {"x\n- y axis 0": "an input\nof the module"})
    write_groups(groups, tmp_path / "g.yaml")
    found = read_groups(tmp_path / "g.yaml")
    assert (found.members, found.counted) == (members, ("0",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the text is empty"),
        ("[1]", "expected a mapping"),
        ("x: 1", "unknown key 'x'"),
        ("counted: [a]", "no group 'a'"),
        ("groups: {}", "no group is given"),
        ("groups: {a: []}", "expected a list of members"),
        ("groups: {a: {tensor: x, axis: 0}}", "expected a list of members"),
        ("groups: {a: [x]}", "expected a mapping"),
        ("groups: {a: [{axis: 0}]}", "a member without 'tensor'"),
        ("groups: {a: [{tensor: x}]}", "a member without 'axis'"),
        ("groups: {a: [{tensor: x, axis: -1}]}", "expected a whole number from 0 to 7, got -1"),
        ("groups: {a: [{tensor: x, axis: 0.5}]}", "expected a whole number"),
        ("groups: {a: [{tensor: x, axis: yes}]}", "'yes' is refused"),
        ("groups: {a: [{tensor: x, axis: 0, block: 0}]}", "from 1 to"),
        ("groups: {a: [{tensor: x, axis: 0, blocks: 2}]}", "did you mean 'block'"),
        ("groups: {a: [{tensor: x, axis: 0, side: read}]}", "did you mean 'reads'"),
        ("groups: {a: [{tensor: 'x(.*)$', axis: 0}]}", "looks like a regular expression"),
        ("groups: {a: [{tensor: [], axis: 0}]}", "got an empty list"),
        ("groups: {a: [{tensor: !!python/name:os.system x, axis: 0}]}", "tag"),
        ("groups: {a: [{tensor: x, axis: 0}], a: [{tensor: y, axis: 0}]}", "given twice"),
        ("groups: {a: [{tensor: x, axis: 0}]}\ncounted: [b]", "no group 'b'; did you mean|no group 'b'"),
        ("groups: " + "[" * 60, "nested deeper|YAML"),
    ],
)
def test_faults_of_the_file(text, told):
    with pytest.raises(ArgumentError, match=told):
        parse_groups(text)


def test_all_faults_of_the_file_at_once():
    with pytest.raises(ArgumentError) as caught:
        parse_groups("groups:\n  a: [{tensor: x}]\n  b: [{axis: 99, tensor: y}]\ncounted: [c]\n")
    assert all(f"line {n}:" in str(caught.value) for n in (2, 3, 4))


def test_files_that_cannot_be_read(tmp_path):
    for name, data in (
        ("none", None),
        ("folder", ""),
        ("latin.yaml", b"groups: \xff"),
        ("big.yaml", b"#" * 10_000_001),
    ):
        path = tmp_path / name
        if data is None:
            pass
        elif data:
            path.write_bytes(data)
        else:
            path.mkdir()
        with pytest.raises(ArgumentError, match=name):
            read_groups(path)


def test_all_misfits_at_once(tmp_path, save_raw, make_arrays):
    arrays = make_arrays(shapes=SHAPES)
    raw = {n: ("F32", a.shape, a.tobytes()) for n, a in arrays.items()}
    raw["counter"] = ("I64", (6,), bytes(48))
    model = open_checkpoint(save_raw(tmp_path / "m" / "model.safetensors", raw))
    text = """
groups:
  missing: [{tensor: h.0.upp.weight, axis: 0}]
  nothing: [{tensor: "g.*", axis: 0}]
  layers.{layer}: [{tensor: "k.{layer}.w", axis: 0}]
  deep: [{tensor: norm.weight, axis: 1}]
  odd: [{tensor: h.0.up.bias, axis: 0, block: 4}]
  whole: [{tensor: counter, axis: 0}]
  sizes: [{tensor: h.0.up.weight, axis: 0}, {tensor: embed.weight, axis: 1}]
  twice: [{tensor: h.1.up.weight, axis: 0}, {tensor: "h.1.up.weigh?", axis: 0}]
  again: [{tensor: h.1.up.weight, axis: 0}]
"""
    with pytest.raises(MismatchError) as caught:
        resolve(parse_groups(text), model, "align")
    for told in (
        "no tensor 'h.0.upp.weight'; did you mean 'h.0.up.weight'",
        "no tensor 'g.*'",
        "no layer has any of its tensors",
        "'norm.weight' has no axis 1",
        "axis 0 of 'h.0.up.bias' (6,) is not a multiple of 4",
        "'counter' is I64",
        "6 in 'h.0.up.weight', 4 in 'embed.weight'",
        "axis 0 of 'h.1.up.weight' is twice in one group",
        "axis 0 of 'h.1.up.weight' is also in group 'twice'",
    ):
        assert told in str(caught.value), told


def test_a_layer_that_lacks_a_member_is_a_fault(tmp_path, save_arrays, make_arrays):
    shapes = {n: s for n, s in SHAPES.items() if n != "h.1.down.weight"}
    model = open_checkpoint(save_arrays(tmp_path / "m", make_arrays(shapes=shapes)))
    text = (
        'groups: {"m.{layer}": [{tensor: "h.{layer}.up.weight", axis: 0}, {tensor: "h.{layer}.down.weight", axis: 1}]}'
    )
    with pytest.raises(MismatchError, match=r"group 'm\.1': no tensor 'h\.1\.down\.weight'"):
        resolve(parse_groups(text), model, "align")
