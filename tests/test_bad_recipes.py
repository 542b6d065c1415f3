"""Recipes whose parts do not fit, at the level of the command: every fault told from headers, no byte of weights read.

Beside `test_bad_inputs.py`, which is about hostile files, these are mistakes: missing models, layers out of range,
gradients, patterns, NaN, adapters and vocabularies of other models, experts of another number. Each in our own dialect and,
where it can say so, in mergekit's.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import weightsmith
from weightsmith.errors import WeightsmithError

REFUSED = 3
WRONG_USE = 2
DONE = 0
CONFIG = {"model_type": "llama", "num_hidden_layers": 3, "vocab_size": 32}
PREFIX = "base_model.model.model.layers.0.mlp.up_proj"


def save_tokenizer(folder, moved=False):
    tokens = [f"t{i}" for i in range(32)]
    if moved:
        tokens[5], tokens[6] = tokens[6], tokens[5]
    Tokenizer(WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="t0")).save(str(folder / "tokenizer.json"))


def save_mixture(save_arrays, folder, experts):
    layer = "model.layers.0.mlp"
    shapes = {f"{layer}.experts.{e}.{w}.weight": (4, 3) for e in range(experts) for w in ("w1", "w3")}
    shapes |= {f"{layer}.experts.{e}.w2.weight": (3, 4) for e in range(experts)}
    shapes[f"{layer}.gate.weight"] = (experts, 3)
    save_arrays(folder, {n: np.ones(s, "float32") for n, s in shapes.items()})


def save_adapter(save_arrays, folder, shapes, alpha=2):
    save_arrays(folder, {n: np.ones(s, "float32") for n, s in shapes.items()})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def place(tmp_path, monkeypatch, make_arrays, save_arrays):
    """The current folder: `base`, `one`, `two`, `moved` (two tokens swapped), mixtures `three`, `four`, and adapters."""
    monkeypatch.chdir(tmp_path)
    base = make_arrays()
    for i, name in enumerate(("base", "one", "two", "moved")):
        save_arrays(tmp_path / name, make_arrays(i, base) if i else base, config=CONFIG)
        save_tokenizer(tmp_path / name, name == "moved")
    for name, experts in (("three", 3), ("four", 4)):
        save_mixture(save_arrays, tmp_path / name, experts)
    pair = {f"{PREFIX}.lora_A.weight": (2, 16), f"{PREFIX}.lora_B.weight": (24, 2)}
    save_adapter(save_arrays, tmp_path / "fits", pair)
    save_adapter(save_arrays, tmp_path / "wide", {**pair, f"{PREFIX}.lora_A.weight": (2, 20)})
    save_adapter(save_arrays, tmp_path / "deep", {n.replace("layers.0", "layers.7"): s for n, s in pair.items()})
    save_adapter(save_arrays, tmp_path / "other", {n.replace("up_proj", "fc_in"): s for n, s in pair.items()})
    save_adapter(save_arrays, tmp_path / "idle", pair, alpha=0)
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch):
    """Every way to the bytes of weights fails, with exit code 5."""

    def touched(*args):
        raise AssertionError(f"weights were read: {args[1:]}")

    for way in ("read.Files.pread_into", "read.Files.entry_into"):
        monkeypatch.setattr(f"weightsmith.checkpoint.{way}", touched)
    monkeypatch.setattr("numpy.memmap", touched)


OURS = "method: linear\nmodels: [one, two]\n"
TIES = "method: ties\nbase: base\nmodels: [one, two]\nparameters:\n  scope: tensor\n"
PEERS = "merge_method: linear\nmodels: [{model: one}, {model: two}]\n"
SLICES = "slices:\n  - sources: [{model: one, layers: [0, %s]}]\n  - sources: [{model: two, layers: [%s]}]\n"
PEER_SLICES = SLICES.replace("layers:", "layer_range:")

# Name, recipe, exit code, what the message must say.
CASES = [
    ("missing models", "method: ties\nbase: gone\nmodels: [one, lost]\n", WRONG_USE, ["2 faults", "'gone'", "'lost'"]),
    (
        "missing models, peer",
        "merge_method: linear\nmodels: [{model: gone}, {model: lost}]\nparameters: {weight: 1}\ndtype: float32\n",
        WRONG_USE,
        ["'gone'", "'lost'"],
    ),
    (
        "layers",
        "method: passthrough\n" + SLICES % (4, "2, 9"),
        WRONG_USE,
        ["slice 1", "layers 0 to 4 are out of range", "slice 2", "layers 2 to 9", "'one' has layers 0 to 3"],
    ),
    (
        "layers, peer",
        "merge_method: passthrough\n" + PEER_SLICES % (4, "2, 9") + "dtype: float32\n",
        WRONG_USE,
        ["slice 1", "layers 0 to 4 are out of range", "slice 2", "layers 2 to 9", "'one' has layers 0 to 3"],
    ),
    ("layers backwards", "method: passthrough\n" + SLICES % (2, "3, 1"), WRONG_USE, ["slice 2", "0 <= first < end"]),
    ("a gradient of no number", TIES + "  lambda: [{layers: []}]\n", WRONG_USE, ["lambda", "at least one number"]),
    ("a gradient of words", TIES + "  lambda: [{layers: [0, much]}]\n", WRONG_USE, ["lambda", "'much'"]),
    ("a gradient out of bounds", TIES + "  density: [{layers: [0.5, 1.5]}]\n", WRONG_USE, ["density", "(0, 1]", "1.5"]),
    (
        "a gradient of words, peer",
        PEERS + "parameters: {weight: [0, much]}\n",
        WRONG_USE,
        ["weight", "'much'", "finite number"],
    ),
    (
        "a gradient with a hole, peer",
        PEERS + "parameters: {weight: [0, null, 1]}\n",
        WRONG_USE,
        ["weight", "an entry without a value"],
    ),
    (
        "patterns",
        TIES + "  lambda: [{match: '*.mpl.*', value: 1}, 1]\n  density: [{match: 'x*', value: 1}, 1]\ncopy: ['y*']\n",
        REFUSED,
        ["lambda: pattern '*.mpl.*' matches no tensor", "density: pattern 'x*'", "copy pattern 'y*'"],
    ),
    ("NaN", TIES + "  lambda: .nan\n", WRONG_USE, ["lambda", "'.nan'"]),
    (
        "NaN of a model",
        "method: linear\nmodels: [{model: one, coefficient: .nan}, {model: two, coefficient: .inf}]\n",
        WRONG_USE,
        ["coefficient", "'.nan'", "'.inf'"],
    ),
    (
        "NaN, peer",
        "merge_method: linear\nmodels: [{model: one, parameters: {weight: .nan}}, {model: two, parameters: {weight: -.inf}}]\n",
        WRONG_USE,
        ["weight", "'nan'", "'-inf'", "finite number"],
    ),
    ("an adapter of another base", "method: linear\nmodels: [base+wide, one]\n", REFUSED, ["wide", "(2, 20)", "16"]),
    (
        "an adapter of another base, peer",
        "merge_method: linear\nmodels: [{model: base+wide}, {model: one}]\nparameters: {weight: 1}\ndtype: float32\n",
        REFUSED,
        ["wide", "(2, 20)", "16"],
    ),
    (
        "adapters without target",
        "method: linear\nmodels: [base+deep, one+other]\n",
        REFUSED,
        ["deep", "'model.layers.7.mlp.up_proj.weight'", "other", "'model.layers.0.mlp.fc_in.weight'"],
    ),
    ("an adapter that changes nothing", "method: linear\nmodels: [base+idle, one]\n", REFUSED, ["changes 0 tensors"]),
    (
        "vocabularies",
        "method: linear\nmodels: [one, moved]\n",
        REFUSED,
        ["'t5' 6 and 5", "vocabulary: {source: union}", "--tokenizer union"],
    ),
    (
        "vocabularies, peer",
        "merge_method: linear\nmodels: [{model: one}, {model: moved}]\nparameters: {weight: 1}\ndtype: float32\n",
        REFUSED,
        ["'t5' 6 and 5"],
    ),
    (
        "experts",
        "method: linear\nmodels: [three, four]\n",
        REFUSED,
        ["experts of different count: 3 in 'three'; 4 in 'four'"],
    ),
    (
        "experts, peer",
        "merge_method: linear\nmodels: [{model: three}, {model: four}]\nparameters: {weight: 1}\ndtype: float32\n",
        REFUSED,
        ["experts of different count: 3 in 'three'; 4 in 'four'"],
    ),
    (
        "faults of all inputs and slices together",
        "method: task_arithmetic\nbase: base\nslices:\n"
        "  - sources: [{model: base, layers: [0, 9]}, {model: one, layers: [0, 9]}]\n"
        "  - sources: [{model: base, layers: [0, 1]}, {model: gone, layers: [0, 1]}]\n"
        "  - sources: [{model: base, layers: [0, 1]}, {model: base+wide, layers: [0, 1]}]\n"
        "  - sources: [{model: base, layers: [0, 1]}, {model: two, layers: [0, 1]}]\n    parameters: {lambda: what}\n",
        WRONG_USE,
        ["5 faults", "slice 1", "'gone'", "(2, 20)", "slice 4", "'what'"],
    ),
    (
        "faults of all tensors together",
        "method: ties\nbase: base\nmodels: [one, moved]\nparameters:\n  scope: tensor\n"
        "  lambda: [{match: 'x*', value: 1}, 1]\ndrop: ['y*']\n",
        REFUSED,
        ["'t5' 6 and 5", "pattern 'x*' matches no tensor", "drop pattern 'y*'"],
    ),
]

MISSING = "model '%s' does not exist"

# Name, recipe, every fault in its order by how it begins: a stage never keeps the next from speaking, and none invents.
STAGES = [
    (
        "text, models, parameters and patterns",
        "method: ties\nbase: base\nmodels:\n  - one\n  - gone\nparameters:\n  density: 2\n  lambda:\n"
        "    - {match: '*.mpl.*', value: 0.5}\n    - 1\n  scope: tensr\ncopyy: [x]\n",
        [
            "line 12: recipe: unknown key 'copyy'; did you mean 'copy'",
            f"line 5: {MISSING % 'gone'}",
            "line 7: merge ties: density; expected a number in (0, 1]; got 2",
            "line 11: merge ties: scope; expected one of model, tensor; got 'tensr'",
            "line 9: lambda: pattern '*.mpl.*' matches no tensor of the models that can be opened",
        ],
    ),
    (
        "text and tensors",
        "method: ties\nbase: base\nmodels: [one, three]\ncopyy: [x]\n",
        ["line 4: recipe: unknown key 'copyy'", "experts of different count", "line 3: model 'three' lacks 9 of 9"],
    ),
    (
        "text and slices",
        "method: passthrough\nslices:\n  - sources: [{model: one, layers: [0, 9]}]\nsede: 1\n",
        ["line 4: recipe: unknown key 'sede'", "line 3: slice 1: layers 0 to 9 are out of range"],
    ),
    (
        "a vocabulary whose key is misspelled",
        "method: linear\nmodels: [one, moved]\nvocabulry: {source: union}\n",
        ["line 3: recipe: unknown key 'vocabulry'"],
    ),
    (
        "a vocabulary with a fault in the text",
        "method: linear\nmodels: [one, moved]\nvocabulary: {sauce: union}\n",
        ["line 3: vocabulary: unknown key 'sauce'", "line 3: vocabulary: key 'source' is missing"],
    ),
    (
        "a base that cannot be opened",
        "method: ties\nbase: gone\nmodels: [one, three]\ndrop: ['x*']\n",
        [f"line 2: {MISSING % 'gone'}"],
    ),
    (
        "a base whose key is misspelled",
        "method: ties\nbsae: base\nmodels: [one, gone]\nparameters: {lambda: [{match: '*.mpl.*', value: 1}, 1]}\n",
        [
            "line 2: recipe: unknown key 'bsae'",
            f"line 3: {MISSING % 'gone'}",
            "line 4: lambda: pattern '*.mpl.*' matches no tensor of",
        ],
    ),
    (
        "models whose key is misspelled",
        "method: slerp\nmodles: [one, gone]\n",
        ["line 1: key 'models' is missing", "line 2: recipe: unknown key 'modles'"],
    ),
    (
        "an unknown method",
        "method: tise\nbase: base\nmodels: [gone]\ncopy:\n  - x*\nparameters: {density: 2}\n",
        [
            "line 1: unknown method 'tise'; did you mean 'ties'",
            f"line 3: {MISSING % 'gone'}",
            "line 5: copy pattern 'x*' matches no tensor",
        ],
    ),
    (
        "models that do not fit beside a missing one",
        "method: linear\nmodels:\n  - one\n  - gone\n  - {model: moved, coefficient: no}\n  - three\n",
        [
            "line 5: model 3: coefficient: 'no' is refused",
            f"line 4: {MISSING % 'gone'}",
            "are not the same tokens in 'moved' and 'one'",
            "experts of different count: none in 'one'; none in 'moved'; 3 in 'three'",
            "line 6: model 'three' lacks 9 of 9 tensors of 'one'",
        ],
    ),
    (
        "slices",
        "method: task_arithmetic\nbase: base\nslices:\n"
        "  - sources: [{model: base, layers: [0, 9]}, {model: one, layers: [0, 9]}]\n"
        "  - sources: [{model: base, layers: [0, 1]}, {model: gone, layers: [0, 1]}]\n"
        "    parameters: {lambda: what}\n"
        "  - sources: [{model: base, layers: [1, 2]}, {model: one, layers: [0, 1]}]\ndrop: ['x*']\n",
        [
            f"line 5: {MISSING % 'gone'}",
            "line 4: slice 1: layers 0 to 9 are out of range; 'base'",
            "line 4: slice 1: layers 0 to 9 are out of range; 'one'",
            "line 6: slice 2: merge task_arithmetic: lambda; expected a finite number; got 'what'",
        ],
    ),
    (
        "slices with a fault in the text",
        "method: passthrough\nslices:\n  - sources: [{model: one, layers: [0, 1]}]\n"
        "  - sources: [{model: gone, layer: [0, 9]}]\n  - sources: [{model: two, layers: [0, 9]}]\n",
        [
            "line 4: slice 2, source 1: unknown key 'layer'",
            "line 4: slice 2, source 1: key 'layers' is missing",
        ],
    ),
    (
        "a vocabulary that cannot be told",
        "method: linear\nmodels: [one, moved, gone]\nvocabulary: {source: union}\ndrop: ['x*']\ncopy: ['y*']\n",
        [f"line 2: {MISSING % 'gone'}", "line 5: copy pattern 'y*' matches no tensor of the models that can be opened"],
    ),
    (
        "text and models, peer",
        "merge_method: ties\nbase_model: base\nmodels:\n  - {model: one, parameters: {weight: much}}\n"
        "  - {model: gone}\nparameters: {lambda: x}\ndtype: float33\n",
        [
            "line 7: dtype: unknown dtype 'float33'",
            "line 4: ties: model 'one': weight: expected a finite number, got 'much'",
            "line 6: ties: lambda: expected a finite number, got 'x'",
            f"line 5: {MISSING % 'gone'}",
        ],
    ),
    (
        "an unknown method, peer",
        "merge_method: tise\nbase_model: base\nmodels: [{model: one}, {model: gone}]\n",
        ["line 1: unknown merge_method 'tise'", f"line 3: {MISSING % 'gone'}"],
    ),
    (
        "values and models, peer",
        "merge_method: ties\nbase_model: base\nmodels:\n  - {model: gone, parameters: {weight: 1}}\n"
        "parameters: {normalize: what}\n",
        ["line 5: ties: normalize: expected true or false, got 'what'", f"line 4: {MISSING % 'gone'}"],
    ),
    (
        "documents, peer",
        "name: half\nmerge_method: linear\nmodels: [{model: one}, {model: lost}]\nparameters: {weight: 1}\n---\n"
        "merge_method: linear\nmodels: [{model: half}, {model: two}]\nparameters: {weight: much}\n",
        [f"line 3: {MISSING % 'lost'}", "line 8: linear: model 'half': weight", "line 8: linear: model 'two': weight"],
    ),
    (
        "documents that cannot be read, peer",
        "name: half\nmodels: [{model: one}]\n---\nmerge_method: linear\nmodels: [{model: half}]\n",
        ["line 1: key 'merge_method' is missing"],
    ),
]


@pytest.mark.parametrize(("text", "told"), [c[1:] for c in STAGES], ids=[c[0] for c in STAGES])
def test_every_stage_speaks_and_none_invents(place, command, no_weights, text, told):
    (place / "recipe.yaml").write_text(text)
    ran = command("plan", "recipe.yaml")
    assert ran.out == ""
    assert ran.code == WRONG_USE, ran.err
    lines = [line.partition(". ")[2] for line in ran.err.splitlines() if line[:3].isspace() or line.startswith("  ")]
    if len(told) == 1 and not lines:
        lines = [ran.err.removeprefix("weightsmith: ")]
    assert len(lines) == len(told), ran.err
    for line, part in zip(lines, told, strict=True):
        assert part in line, ran.err
    with pytest.raises(WeightsmithError) as caught:
        weightsmith.merge("recipe.yaml", out="out")
    assert f"weightsmith: {caught.value}\n" == ran.err


@pytest.mark.parametrize(("text", "code", "told"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused_from_headers(place, command, no_weights, text, code, told):
    (place / "recipe.yaml").write_text(text)
    before = {p.name for p in place.iterdir()}
    for words in (["merge", "recipe.yaml", "out"], ["plan", "recipe.yaml"], ["merge", "recipe.yaml", "out", "--force"]):
        ran = command(*words)
        assert ran.code == code, ran.err
        assert ran.out == ""
        assert ran.err.startswith("weightsmith: ")
        for part in told:
            assert part in ran.err, ran.err
    assert {p.name for p in place.iterdir()} == before


def test_weights_are_guarded(place, command, no_weights, monkeypatch):
    monkeypatch.setattr("traceback.print_exc", lambda: None)
    (place / "recipe.yaml").write_text(OURS)
    assert command("plan", "recipe.yaml").code == DONE
    assert command("merge", "recipe.yaml", "out").code == 5


NOTED = [
    (
        "gradient",
        TIES + "  lambda: [{layers: [0, 1, 2, 3, 4]}]\n",
        "a curve of 5 numbers over 3 layers does not reach all",
    ),
    (
        "gradient, peer",
        PEERS + "parameters: {weight: [1, 2, 3, 4, 5]}\ndtype: float32\n",
        "a curve of 5 numbers over 3 layers does not reach all",
    ),
    (
        "filter, peer",
        PEERS + "parameters: {weight: [{filter: mpl, value: 2}, {value: 1}]}\ndtype: float32\n",
        "filter 'mpl' fits no tensor",
    ),
]


@pytest.mark.parametrize(("text", "told"), [n[1:] for n in NOTED], ids=[n[0] for n in NOTED])
def test_noted_since_the_result_is_defined(place, command, text, told):
    (place / "recipe.yaml").write_text(text)
    ran = command("plan", "recipe.yaml")
    assert (ran.code, ran.err) == (DONE, "")
    assert told in ran.out
    ran = command("merge", "recipe.yaml", "out", "--quiet")
    assert ran.code == DONE
    assert told in ran.err
    assert told in (place / "out" / "edit.json").read_text()


def test_adapters_of_another_base_for_the_other_verbs(place, command, no_weights):
    before = {p.name for p in place.iterdir()}
    for wrong, told in (("wide", "(2, 20)"), ("deep", "layers.7"), ("idle", "changes 0 tensors")):
        for words in (
            ["merge-adapters", "--base", "base", "--adapter", "fits", "--adapter", wrong, "--out", "out"],
            ["compare", "base", f"base+{wrong}"],
            ["inspect", f"base+{wrong}"],
        ):
            ran = command(*words)
            assert ran.code == REFUSED, ran
            assert told in ran.err, ran
    assert {p.name for p in place.iterdir()} == before
