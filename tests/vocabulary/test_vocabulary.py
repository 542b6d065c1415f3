"""Merges of models with other tokens: rows by token, checked against models that were aligned by hand beforehand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace

from weightsmith import make_plan, merge, verify
from weightsmith.budget import choose_limits
from weightsmith.errors import ArgumentError, MismatchError, WeightsmithError
from weightsmith.plan import Options
from weightsmith.recipe import Recipe, Slice, Source, TokenRule, Vocabulary

WIDTH = 6
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
EMBEDDING, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
TOKEN_TENSORS = (EMBEDDING, HEAD, BIAS)


def save_tokenizer(folder, tokens, added=()):
    """A WordLevel tokenizer whose ordinary tokens have ids in order, the added ones after them."""
    tokenizer = Tokenizer(WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in added])
    tokenizer.save(str(folder / "tokenizer.json"))


def rows_of(seed, tokens, padding=0):
    """A row per token that depends on the seed and the token alone, then padding rows; by tensor."""
    made = {name: [] for name in TOKEN_TENSORS}
    for token in [*tokens, *(f"padding {i}" for i in range(padding))]:
        rng = np.random.default_rng([seed, *token.encode()])
        for name in TOKEN_TENSORS:
            made[name].append(rng.standard_normal(() if name == BIAS else WIDTH).astype(np.float32))
    return {name: np.stack(rows) for name, rows in made.items()}


@pytest.fixture
def save(tmp_path, save_arrays):
    """`save(name, seed, tokens, added, ...)` writes a model; its rows follow from seed and token."""

    def write(
        name, seed, tokens, added=(), *, padding=0, rows=None, files=True, config=None, drop=(), dtype=np.float32
    ):
        arrays = rows if rows is not None else rows_of(seed, [*tokens, *added], padding)
        rng = np.random.default_rng(seed)
        arrays = {n: a.astype(dtype) for n, a in arrays.items() if n not in drop}
        arrays["model.layers.0.mlp.up_proj.weight"] = rng.standard_normal((4, WIDTH)).astype(dtype)
        size = len(arrays[EMBEDDING])
        folder = save_arrays(tmp_path / name, arrays, config={**CONFIG, "vocab_size": size, **(config or {})})
        if files:
            save_tokenizer(folder, tokens, added)
        return str(folder)

    return write


def recipe(method, base, models, source, tokens=None, pad=None, **more):
    rule = Vocabulary(source, tokens or {}, pad)
    return Recipe(method, tuple(models), base, vocabulary=rule, **more)


def run(wanted, out, **options):
    result = merge(wanted, out=out, options=Options(force_base=True, **options))
    assert verify(out).is_sound, verify(out).findings
    assert verify(out).skipped == ()
    return result


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


A = ["<unk>", "a", "b", "c"]


def test_equal_vocabularies_add_nothing(save, tmp_path, load_arrays):
    base, one, two = (save(n, i, A, ["<s>"]) for i, n in enumerate(("base", "one", "two")))
    wanted = recipe("ties", base, [one, two], "union")
    plan = make_plan(wanted)
    assert all(e.rows is None for w in plan.works for e in w.inputs)
    assert plan.vocabulary.count == 0
    merge(wanted, out=tmp_path / "ruled", options=Options(force_base=True))
    merge("ties", base=base, models=[one, two], out=tmp_path / "plain", options=Options(force_base=True))
    same(load_arrays(tmp_path / "ruled"), load_arrays(tmp_path / "plain"))
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "ruled" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shuffled_ids_give_the_same_bytes_as_aligned_models(save, tmp_path, load_arrays, method, dtype):
    tokens = [f"t{i}" for i in range(50)]
    shuffled = list(np.random.default_rng(1).permutation(tokens))
    parts = {"dtype": np.dtype(dtype)}
    base = None if method == "linear" else save("base", 0, tokens, **parts)
    one, two, aligned = (
        save("one", 1, tokens, **parts),
        save("two", 2, shuffled, **parts),
        save("two2", 2, tokens, **parts),
    )
    run(recipe(method, base, [one, two], "base"), tmp_path / "ruled")
    run(Recipe(method, (one, aligned), base), tmp_path / "plain")
    same(load_arrays(tmp_path / "ruled"), load_arrays(tmp_path / "plain"))


def test_union_order_and_rows(save, tmp_path, load_arrays):
    """The base's tokens, ordinary ones of the others in order, then added ones; rows by the rules of 11.2."""
    base = save("base", 0, ["<unk>", "a", "b"], ["<s>"])
    one = save("one", 1, ["<unk>", "b", "x"], ["<s>", "<y>"])
    two = save("two", 2, ["<unk>", "a", "z", "x"], ["<y>", "<w>"])
    wanted = recipe("task_arithmetic", base, [one, two], "union", parameters={"lambda_": 1.0})
    plan = make_plan(wanted)
    order = ["<unk>", "a", "b", "<s>", "x", "z", "<y>", "<w>"]
    run(wanted, tmp_path / "out")
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert sorted(made.get_vocab(), key=made.get_vocab().get) == order
    assert [t.content for t in made.get_added_tokens_decoder().values() if t.special] == ["<s>", "<y>", "<w>"]
    own = [
        dict(zip(tokens, zip(*(rows_of(seed, tokens)[n] for n in TOKEN_TENSORS), strict=True), strict=True))
        for seed, tokens in enumerate(
            (["<unk>", "a", "b", "<s>"], ["<unk>", "b", "x", "<s>", "<y>"], ["<unk>", "a", "z", "x", "<y>", "<w>"])
        )
    ]
    found = load_arrays(tmp_path / "out")
    for place, token in enumerate(order):
        has = [rows[token] for rows in own if token in rows]
        for n, name in enumerate(TOKEN_TENSORS):
            if token in own[0]:
                default = own[0][token][n]
            else:
                default = np.mean([row[n] for row in has], axis=0, dtype=np.float64).astype(np.float32)
            b, *others = (rows[token][n] if token in rows else default for rows in own)
            expected = b.astype(np.float64) + sum((o - b) for o in others)
            np.testing.assert_allclose(found[name][place], expected, rtol=1e-5, atol=1e-6)
    rules = {d.token: (d.id, d.ids, d.source, d.rule) for d in plan.vocabulary.differences}
    assert rules == {
        "a": (1, (1, None, 1), base, "the base's"),
        "b": (2, (2, 1, None), base, "the base's"),
        "<s>": (3, (3, 3, None), base, "the base's"),
        "x": (4, (None, 2, 3), f"{one} and {two}", "mean"),
        "z": (5, (None, None, 2), two, "the only model that has it"),
        "<y>": (6, (None, 4, 4), f"{one} and {two}", "mean"),
        "<w>": (7, (None, None, 5), two, "the only model that has it"),
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 8
    record = json.loads((tmp_path / "out" / "edit.json").read_text())["vocabulary"]
    assert (record["tokens"], record["rows"], record["differences"]) == (8, 8, 7)


def aligned_by_hand(seed, own, order, fill):
    """The rows a model would have in the output's order; `fill(token)` gives those it lacks, by tensor."""
    mine = rows_of(seed, own)
    found = {}
    for name in TOKEN_TENSORS:
        found[name] = np.stack([mine[name][own.index(t)] if t in own else fill(t)[name] for t in order])
    return found


def test_union_is_the_merge_of_models_aligned_by_hand(save, tmp_path, load_arrays):
    base_tokens, more = [f"t{i}" for i in range(30)], [f"t{i}" for i in range(15, 40)]
    base, one = save("base", 0, base_tokens), save("one", 1, more)
    order = [f"t{i}" for i in range(40)]

    def fill(token):
        seed = 0 if token in base_tokens else 1
        return {n: a[0] for n, a in rows_of(seed, [token]).items()}

    hand = [
        save(f"hand{seed}", seed, order, rows=aligned_by_hand(seed, own, order, fill))
        for seed, own in enumerate((base_tokens, more))
    ]
    run(recipe("ties", base, [one], "union"), tmp_path / "ruled")
    run(Recipe("ties", (hand[1],), hand[0]), tmp_path / "plain")
    same(load_arrays(tmp_path / "ruled"), load_arrays(tmp_path / "plain"))


@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_and_threads_change_nothing(save, tmp_path, load_arrays, threads, monkeypatch):
    """Tiles of 4,096 elements cut rows of 6 elements in the middle."""
    tokens = [f"t{i}" for i in range(3000)]
    base = save("base", 0, tokens[:2500], padding=7)
    one = save("one", 1, list(np.random.default_rng(1).permutation(tokens[200:])))
    two = save("two", 2, list(np.random.default_rng(2).permutation(tokens[100:2900])))
    wanted = recipe("ties", base, [one, two], "union", {"t5": TokenRule("zero", force=True)}, 256)
    run(wanted, tmp_path / "one tile", threads=1)

    def small(*given, **more):
        return replace(choose_limits(*given, **more), tile=4096, chunk_bytes=10_000)

    monkeypatch.setattr("weightsmith.plan.forecast.choose_limits", small)
    run(wanted, tmp_path / "many", threads=threads)
    same(load_arrays(tmp_path / "one tile"), load_arrays(tmp_path / "many"))
    assert load_arrays(tmp_path / "many")[EMBEDDING].shape == (3072, WIDTH)


def test_padding_is_the_mean_of_each_models_rows(save, tmp_path, load_arrays):
    base, one = save("base", 0, A), save("one", 1, A)
    run(recipe("linear", None, [base, one], "base", pad=8), tmp_path / "out")
    found = load_arrays(tmp_path / "out")
    for name in TOKEN_TENSORS:
        mean = np.mean([rows_of(i, A)[name].mean(0, dtype=np.float64).astype(np.float32) for i in (0, 1)], axis=0)
        assert len(found[name]) == 8
        np.testing.assert_allclose(found[name][4:], np.broadcast_to(mean, found[name][4:].shape), rtol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 8
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()


def test_padded_rows_are_kept(save, tmp_path, load_arrays):
    """A base padded to 8 rows and a model padded to 6: the base's rows stay, the model's where it has them."""
    base, one = save("base", 0, A, padding=4), save("one", 1, A, padding=2)
    wanted = recipe("linear", None, [base, one], "base")
    assert any("4 of the 8 rows" in note and "kept" in note for note in make_plan(wanted).notes)
    run(wanted, tmp_path / "out")
    found = load_arrays(tmp_path / "out")[EMBEDDING]
    base_rows, rows = rows_of(0, A, 4)[EMBEDDING], rows_of(1, A, 2)[EMBEDDING]
    expected = np.concatenate([(base_rows[:6] + rows) / 2, base_rows[6:]])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_padding_that_a_model_lacks_is_the_sources(save, tmp_path, load_arrays):
    models = [save(str(seed), seed, A, padding=2 * seed) for seed in range(3)]
    run(recipe("linear", None, models, models[1]), tmp_path / "out")
    zero, one, two = (rows_of(seed, A, 2 * seed)[EMBEDDING] for seed in range(3))
    expected = (np.concatenate([zero, one[4:]]) + one + two[:6]) / 3
    np.testing.assert_allclose(load_arrays(tmp_path / "out")[EMBEDDING], expected, rtol=1e-5, atol=1e-7)


def test_a_shorter_output_says_what_it_leaves_out(save):
    base, one = save("base", 0, A), save("one", 1, A, ["<x>"], padding=3)
    plan = make_plan(recipe("linear", None, [base, one], "base"))
    assert any("4 of the 8 rows of" in note for note in plan.notes), plan.notes
    assert [(d.token, d.id, d.rule) for d in plan.vocabulary.differences] == [("<x>", None, "left out")]


def test_a_named_models_vocabulary(save, tmp_path, load_arrays):
    base, one = save("base", 0, A), save("one", 1, ["<unk>", "c", "q"], ["<s>"])
    (tmp_path / "one" / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    (tmp_path / "base" / "added_tokens.json").write_text("{}")
    run(recipe("linear", None, [base, one], one), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not (tmp_path / "out" / "added_tokens.json").exists()
    found, own = load_arrays(tmp_path / "out")[EMBEDDING], rows_of(1, ["<unk>", "c", "q", "<s>"])[EMBEDDING]
    np.testing.assert_array_equal(found[2:], own[2:])  # the base lacks them: the other's rows in both
    np.testing.assert_allclose(found[1], (own[1] + rows_of(0, ["c"])[EMBEDDING][0]) / 2, rtol=1e-6)


def test_special_ids_follow_their_tokens(save, tmp_path):
    ids = {"bos_token_id": 1, "eos_token_id": [3, 2], "pad_token_id": 0, "text_config": {"eos_token_id": 3}}
    base = save("base", 0, A, config=ids)
    one = save("one", 1, ["c", "b", "<unk>"], config={"bos_token_id": 0})
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": 3, "top_k": 3}')
    run(recipe("linear", None, [base, one], one), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == [0, 1]
    assert config["pad_token_id"] == 2
    assert config["bos_token_id"] == 0  # "a" is gone; the other's config says so
    assert config["text_config"]["eos_token_id"] == 0
    assert config["vocab_size"] == 3
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 0, "top_k": 3}
    assert any("'a', which the output lacks" in n for n in make_plan(recipe("linear", None, [base, one], one)).notes)


def test_rules_for_tokens(save, tmp_path, load_arrays):
    base, one = save("base", 0, A), save("one", 1, A, ["<x>"])
    tokens = {
        "a": TokenRule(one, force=True),
        "b": TokenRule("zero", force=True),
        "c": TokenRule("zero"),
        "<x>": TokenRule(base, token="c"),
        "<new>": TokenRule(one, token_id=1),
    }
    wanted = recipe("linear", None, [base, one], "union", tokens)
    run(wanted, tmp_path / "out")
    found = load_arrays(tmp_path / "out")[EMBEDDING]
    zero, other = rows_of(0, A)[EMBEDDING], rows_of(1, [*A, "<x>"])[EMBEDDING]
    np.testing.assert_array_equal(found[1], other[1])
    np.testing.assert_array_equal(found[2], 0 * found[2])
    np.testing.assert_allclose(found[3], (zero[3] + other[3]) / 2, rtol=1e-6)  # both have it, nothing is forced
    np.testing.assert_allclose(found[4], (zero[3] + other[4]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(found[5], other[1])
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    assert (made["<x>"], made["<new>"]) == (4, 5)
    told = {d.token: (d.source, d.rule) for d in make_plan(wanted).vocabulary.differences}
    assert told["<new>"] == (f"{one}, row 1", "configured")
    assert told["b"] == ("zero", "configured, for every model")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (TokenRule("nowhere"), "none of the models"),
        (TokenRule("BASE", token="nothing"), "has no token 'nothing'"),
        (TokenRule("BASE", token_id=99), "row 99 is not among the 4"),
        (TokenRule("BASE"), "has no token '<x>'"),
    ],
)
def test_rules_that_do_not_fit(save, rule, told):
    base, one = save("base", 0, A), save("one", 1, A, ["<x>"])
    rule = TokenRule(rule.source.replace("BASE", base), rule.token, rule.token_id)
    with pytest.raises(WeightsmithError, match=told):
        make_plan(recipe("linear", None, [base, one], "union", {"<x>": rule}))


def test_padding_to_nothing(save):
    base, one = save("base", 0, A), save("one", 1, A)
    with pytest.raises(ArgumentError, match="from 1"):
        make_plan(recipe("linear", None, [base, one], "base", pad=0))


def test_a_source_that_is_not_there(save):
    base, one = save("base", 0, A), save("one", 1, A)
    with pytest.raises(ArgumentError, match="none of the models"):
        make_plan(recipe("linear", None, [base, one], "elsewhere"))


def test_tied_models(save, tmp_path, load_arrays):
    """One model stores its head, the others tie it to the embedding."""
    tied = {"tie_word_embeddings": True}
    tokens = ["<unk>", "c", "a", "d"]
    rows = rows_of(2, tokens)
    rows[HEAD] = rows[EMBEDDING]
    base = save("base", 0, A, config=tied, drop=(HEAD, BIAS))
    one = save("one", 1, tokens, config=tied, drop=(HEAD, BIAS))
    two = save("two", 2, tokens, rows=rows, drop=(BIAS,))
    run(recipe("linear", None, [base, one, two], "union"), tmp_path / "out")
    found = load_arrays(tmp_path / "out")
    assert HEAD not in found
    assert len(found[EMBEDDING]) == 5
    run(recipe("linear", None, [two, base, one], "union"), tmp_path / "untied")
    found = load_arrays(tmp_path / "untied")
    np.testing.assert_array_equal(found[HEAD], found[EMBEDDING])


def test_positions_are_left_alone(tmp_path, save_arrays, load_arrays):
    """GPT-2 with as many positions as tokens: only the token embedding is re-ordered."""
    tokens = ["<unk>", "a", "b", "c"]
    folders = []
    for seed, order in enumerate((tokens, tokens[::-1])):
        rng = np.random.default_rng(seed)
        arrays = {n: rng.standard_normal((4, 3)).astype(np.float32) for n in ("wte.weight", "wpe.weight")}
        arrays["h.0.attn.c_attn.bias"] = rng.standard_normal(4).astype(np.float32)
        folders.append(save_arrays(tmp_path / str(seed), arrays, config={"vocab_size": 4, "tie_word_embeddings": True}))
        save_tokenizer(folders[-1], order)
    one, two = map(str, folders)
    run(recipe("linear", None, [one, two], "base"), tmp_path / "out")
    found, a, b = (load_arrays(f) for f in (tmp_path / "out", *folders))
    np.testing.assert_allclose(found["wte.weight"], (a["wte.weight"] + b["wte.weight"][::-1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["wpe.weight"], (a["wpe.weight"] + b["wpe.weight"]) / 2, rtol=1e-6)


def test_rows_of_another_dtype_are_rounded(save, tmp_path, load_arrays):
    base, one = save("base", 0, A, dtype=np.float16), save("one", 1, ["x", *A])
    run(recipe("task_arithmetic", base, [one], "union", parameters={"lambda_": 0.0}), tmp_path / "out")
    found = load_arrays(tmp_path / "out")[EMBEDDING]
    np.testing.assert_array_equal(found[4], rows_of(1, ["x"])[EMBEDDING][0].astype(np.float16))


def test_copied_tensors_are_reordered_too(save, tmp_path, load_arrays):
    base, one = save("base", 0, A), save("one", 1, A[::-1])
    run(recipe("linear", None, [base, one], one, copy=("*embed_tokens*",)), tmp_path / "out")
    np.testing.assert_array_equal(load_arrays(tmp_path / "out")[EMBEDDING], rows_of(0, A)[EMBEDDING][::-1])


def test_bfloat16_rows(tmp_path, save_model, load_model):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tokens = [f"t{i}" for i in range(20)]
    drawn = [torch.randn(20, 4).bfloat16() for _ in range(2)]
    order = np.random.default_rng(0).permutation(20)
    one = save_model(tmp_path / "one", {EMBEDDING: drawn[0]})
    two = save_model(tmp_path / "two", {EMBEDDING: drawn[1][order].contiguous()})
    aligned = save_model(tmp_path / "aligned", {EMBEDDING: drawn[1]})
    for folder, listed in ((one, tokens), (two, [tokens[i] for i in order]), (aligned, tokens)):
        (folder / "config.json").write_text('{"vocab_size": 20}')
        save_tokenizer(folder, listed)
    run(recipe("linear", None, [str(one), str(two)], "base", pad=16), tmp_path / "ruled")
    run(recipe("linear", None, [str(one), str(aligned)], "base", pad=16), tmp_path / "plain")
    ruled, plain = load_model(tmp_path / "ruled")[EMBEDDING], load_model(tmp_path / "plain")[EMBEDDING]
    assert ruled.shape == (32, 4)
    assert torch.equal(ruled, plain)


def test_without_a_rule_moved_tokens_are_refused(save, command):
    base, one = save("base", 0, A), save("one", 1, ["<unk>", "b", "a", "c"])
    with pytest.raises(MismatchError, match=r"2 at another id \('b' 1 and 2, 'a' 2 and 1\).*--tokenizer union"):
        make_plan(Recipe("linear", (base, one)))
    assert make_plan(Recipe("linear", (base, one), copy=("*embed_tokens*", "lm_head*"))).copied
    ran = command("plan", "linear", "--model", base, "--model", one)
    assert ran.code == 3
    assert "vocabulary: {source: union}" in ran.err


def test_without_a_rule_other_sizes_are_explained(save):
    base, one, two = save("base", 0, A), save("one", 1, A, ["<x>"]), save("two", 2, A, padding=4)
    with pytest.raises(MismatchError, match=r"1 only in .*one' \('<x>'\)"):
        make_plan(Recipe("linear", (base, one)))
    with pytest.raises(MismatchError, match="the same tokens, but 8 rows and 4"):
        make_plan(Recipe("linear", (base, two)))


def test_without_a_rule_renamed_tokens_are_noted(save):
    base, one = save("base", 0, A), save("one", 1, [*A[:3], "<think>"])
    notes = make_plan(Recipe("linear", (base, one))).notes
    assert any("1 only in" in note and "'<think>'" in note for note in notes)


def test_models_without_tokenizer(save, tmp_path):
    base, one = save("base", 0, A), save("one", 1, A, files=False)
    plan = make_plan(recipe("linear", None, [base, one], "union"))
    assert any("taken to have the tokens" in note for note in plan.notes)
    two = save("two", 1, A, padding=1, files=False)
    with pytest.raises(MismatchError, match="has no tokenizer files"):
        make_plan(recipe("linear", None, [base, two], "union"))
    (tmp_path / "two" / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(MismatchError, match="save_pretrained"):
        make_plan(recipe("linear", None, [base, two], "union"))


def test_adapters_on_embeddings_are_refused(save, tmp_path, save_arrays):
    base, one = save("base", 0, A), save("one", 1, A[::-1])
    prefix = f"base_model.model.{EMBEDDING.removesuffix('.weight')}"
    low = {
        f"{prefix}.lora_embedding_A": np.ones((2, 4), np.float32),
        f"{prefix}.lora_embedding_B": np.ones((WIDTH, 2), np.float32),
    }
    folder = save_arrays(tmp_path / "adapter", low)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(MismatchError, match="carries an adapter"):
        make_plan(recipe("linear", None, [base, f"{one}+{folder}"], "base"))
    assert make_plan(recipe("linear", None, [one, f"{one}+{folder}"], "base")).merged


@pytest.mark.parametrize("wanted", ["auto", "MODEL", "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_chat_templates(save, tmp_path, wanted):
    base, one, two = save("base", 0, A), save("one", 1, A), save("two", 2, A)
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"eos_token": "c", "chat_template": "{{ first }}"}')
    (tmp_path / "one" / "tokenizer_config.json").write_text(
        '{"chat_template": [{"name": "default", "template": "{{ x }}"}]}'
    )
    (tmp_path / "two" / "chat_template.jinja").write_text("{{ x }}")
    wanted = wanted.replace("MODEL", two)
    run(Recipe("linear", (base, one, two), chat_template=wanted), tmp_path / "out")
    expected = "{{ x }}" if "for" not in wanted else wanted
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings == {"eos_token": "c", "chat_template": expected}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == expected


def test_templates_by_name_are_refused(save):
    base, one = save("base", 0, A), save("one", 1, A)
    with pytest.raises(ArgumentError, match="write its text"):
        make_plan(Recipe("linear", (base, one), chat_template="chatml"))


def test_command_line(save, tmp_path, command, load_arrays):
    base, one = save("base", 0, A), save("one", 1, [f"w{i}" for i in range(30)])
    words = ["linear", "--model", base, "--model", one, "--tokenizer", "union"]
    ran = command("plan", *words)
    assert ran.code == 0, ran.err
    assert "34 tokens in 34 rows" in ran.out
    assert "'w0': -, 0 -> 4; the only model that has it" in ran.out
    assert "... and 14 more" in ran.out
    told = json.loads(command("plan", *words, "--json").out)["vocabulary"]
    assert (told["differences"], len(told["table"])) == (34, 34)
    assert told["table"][4] == {
        "token": "w0", "id": 4, "ids": [None, 0], "source": one, "rule": "the only model that has it",
    }  # fmt: skip
    assert command("merge", *words, "--out", tmp_path / "out", "--quiet").code == 0
    assert load_arrays(tmp_path / "out")[EMBEDDING].shape == (34, WIDTH)


def test_a_missing_library_names_the_extra(save, monkeypatch):
    import sys

    base, one = save("base", 0, A), save("one", 1, A, ["<x>"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert make_plan(recipe("linear", None, [base, one], "base")).vocabulary is not None
    with pytest.raises(WeightsmithError, match=r"weightsmith\[hf\]"):
        make_plan(recipe("linear", None, [base, one], "union"))


def test_transformers_loads_a_union_of_byte_level_tokenizers(tmp_path):
    """Two GPT-2 models with other merges and added tokens: the output loads and gives logits for every token."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folders = []
    for name, added, pieces in (("base", ["<|x|>"], "ab"), ("one", ["<|im_start|>", "<|x|>"], "cd")):
        letters = sorted({*"abcdef"})
        vocab = {c: i for i, c in enumerate(["<|end|>", *letters, pieces])}
        tokenizer = Tokenizer(BPE(vocab, [(pieces[0], pieces[1])]))
        tokenizer.add_special_tokens(["<|end|>", *added])
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
        config = transformers.GPT2Config(
            vocab_size=len(fast), n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    run(recipe("linear", None, folders, "union", pad=16), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "ab", "<|x|>", "cd", "<|im_start|>"]) == [0, 7, 8, 9, 10]
    assert tokenizer("ab<|im_start|>c").input_ids == [7, 10, 3]
    logits = model(**tokenizer("abcdef<|im_start|>", return_tensors="pt")).logits
    assert logits.shape[-1] == model.config.vocab_size == 16
    assert torch.isfinite(logits).all()


def test_stacked_layers_need_one_vocabulary(save):
    """The embedding of the first slice's model and the head of the last one's must have the same tokens."""
    base, one = save("base", 0, A, drop=(BIAS,)), save("one", 1, A[::-1], drop=(BIAS,))
    slices = tuple(Slice((Source(model, (0, 1)),)) for model in (base, one))
    with pytest.raises(MismatchError, match="at another id"):
        make_plan(Recipe("passthrough", slices=slices))
    plan = make_plan(Recipe("passthrough", slices=slices, vocabulary=Vocabulary("base")))
    assert [w.name for w in plan.works if w.inputs[0].rows is not None] == [HEAD]
