"""Recipes: what a file may say, every fault it may have, and that writing and reading agree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import ArgumentError, RecipeError
from weightsmith.recipe import Recipe, Rule, Schedule, Slice, Source, TokenRule, Vocabulary, parse_size
from weightsmith.recipe.text import parse_recipe, read_recipe, write_recipe

FULL = """\
method: ties
base: path/to/base
models:
  - path/to/a
  - model: path/to/b+path/to/adapter
    coefficient: 0.5
    density: [{match: "*.mlp.*", layers: [0.1, 0.9]}, 0.3]
parameters:
  density: 0.2
  lambda:
    - {match: "*.mlp.*", value: 0.5}
    - {match: "*.self_attn.*", layers: [0.2, 1.0]}
    - 0.3
copy: ["*.embed_tokens.*"]
drop: ["classifier.*"]
dtype: bfloat16
compute_dtype: float16
vocabulary:
  source: union
  tokens:
    "<|im_start|>": {source: path/to/a}
    "yes": {source: path/to/a, token: "no\\n", force: true}
    12: {source: path/to/a, token_id: 3}
    <pad>: {source: zero}
  pad_to_multiple_of: 64
chat_template: "{% for m in messages %}\\n{{ m }}"
seed: 7
shard_size: 1GiB
"""
SLICED = """\
method: slerp
base: a
slices:
  - sources: [{model: a, layers: [0, 4]}]
  - sources:
      - {model: b, layers: [2, 6], coefficient: 0.3}
      - {model: a, layers: [4, 8]}
    base: b
    parameters: {t: [{match: "*.mlp.*", layers: [0, 0.5, 1]}, 0.4]}
  - sources: [{model: a, layers: [0, 4]}]
