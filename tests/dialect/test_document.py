"""What the keys of a mergekit recipe say, and every fault with its line."""

from __future__ import annotations

import pytest

from weightsmith.dialect.document import Document, read_document
from weightsmith.dialect.tree import documents
from weightsmith.recipe import TokenRule, Vocabulary


def _read(text: str) -> tuple[Document | None, list[tuple[int, str]], list[str]]:
    faults: list[tuple[int, str]] = []
    notes: list[str] = []
    (root,) = documents(text, faults)
    return read_document(root, faults, notes), faults, notes


FULL = """\
merge_method: ties
name: mixed
base_model: {model: {path: org/base, revision: main}}
slices:
  - sources:
      - {model: a@v1+./adapter, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: {model: {path: b}, lora: {path: c, revision: v2}, override_architecture: X}, layer_range: [4, 6]}
    base_model: a
    residual_weight: 0.5
    parameters: {density: 0.3}
  - sources: [{model: a, layer_range: ["2", 3.0]}]
parameters: {weight: 0.5}
dtype: torch.float16
out_dtype: float32
tokenizer:
  source: base
  pad_to_multiple_of: "64"
  tokens:
    <|x|>: {source: b}
    " y": {source: {kind: model_token, model: a, token: " the"}, force: true}
    z: {source: {kind: model_token, model: {path: org/m}, token_id: 7}}
    0: {source: {kind: zero}}
chat_template: "{% for m in messages %}{{ m }}{% endfor %}"
"""


def test_a_recipe_with_every_key() -> None:
    document, faults, notes = _read(FULL.replace("{path: org/m}", "org/m"))
    assert (faults, notes) == ([], [])
    assert document is not None
    assert (document.method, document.name, document.base) == ("ties", "mixed", "org/base@main")
    assert (document.dtype, document.out_dtype, document.whole) == ("F16", "F32", False)
    first, second = document.parts
    assert [(i.model, i.layers) for i in first.inputs] == [("a@v1+./adapter", (0, 2)), ("b+c@v2", (4, 6))]
    assert (first.base, list(first.inputs[0].parameters), list(first.parameters)) == ("a", ["weight"], ["density"])
    assert second.inputs[0].layers == (2, 3)
    assert document.vocabulary == Vocabulary(
        "base",
        {
            "<|x|>": TokenRule("b"),
            " y": TokenRule("a", token=" the", force=True),
            "z": TokenRule("org/m", token_id=7),
            "0": TokenRule("zero"),
        },
        64,
    )
    assert document.chat_template == "{% for m in messages %}{{ m }}{% endfor %}"
    assert document.references[:4] == ("org/base@main", "a", "a@v1+./adapter", "b+c@v2")


def test_modules_with_one_tower_are_that_tower() -> None:
    text = "merge_method: linear\nmodules:\n  default:\n    models: [{model: a}]\n    parameters: {weight: 1}\n"
    document, faults, _ = _read(text + "parameters: {weight: 2}\n")
    assert faults == []
    assert document is not None
    assert [level["weight"][0].values for level in document.levels] == [(1,), (2,)]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("models: [{model: a}]", 1, "'merge_method' is missing"),
        ("merge_method: linear", 1, "expected one of models, slices and modules, got none"),
        ("merge_method: x\nmodels: [{model: a}]\nslices: [{sources: []}]", 1, "got models and slices"),
        ("merge_method: x\nmodels: []", 1, "got none"),
        ("merge_method: x\nmodels: [{parameters: {}}]", 2, "key 'model' is missing"),
        ("merge_method: x\nmodels: [a]", 2, "expected a mapping"),
        (
            "merge_method: x\nmodules: {a: {models: [{model: a}]}, b: {models: [{model: a}]}}",
            2,
            "'filter', one for the names",
        ),
        ("merge_method: x\nslices:\n  - {}", 3, "key 'sources' is missing"),
        (
            "merge_method: x\nslices:\n  - sources: [{model: a, layer_range: [3, 3]}]",
            3,
            "expected [first, one after the last]",
        ),
        ("merge_method: x\nslices:\n  - sources: [{model: a, layer_range: [-1, 3]}]", 3, "layer_range"),
        ("merge_method: x\nslices:\n  - sources: [{model: a}]", 3, "'layer_range' is missing"),
        (
            "merge_method: x\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]",
            3,
            "as many layers",
        ),
        ("merge_method: x\nmodels: [{model: a}]\ndtype: bf16", 3, "did you mean 'bfloat16'?"),
        ("merge_method: x\nmodels: [{model: a}]\nout_dtype: int64", 3, "not merged as whole numbers"),
        ("merge_method: x\nmodels: [{model: a}]\ntokenizer: {source: base}\ntokenizer_source: base", 3, "got both"),
        ("merge_method: x\nmodels: [{model: a}]\ntokenizer: {pad_to_multiple_of: 0}", 3, "whole number from 1"),
        (
            "merge_method: x\nmodels: [{model: a}]\ntokenizer: {tokens: {t: {force: true}}}",
            3,
            "key 'source' is missing",
        ),
        ("merge_method: x\nmodels: [{model: a}]\ntokenizer: {tokens: {t: {source: {kind: 1}}}}", 3, "{kind: zero}"),
        (
            "merge_method: x\nmodels: [{model: a}]\ntokenizer: {tokens: {t: {source: {kind: model_token, model: a}}}}",
            3,
            "token: ... or token_id",
        ),
    ],
)
def test_faults_are_told_with_their_line(text: str, line: int, told: str) -> None:
    _, faults, _ = _read(text)
    assert [found for found in faults if found[0] == line and told in found[1]], faults


def test_a_token_without_a_source_has_no_effect() -> None:
    document, faults, notes = _read(
        "merge_method: x\nmodels: [{model: a}]\ntokenizer: {tokens: {t: {}, u: {source: ~}}}"
    )
    assert faults == []
    assert document is not None
    assert document.vocabulary == Vocabulary("union")
    assert [note.partition(" has no source")[0] for note in notes] == [
        "line 3: tokenizer: token 't'",
        "line 3: tokenizer: token 'u'",
    ]


def test_keys_without_effect_are_notes() -> None:
    _, faults, notes = _read("merge_method: linear\nmodels: [{model: a, wieght: 1}]\ntokeniser_source: base\n")
    assert faults == []
    assert len(notes) == 2
    assert "did you mean 'tokenizer_source'" in " ".join(notes)