"""
KNOWN = {
    "ties": {"density": False, "lambda_": False, "coefficients": True, "densities": True},
    "dare": {"density": False, "rescale": False},
    "linear": {},
}
MINIMAL = "method: linear\nmodels: [a, b]\n"


def faults(text: str, **options: object) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_every_key_is_read() -> None:
    assert parse_recipe(FULL, known=KNOWN) == Recipe(
        method="ties",
        models=("path/to/a", "path/to/b+path/to/adapter"),
        base="path/to/base",
        settings=({}, {"coefficient": 0.5, "density": Schedule((Rule("*.mlp.*", (0.1, 0.9)), Rule("*", (0.3,))))}),
        parameters={
            "density": 0.2,
            "lambda_": Schedule((Rule("*.mlp.*", (0.5,)), Rule("*.self_attn.*", (0.2, 1.0)), Rule("*", (0.3,)))),
        },
        copy=("*.embed_tokens.*",),
        drop=("classifier.*",),
        dtype="BF16",
        compute_dtype="float16",
        vocabulary=Vocabulary(
            "union",
            {
                "<|im_start|>": TokenRule("path/to/a"),
                "yes": TokenRule("path/to/a", token="no\n", force=True),
                "12": TokenRule("path/to/a", token_id=3),
                "<pad>": TokenRule("zero"),
            },
            64,
        ),
        chat_template="{% for m in messages %}\n{{ m }}",
        seed=7,
        shard_bytes=2**30,
    )


def test_defaults() -> None:
    recipe = parse_recipe(MINIMAL)
    assert recipe == Recipe("linear", ("a", "b"))
    assert (recipe.settings, recipe.slices, recipe.dtype, recipe.compute_dtype) == ((), (), None, None)
    assert (recipe.vocabulary, recipe.chat_template, recipe.seed, recipe.shard_bytes) == (None, None, 0, 5 * 10**9)


def test_slices_are_read() -> None:
    curve = Schedule((Rule("*.mlp.*", (0, 0.5, 1)), Rule("*", (0.4,))))
    assert parse_recipe(SLICED) == Recipe(
        method="slerp",
        base="a",
        slices=(
            Slice((Source("a", (0, 4)),)),
            Slice((Source("b", (2, 6), {"coefficient": 0.3}), Source("a", (4, 8))), "b", {"t": curve}),
            Slice((Source("a", (0, 4)),)),
        ),
    )
    assert parse_recipe(SLICED).references == ("a", "b")
    assert parse_recipe(write_recipe(parse_recipe(SLICED))) == parse_recipe(SLICED)


SLICE = "method: m\nslices:\n- sources:\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL + "slices: [{sources: [{model: a, layers: [0, 1]}]}]", "'models' and 'slices' are both given"),
        ("method: m\nslices: []", "line 2: slices: expected a list of at least one slice, got an empty list"),
        ("method: m\nslices: [a]", "line 2: slice 1: expected a mapping of keys to values, got 'a'"),
        ("method: m\nslices: [{source: []}]", "slice 1: unknown key 'source'; did you mean 'sources'?"),
        ("method: m\nslices: [{base: a}]", "line 2: slice 1: key 'sources' is missing"),
        ("method: m\nslices: [{sources: []}]", "slice 1: expected a list of at least one source, got an empty"),
        (SLICE + "  - a", "line 4: slice 1, source 1: expected {model: ..., layers: [first, end]}, got 'a'"),
        (SLICE + "  - {model: a}", "line 4: slice 1, source 1: key 'layers' is missing"),
        (SLICE + "  - {layers: [0, 1]}", "line 4: slice 1, source 1: key 'model' is missing"),
        (SLICE + "  - {model: a, layers: [0]}", "source 1: layers: expected [first, end], the end not included"),
        (SLICE + "  - {model: a, layers: 3}", "source 1: layers: expected [first, end], the end not included, got '3'"),
        (SLICE + "  - {model: a, layers: [0, x]}", "source 1: layers: expected a number, got 'x'"),
        (SLICE + "  - {model: a, layers: [0, 1.5]}", "layers: expected a whole number of at least 0, got '1.5'"),
        (SLICE + "  - {model: a, layers: [-1, 2]}", "layers: expected a whole number of at least 0, got '-1'"),
        (SLICE + "  - {model: a, layers: [2, 2]}", "slice 1: layers: expected [first, end] with 0 <= first < end"),
        (
            SLICE + "  - {model: a, layers: [0, 2]}\n  - {model: b, layers: [0, 3]}",
            "line 3: slice 1: its sources span 2 of 'a', 3 of 'b' layers; expected equally many of each",
        ),
        (SLICE + "  - {model: a, layers: [0, 2]}\n  - {model: a, layers: [2, 4]}", "slice 1: 'a' is given twice"),
        (SLICE + "  - {model: a, layers: [0, 2]}\n  base: b", "slice 1: the base 'b' is not among its sources"),
        ("base: b\n" + SLICE + "  - {model: a, layers: [0, 2]}", "slice 1: the base 'b' is not among its sources"),
        (SLICE + "  - {model: a, layers: [0, 2], density: }", "slice 1, source 1: density: has no value"),
        (MINIMAL + "compute_dtype: int8", "compute_dtype: unknown dtype 'int8'; valid names: float16, bfloat16"),
        (MINIMAL + "vocabulary: union", "line 3: vocabulary: expected a mapping of keys to values, got 'union'"),
        (MINIMAL + "vocabulary: {}", "vocabulary: key 'source' is missing; give base, union or a model"),
        (MINIMAL + "vocabulary: {sorce: base}", "vocabulary: unknown key 'sorce'; did you mean 'source'?"),
        (MINIMAL + "vocabulary: {source: base, pad_to_multiple_of: 0}", "expected a whole number of at least 1"),
        (MINIMAL + "vocabulary: {source: base, tokens: {x: {}}}", "token 'x': key 'source' is missing"),
        (MINIMAL + "vocabulary: {source: base, tokens: {x: {source: a, token: b, token_id: 1}}}", "are both given"),
        (MINIMAL + "vocabulary: {source: base, tokens: {x: {source: a, token_id: b}}}", "token_id: expected a number"),
        (MINIMAL + "vocabulary: {source: base, tokens: {x: {source: a, force: 1}}}", "force: expected true or false"),
        (MINIMAL + "chat_template: 3", "line 3: chat_template: expected text, got '3'"),
        (MINIMAL + 'chat_template: "\\ud800"', "line 3: chat_template: "),
    ],
)
def test_faults_of_slices_and_vocabularies(text: str, told: str) -> None:
    assert told in faults(text)


def test_aliases_within_the_budget_are_read() -> None:
    text = "method: m\nmodels: [a]\nparameters:\n  x: &x [{match: '*.w', value: 1}, 2]\n  y: *x\n"
    parameters = parse_recipe(text).parameters
    assert parameters["x"] == parameters["y"] == Schedule((Rule("*.w", (1,)), Rule("*", (2,))))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-5", 1e-5), ("1E3", 1000.0), ("-0.5", -0.5), (".5", 0.5), ("2.", 2.0), ("0", 0), ("+3", 3),
        ("true", True), ("False", False), ("'yes'", "yes"), ('"010"', "010"), ("mean", "mean"),
        ("2024-01-01", "2024-01-01"), ("v1.0.0", "v1.0.0"),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_say(word: str, value: object) -> None:
    got = parse_recipe(f"{MINIMAL}parameters: {{x: {word}}}").parameters["x"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off"])
def test_words_for_booleans_are_refused(word: str) -> None:
    assert f"line 3: parameters: x: '{word}' is refused: write true or false" in faults(
        f"{MINIMAL}parameters: {{x: {word}}}"
    )


@pytest.mark.parametrize(
    "word",
    ["010", "0o10", "0x10", "0b1", "12:30", "12:30:45", "1_000", ".inf", "-.INF", ".nan", "nan", "Infinity"],
)
def test_numbers_that_readers_disagree_about_are_refused(word: str) -> None:
    message = faults(f"{MINIMAL}parameters:\n  x: {word}\n")
    assert f"line 4: parameters: x: '{word}' is refused: write a finite number in decimal" in message


def test_numbers_out_of_range_are_refused() -> None:
    assert "line 3: seed: '1e999' is not a finite number" in faults(f"{MINIMAL}seed: 1e999")
    assert "line 3: seed: a number of 5000 characters is refused" in faults(f"{MINIMAL}seed: {'9' * 5000}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: [a]", "line 1: key 'method' is missing"),
        ("# note\nmethod: m\n", "line 2: key 'models' is missing"),
        ("method: m\nmodels: []", "line 2: models: expected a list of at least one model, got an empty list"),
        ("method: m\nmodels: a", "line 2: models: expected a list of at least one model, got 'a'"),
        ("method: m\nmodels: {a: b}", "line 2: models: expected a list of at least one model, got a mapping"),
        ("method: m\nmodels:\n", "line 2: models: expected a list of at least one model, got ''"),
        ("method: m\nmodels:\n- a\n- b\n- a", "line 5: model 3: 'a' is given twice, first on line 3"),
        ("method: m\nbase: a\nmodels: [b, a]", "line 3: model 2: 'a' is the base; leave it out of models"),
        ("method: m\nmodels: [[a]]", "line 2: model 1: expected one value, got a list"),
        ("method: m\nmodels: [12]", "line 2: model 1: expected text, got '12'; put it in quotes"),
        ("method: m\nmodels: [' ']", "line 2: model 1: expected text, got ' '"),
        ("method: m\nmodels: [{coefficient: 1}]", "line 2: model 1: key 'model' is missing"),
        (
            "method: m\nmodels:\n- model: a\n  coefficient: half",
            "line 4: model 1: coefficient: expected a number, got 'half'",
        ),
        ("method: m\nmodels: [{model: a, coefficient: true}]", "coefficient: expected a number, got 'true'"),
        ("method: m\nmodels: [{model: a, coefficient: .nan}]", "coefficient: '.nan' is refused"),
        ("method: 3\nmodels: [a]", "line 1: method: expected text, got '3'"),
        ("method: [m]\nmodels: [a]", "line 1: method: expected one value, got a list"),
        ("method:\nmodels: [a]", "line 1: method: has no value; give one or leave the key out"),
        ("method: m\nmodels: [a]\nbase: ~", "line 3: base: has no value"),
        ('method: m\nmodels: ["a\\0b"]', "line 2: model 1: 'a\\x00b' holds a control character"),
        ("method: m\nmodls: [a]", "line 2: recipe: unknown key 'modls'; did you mean 'models'?"),
        ("method: m\nmodels: [a]\nmethod: n", "line 3: recipe: key 'method' is given twice, first on line 1"),
        ("method: m\nmodels: [a]\n? [b]\n: c", "line 3: recipe: expected text as a key, got a list"),
        ("- a", "line 1: recipe: expected a mapping of keys to values, got a list"),
        ("just text", "line 1: recipe: expected a mapping of keys to values, got 'just text'"),
        (MINIMAL + "copy: a.*", "line 3: copy: expected a list of patterns, got 'a.*'"),
        (MINIMAL + "drop: [a.*, 3]", "line 3: drop, entry 2: expected text, got '3'"),
        (MINIMAL + "drop: ['']", "line 3: drop, entry 1: expected text, got ''"),
        (MINIMAL + "dtype: bfloat61", "line 3: dtype: unknown dtype 'bfloat61'; did you mean 'bfloat16'"),
        (MINIMAL + "dtype: int8", "unknown dtype 'int8'; valid names: float64, float32, float16, bfloat16"),
        (MINIMAL + "seed: -1", "line 3: seed: expected a whole number from 0 to 2^64 - 1, got '-1'"),
        (MINIMAL + "seed: 1.5", "line 3: seed: expected a whole number from 0 to 2^64 - 1, got '1.5'"),
        (MINIMAL + "seed: true", "line 3: seed: expected a number, got 'true'"),
        (MINIMAL + f"seed: {2**64}", "line 3: seed: expected a whole number from 0 to 2^64 - 1"),
        (MINIMAL + "shard_size: -5GB", "line 3: shard_size: size; expected a whole number of bytes above 0"),
        (MINIMAL + "shard_size: -5", "line 3: shard_size: size; expected a whole number of bytes above 0"),
        (MINIMAL + "shard_size: 5e9", "line 3: shard_size: size; expected a whole number of bytes above 0"),
        (MINIMAL + "shard_size: true", "line 3: shard_size: size; expected a whole number"),
        (MINIMAL + "parameters: 3", "line 3: parameters: expected a mapping of keys to values, got '3'"),
        (MINIMAL + "parameters: {a: }", "line 3: parameters: a: has no value"),
        (MINIMAL + "parameters: {a-b: 1}", "line 3: parameters: 'a-b' is not a parameter's name"),
        (MINIMAL + "parameters: {lambda_: 1}", "'lambda_' is not a parameter's name; write 'lambda'"),
        (MINIMAL + "parameters:\n  coefficients: [1, 2]", "line 4: parameters: 'coefficients' stands beside"),
        ("", "line 1: the text is empty"),
        ("# only a comment", "line 1: the text is empty"),
    ],
)
def test_faults(text: str, told: str) -> None:
    assert told in faults(text)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("[]", "line 4: parameters: x: expected a value, or a list of {match: ..., value: ...}"),
        ("{value: 1}", "line 4: parameters: x: expected a value, or a list of {match: ..., value: ...}"),
        ("[0.2, 1.0]", "line 4: parameters: x, entry 1: a plain value holds for every tensor left"),
        ("[{match: a}]", "x, entry 1: expected either 'value' or 'layers'"),
        ("[{match: a, value: 1, layers: [1]}]", "x, entry 1: expected either 'value' or 'layers'"),
        ("[{match: a, valeu: 1}]", "x, entry 1: unknown key 'valeu'; did you mean 'value'?"),
        ("[{match: a, layers: []}]", "x, entry 1: layers: expected a list of at least one number, got an em"),
        ("[{match: a, layers: 1}]", "x, entry 1: layers: expected a list of at least one number, got '1'"),
        ("[{match: a, layers: [1, true]}]", "x, entry 1: layers: expected a number, got 'true'"),
        ("[{match: a, layers: [1, b]}]", "x, entry 1: layers: expected a number, got 'b'"),
        ("[{match: a, value: [1]}]", "x, entry 1: value: expected one value, got a list"),
        ("[[1]]", "x, entry 1: expected one value, got a list"),
        ("[{match: '^a.*$', value: 1}]", "x, entry 1: match: '^a.*$' looks like a regular expression"),
        ("[{match: '.*mlp.*', value: 1}]", "x, entry 1: match: '.*mlp.*' looks like a regular expression"),
        ("[{match: '(a+)+b', value: 1}]", "x, entry 1: match: '(a+)+b' looks like a regular expression"),
        (f"[{{match: {'a*' * 200}, value: 1}}]", "has 400 characters; a pattern has at most 256"),
    ],
)
def test_faults_of_schedules(setting: str, told: str) -> None:
    assert told in faults(f"{MINIMAL}parameters:\n  x: {setting}")


def test_misspelled_methods_and_parameters_bring_the_nearest() -> None:
    assert "line 1: unknown method 'tise'; did you mean 'ties'?" in faults("method: tise\nmodels: [a]", known=KNOWN)
    text = "method: ties\nmodels: [a]\nparameters:\n  densty:\n    - 0.2\n  lambd: 1\n"
    message = faults(text, known=KNOWN)
    assert "line 4: parameters: unknown key 'densty'; did you mean 'density'?" in message
    assert "line 6: parameters: unknown key 'lambd'; did you mean 'lambda'?" in message
    message = faults("method: ties\nmodels: [{model: a, coeficient: 1}, {modle: b}]", known=KNOWN)
    assert "line 2: model 1: unknown key 'coeficient'; did you mean 'coefficient'?" in message
    assert "line 2: model 2: unknown key 'modle'; did you mean 'model'?" in message


def test_all_faults_are_told_at_once_by_line() -> None:
    text = "method: m\nmodels: [a, a]\nsed: 1\nseed: x\ndtype: fp16\n"
    message = faults(text, where="recipe.yaml")
    assert message.startswith("recipe.yaml: 4 faults:\n  1. line 2:")
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == [
        f"  {place}. line {line}" for place, line in enumerate((2, 3, 4, 5), 1)
    ]


def test_the_first_ten_faults_are_shown_and_the_rest_counted() -> None:
    message = faults(MINIMAL + "".join(f"key{place}: 1\n" for place in range(13)))
    assert "13 faults" in message
    assert "... and 3 more" in message
    assert "key9'" in message
    assert "key10'" not in message


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!mine", "!!str", "!"])
def test_tags_are_refused(tag: str) -> None:
    assert "line 2: tag '" in faults(f"method: m\nmodels: [{tag} a]")
    assert "is refused; write the value without a tag" in faults(f"method: m\nmodels: {tag} [a]")


def test_a_tag_that_would_run_code_runs_none(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    faults(f"method: !!python/object/apply:os.system ['touch {marker}']\nmodels: [a]")
    assert not marker.exists()


def test_merge_keys_are_refused() -> None:
    text = "method: m\nmodels: [a]\nparameters:\n  x: &x [1]\n  <<: *x\n"
    assert "line 5: parameters: merge key '<<' is refused; write the entries out" in faults(text)


def test_a_second_document_is_refused() -> None:
    assert "line 3: YAML: a second document starts here" in faults(f"{MINIMAL}---\nmethod: n\n")


def test_syntax_faults_have_lines() -> None:
    assert "line 3: YAML: found character '\\t' that cannot start any token" in faults(
        "method: m\nparameters:\n\tx: 1\n"
    )
    assert "line 3: YAML: expected ',' or ']'" in faults("method: m\nmodels: [a\n")
    assert "line 2: YAML: the control character 0x07 is not allowed" in faults("method: m\nmodels: [\x07]")
    assert "YAML: an escape or a directive" in faults('method: "\\UFFFFFFFF"')
    assert "line 1: YAML: alias '*x' stands for nothing" in faults("method: *x")
    assert "line 1: YAML: alias '*x' stands for nothing, or for itself" in faults("models: &x [*x]")


def test_bombs_are_refused() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 9))
    assert "line 6: YAML: more than 20000 values, aliases expanded" in faults(text)
    assert "line 1: YAML: nested deeper than 16 levels" in faults("[" * 5000)
    assert "recipe; expected at most 1000000 bytes" in faults("x" * 2_000_000)


def test_files_are_read_and_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert read_recipe(path) == Recipe("linear", ("a", "b"))
    path.write_bytes(b"method: m\nmodels: [\xff]\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 2; expected UTF-8 text; got byte 19"):
        read_recipe(path)
    path.write_bytes(b"\xff" * 1_000_001)
    with pytest.raises(RecipeError, match=r"recipe\.yaml; expected at most 1000000 bytes"):
        read_recipe(path)
    path.write_text("method: tise\nmodels: [a]\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: 1 fault:\n  1\. line 1: unknown method 'tise'"):
        read_recipe(path, known=KNOWN)
    with pytest.raises(RecipeError, match="missing; expected a file; got no such file"):
        read_recipe(tmp_path / "missing")
    with pytest.raises(RecipeError, match="got a folder"):
        read_recipe(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RecipeError, match="expected a file"):
        read_recipe(tmp_path / "fifo")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9), ("200MB", 2 * 10**8), ("3KB", 3000), ("1TB", 10**12), ("1GiB", 2**30),
        ("2 MiB", 2**21), ("1KiB", 1024), ("1TiB", 2**40), ("0.5GB", 5 * 10**8), (12345, 12345),
        ("12345", 12345),
    ],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "5gb", "5Gb", "5B", "-5GB", "0", "0GB", "1e9", "0.1KiB", "1.5", "5 G B", "٣GB", 0, -1, True],
)
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(ArgumentError, match="expected a whole number of bytes above 0, or a number with KB, MB"):
        parse_size(text)


def test_writing_keeps_the_text_short_and_quotes_what_is_ambiguous() -> None:
    recipe = Recipe("ties", ("no", "0x1", "a b"), parameters={"kind": "1e5"}, shard_bytes=5 * 10**9)
    assert write_recipe(recipe) == (
        'method: ties\nmodels:\n  - "no"\n  - "0x1"\n  - "a b"\nparameters:\n  kind: "1e5"\nseed: 0\nshard_size: 5GB\n'
    )
    assert parse_recipe(write_recipe(parse_recipe(FULL))) == parse_recipe(FULL)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("m", ()),
        Recipe("m", ("a", "a")),
        Recipe("m", ("a",), settings=({"coefficient": 1.0}, {"coefficient": 2.0})),
        Recipe("m", ("a",), settings=({"coefficient": float("nan")},)),
        Recipe("m", ("a",), settings=({},)),
        Recipe("m", ("a",), slices=(Slice((Source("a", (0, 1)),)),)),
        Recipe("m", slices=(Slice((Source("a", (1, 1)),)),)),
        Recipe("m", slices=(Slice(()),)),
        Recipe("m", ("a",), compute_dtype="float32"),
        Recipe("m", ("a",), vocabulary=Vocabulary("")),
        Recipe("m", ("a",), vocabulary=Vocabulary("base", {"x": TokenRule("a", "b", 3)})),
        Recipe("m", ("a",), chat_template=""),
        Recipe("m", ("a\nb",)),
        Recipe("m", ("a",), dtype="I8"),
        Recipe("m", ("a",), seed=-1),
        Recipe("m", ("a",), shard_bytes=0),
        Recipe("m", ("a",), parameters={"x y": 1}),
        Recipe("m", ("a",), parameters={"x": float("inf")}),
    ],
)
def test_what_no_file_can_say_is_not_written(recipe: Recipe) -> None:
    with pytest.raises(ArgumentError):
        write_recipe(recipe)


TEXTS = st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=12).filter(str.strip)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | st.booleans() | TEXTS | st.sampled_from(["", "yes", "~", "null", "010", ".nan", "1e5", "<<"])
GLOBS = TEXTS.filter(lambda text: not set(text) & set("\\^$()|") and not text.startswith(".*"))
RULES = st.builds(Rule, GLOBS | st.just("*"), st.tuples(VALUES) | st.lists(NUMBERS, min_size=1, max_size=4).map(tuple))
TOKENS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
SETTINGS = VALUES | st.builds(Schedule, st.lists(RULES, min_size=1, max_size=3).map(tuple))
NAMES = st.sampled_from(["density", "lambda_", "from_", "a1", "_x"])


KEYED = st.dictionaries(NAMES, SETTINGS, max_size=2)
OWN = st.dictionaries(NAMES, NUMBERS | st.builds(Schedule, st.tuples(RULES)), max_size=2)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    rules = st.builds(TokenRule, TEXTS, token=st.none() | TOKENS, force=st.booleans())
    rules |= st.builds(TokenRule, TEXTS, token_id=st.integers(0, 2**40))
    tokens = draw(st.dictionaries(TOKENS, rules, max_size=3))
    return Vocabulary(draw(TEXTS), tokens, draw(st.none() | st.integers(1, 256)))


@st.composite
def slices(draw: st.DrawFn) -> Slice:
    models = draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True))
    count = draw(st.integers(1, 90))
    starts = [draw(st.integers(0, 90)) for _ in models]
    sources = [Source(m, (start, start + count), draw(OWN)) for m, start in zip(models, starts, strict=True)]
    return Slice(tuple(sources), draw(st.none() | st.sampled_from(models)), draw(KEYED))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    models = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    given = tuple(draw(OWN) for _ in models)
    parts = draw(st.lists(slices(), max_size=2).map(tuple))
    return Recipe(
        method=draw(TEXTS),
        models=() if parts else tuple(models),
        base=None if parts else draw(st.none() | TEXTS.filter(lambda text: text not in models)),
        settings=given if any(given) and not parts else (),
        slices=parts,
        parameters=draw(st.dictionaries(NAMES, SETTINGS)),
        copy=draw(st.lists(GLOBS, max_size=2).map(tuple)),
        drop=draw(st.lists(GLOBS, max_size=2).map(tuple)),
        dtype=draw(st.sampled_from([None, "F64", "F32", "F16", "BF16"])),
        compute_dtype=draw(st.sampled_from([None, "float16", "bfloat16"])),
        vocabulary=draw(st.none() | vocabularies()),
        chat_template=draw(st.none() | TOKENS),
        seed=draw(st.integers(0, 2**64 - 1)),
        shard_bytes=draw(st.integers(1, 2**63) | st.just(3 * 10**9)),
    )


@pytest.mark.property
@given(recipes())
@settings(max_examples=200, deadline=None)
def test_what_is_written_reads_back_equal(recipe: Recipe) -> None:
    again = parse_recipe(write_recipe(recipe))
    assert again == recipe
    assert repr(again) == repr(recipe)  # 1, 1.0 and True are equal but not the same


@pytest.mark.property
@given(st.text(max_size=60) | st.text("ab:-[]{}&*!|>'\"#%?,.~\n \t019<", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_as_a_recipe(text: str) -> None:
    try:
        message = f"line {parse_recipe(text)}"
    except RecipeError as error:
        message = str(error)
    assert "line " in message
