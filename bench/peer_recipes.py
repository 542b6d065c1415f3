"""The checkpoints and the grid of recipes that `peer_parity.py` runs."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

SHAPES = ("llama", "llama_tied", "gpt2", "bert", "vit", "t5", "mixtral")
PRECISIONS = {
    "bf16": "dtype: bfloat16\n",
    "f32": "dtype: float32\n",
    "f32-bf16": "dtype: float32\nout_dtype: bfloat16\n",
}
CHANGE = 0.0008  # deviation of a fine-tune's change; the base's is 0.02
WORDS = 1000


@dataclass(frozen=True)
class Case:
    """One recipe: `{base}`, `{a}`, `{b}`, `{c}` stand for the models of its shape.

    Attributes:
        known: Why entries may be beyond one unit.
        bound: Against the root mean square of a tensor, how far they may be.
        share: How many of all may be beyond one unit.
        nearer: Whether those computed in float32 must be nearer to float64 here.
    """

    name: str
    body: str
    shape: str = "llama"
    random: bool = False
    known: str = ""
    bound: float = 0.0
    share: float = 1.0
    nearer: bool = True
    flags: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The peer's name of the method."""
        return self.body.partition("merge_method: ")[2].partition("\n")[0]

    @property
    def exact(self) -> bool:
        """Whether a defect of the peer's has to be reproduced to compare anything."""
        return self.method in ("sce", "ramplus_tl", "arcee_fusion")

    @property
    def computes_in(self) -> str:
        """The precision of each step."""
        return "float32" if "\ndtype: float32" in self.body else "bfloat16"

    def text(self, data: Path) -> str:
        """Return the recipe with the models' folders in it."""
        places = {
            name: str(data / self.shape / name) for name in ("base", "a", "b", "c", "words_a", "words_b", "adapter")
        }
        text = self.body
        for name, place in places.items():
            text = text.replace("{" + name + "}", place)
        return text


def _model(shape: str) -> Any:
    small = {"hidden_size": 128, "num_attention_heads": 4, "vocab_size": WORDS}
    layers = {"num_hidden_layers": 4, "intermediate_size": 344}
    if shape in ("llama", "llama_tied"):
        tied = shape == "llama_tied"
        config = transformers.LlamaConfig(**small, **layers, num_key_value_heads=2, tie_word_embeddings=tied)
        return transformers.LlamaForCausalLM(config)
    if shape == "mixtral":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**small, **layers, **experts))
    if shape == "gpt2":
        config = transformers.GPT2Config(n_embd=128, n_head=4, n_layer=4, vocab_size=WORDS, n_positions=128)
        return transformers.GPT2LMHeadModel(config)
    if shape == "bert":
        config = transformers.BertConfig(**small, **layers, max_position_embeddings=128)
        model = transformers.BertForMaskedLM(config)
        model.bert = transformers.BertModel(config)  # with the pooler, which the peer asks for, as in the first release
        return model
    if shape == "vit":
        size = {"hidden_size": 128, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
        return transformers.ViTForImageClassification(transformers.ViTConfig(**size, **layers))
    t5 = {"d_model": 128, "d_kv": 32, "d_ff": 344, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**t5, vocab_size=WORDS, feed_forward_proj="gated-gelu")
    )


def make_checkpoints(data: Path) -> None:
    """Write base, a, b and c of every shape, once."""
    transformers.utils.logging.disable_progress_bar()
    for shape in SHAPES:
        folder = data / shape
        if (folder / "c" / "config.json").is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(7)
        model = _model(shape).to(torch.bfloat16)
        start = {n: _values(n, p) for n, p in model.named_parameters()}
        for name in ("base", "a", "b", "c"):
            with torch.no_grad():
                for n, p in model.named_parameters():
                    change = torch.distributions.StudentT(4.0).sample(p.shape) * CHANGE * (torch.rand(p.shape) > 0.2)
                    p.copy_(start[n] + (0 if name == "base" else 1) * change)
            model.save_pretrained(
                folder / name, save_original_format=shape != "mixtral"
            )  # its table there has fused experts
    if not (data / "llama" / "words_b" / "config.json").is_file():
        _with_words(data / "llama")


def _values(name: str, parameter: torch.Tensor) -> torch.Tensor:
    drawn = torch.randn(parameter.shape) * 0.02
    return (1 + drawn if "norm" in name.lower() and name.endswith("weight") else drawn).to(torch.bfloat16).float()


def _with_words(folder: Path) -> None:
    """Give the models tokenizers; words_a and words_b know words of their own, and have rows for them."""
    words = [f"w{i}" for i in range(WORDS - 3)]
    _tokenizer(words).save_pretrained(folder / "base")
    for name in ("a", "b", "c"):
        _tokenizer(words).save_pretrained(folder / name)
    for name, own in (("words_a", ["alpha", "beta", "shared"]), ("words_b", ["shared", "gamma"])):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / name[-1], dtype=torch.bfloat16)
        torch.manual_seed(len(own))
        model.resize_token_embeddings(WORDS + len(own), mean_resizing=False)
        model.save_pretrained(folder / name)
        _tokenizer(words, own).save_pretrained(folder / name)


def _tokenizer(words: list[str], own: list[str] | None = None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    listed = ["<unk>", "<s>", "</s>", *words, *(own or [])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def _recipe(method: str, *, parameters: str = "", model: str = "", base: bool = True, count: int = 3) -> str:
    """Return a whole-model recipe; `model` holds one set of parameters per model, separated by |."""
    given = itertools.cycle(model.split("|")) if model else itertools.repeat("")
    lines = [f"merge_method: {method}", *(["base_model: {base}"] if base else []), "models:"]
    for name, inner in zip("abc"[:count], given, strict=False):
        lines.append("  - {model: {" + name + "}" + (f", parameters: {{{inner.strip()}}}" if inner else "") + "}")
    if parameters:
        lines.append(f"parameters: {{{parameters}}}")
    return "\n".join(lines) + "\n"


WEIGHTS = "weight: 0.5 | weight: 0.3 | weight: 0.4"
TRIMMED = "weight: 0.5, density: 0.5 | weight: 0.3, density: 0.3 | weight: 0.4, density: 0.7"
SINGLE = "merge_method: {}\nbase_model: {{base}}\nmodels:\n  - model: {{base}}\n  - model: {{a}}\n"

METHODS: dict[str, str] = {
    "linear": _recipe("linear", model=WEIGHTS, base=False),
    "linear-sum": _recipe("linear", model=WEIGHTS, base=False, parameters="normalize: false"),
    "linear-base": _recipe("linear", parameters="weight: 0.5"),
    "task_arithmetic": _recipe("task_arithmetic", model=WEIGHTS),
    "task_arithmetic-norm": _recipe("task_arithmetic", model=WEIGHTS, parameters="normalize: true, lambda: 0.7"),
    "ties": _recipe("ties", model=TRIMMED),
    "ties-rescale": _recipe("ties", model=TRIMMED, parameters="rescale: true, lambda: 0.9, int8_mask: true"),
    "ties-sum": _recipe("ties", model=TRIMMED, parameters="normalize: false"),
    "ties-negative": _recipe("ties", model="weight: 1, density: 0.5 | weight: -0.3, density: 0.4"),
    "breadcrumbs": _recipe("breadcrumbs", model="weight: 0.4, density: 0.9, gamma: 0.02"),
    "breadcrumbs-norm": _recipe("breadcrumbs", model=TRIMMED, parameters="normalize: true, rescale: true"),
    "breadcrumbs_ties": _recipe("breadcrumbs_ties", model="weight: 0.4, density: 0.7, gamma: 0.01"),
    "nuslerp": _recipe("nuslerp", model="weight: 0.7 | weight: 0.4", base=False, count=2),
    "nuslerp-base": _recipe("nuslerp", model="weight: 0.7 | weight: 0.4", count=2),
    "nuslerp-rows": _recipe(
        "nuslerp", model="weight: 0.7 | weight: 0.4", base=False, count=2, parameters="nuslerp_flatten: false"
    ),
    "nuslerp-columns": _recipe(
        "nuslerp",
        model="weight: 0.7 | weight: 0.4",
        count=2,
        parameters="nuslerp_flatten: false, nuslerp_row_wise: true",
    ),
    "nuslerp-columns-alone": _recipe(
        "nuslerp",
        model="weight: 0.7 | weight: 0.4",
        base=False,
        count=2,
        parameters="nuslerp_flatten: false, nuslerp_row_wise: true",
    ),
    "multislerp": _recipe("multislerp", model=WEIGHTS, base=False),
    "multislerp-base": _recipe("multislerp", model=WEIGHTS),
    "karcher": _recipe("karcher", base=False),
    "model_stock": _recipe("model_stock"),
    "model_stock-rows": _recipe("model_stock", parameters="filter_wise: true"),
    "sce": _recipe("sce"),
    "sce-top": _recipe("sce", parameters="select_topk: 0.3"),
    "ram": _recipe("ram"),
    "ramplus_tl": _recipe("ramplus_tl", parameters="r: 0.2, alpha: 0.3"),
    "slerp": SINGLE.format("slerp") + "parameters: {t: 0.35}\n",
    "nearswap": SINGLE.format("nearswap") + "parameters: {t: 0.0005}\n",
    "arcee_fusion": SINGLE.format("arcee_fusion"),
}
RANDOM: dict[str, str] = {
    "dare_linear": _recipe("dare_linear", model=TRIMMED),
    "dare_ties": _recipe("dare_ties", model=TRIMMED),
    "della": _recipe("della", model="weight: 0.5, density: 0.5, epsilon: 0.1"),
    "della_linear": _recipe("della_linear", model="weight: 0.5, density: 0.6, epsilon: 0.2"),
}
STRUCTURE: dict[str, str] = {
    "gradient": _recipe("ties", model="weight: [0, 0.5, 1], density: [0.2, 0.8] | weight: 0.6, density: 0.5"),
    "filters": _recipe(
        "task_arithmetic",
        parameters="weight: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 0.5}, {value: 0.1}]",
    ),
    "levels": _recipe(
        "ties",
        model="weight: [{filter: mlp, value: 1}], density: 0.6 | ",
        parameters='weight: 0.3, density: [{filter: "q_proj", value: 0.2}, {value: 0.9}], lambda: [0.5, 1.5]',
    ),
    "filter-one": _recipe("linear", parameters="weight: {filter: '*', value: [1, 2]}", base=False),
    "slerp-t": SINGLE.format("slerp")
    + """parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
""",
    "slices": """merge_method: slerp
base_model: {base}
slices:
  - sources:
      - {model: {base}, layer_range: [0, 3]}
      - {model: {a}, layer_range: [1, 4]}
    parameters: {t: [0.2, 0.8]}
  - sources:
      - {model: {b}, layer_range: [2, 4]}
      - {model: {base}, layer_range: [2, 4]}
parameters: {t: 0.6}
""",
    "slices-ties": """merge_method: ties
base_model: {base}
slices:
  - sources:
      - {model: {base}, layer_range: [0, 2]}
      - {model: {a}, layer_range: [0, 2], parameters: {weight: 1.0}}
      - {model: {b}, layer_range: [2, 4], parameters: {weight: [{filter: layers.2, value: 0.1}, {value: 0.7}]}}
    parameters: {density: 0.3}
  - sources:
      - {model: {c}, layer_range: [3, 4]}
      - {model: {base}, layer_range: [3, 4]}
parameters: {density: 0.8, weight: [0.2, 0.9]}
""",
    "stacked": """merge_method: passthrough
slices:
  - sources: [{model: {a}, layer_range: [0, 3]}]
  - sources: [{model: {b}, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1.0}]}}]
  - sources: [{model: {a}, layer_range: [2, 4]}]
""",
    "base-alone": "merge_method: ties\nbase_model: {base}\nmodels:\n  - model: {base}\n",
    "modules": """merge_method: linear
modules:
  default:
    models:
      - {model: {a}, parameters: {weight: 1}}
      - {model: {b}}
    parameters: {weight: 0.25}
""",
}
OTHERS = ("linear", "task_arithmetic", "ties", "breadcrumbs", "slerp", "karcher", "model_stock", "sce", "arcee_fusion")
WORDS_CASES: dict[str, str] = {
    "tokenizer-union": "merge_method: linear\nbase_model: {base}\nmodels:\n  - {model: {words_a}}\n  - {model: {words_b}}\n"
    "parameters: {weight: 1}\ntokenizer_source: union\ndtype: bfloat16\n",
    "tokenizer-base": "merge_method: ties\nbase_model: {base}\nmodels:\n  - {model: {words_a}}\n  - {model: {words_b}}\n"
    "parameters: {weight: 1, density: 0.6}\ntokenizer_source: base\ndtype: bfloat16\n",
    "tokenizer-model": "merge_method: linear\nmodels:\n  - {model: {words_a}}\n  - {model: {words_b}}\n"
    "parameters: {weight: 1}\ntokenizer:\n  source: {words_a}\n  pad_to_multiple_of: 64\n"
    "  tokens:\n    beta: {source: {kind: model_token, model: {words_b}, token: gamma}}\n"
    "    alpha: {source: {kind: zero}, force: true}\n    w5: {}\n"
    "dtype: bfloat16\n",
}


# What lengths and inner products summed in float32 may make of float32 results, against the root mean square of a tensor.
SUMS = {"slerp": 8e-6, "nuslerp": 8e-6, "multislerp": 2e-5, "karcher": 2e-5, "model_stock": 1e-6, "sce": 5e-7}
ONE_UP = 0.015  # a bfloat16 at the top of a binade, one unit further


def explained(case: Case) -> Case:
    """Return the case with the reason and the bounds of a known difference; bounds are a little above what was measured."""
    narrow = case.computes_in == "bfloat16"
    if case.method == "arcee_fusion":
        told = "importances are mostly rounding where models are near, and decide which entries are taken"
        return replace(case, known=told, bound=0.4 if narrow else 0.25, share=5e-4 if narrow else 0.025)
    if case.name.startswith("sce-top") and not narrow:
        told = "variances equal to float32's precision at the cut: another one is kept, and the models' weights follow"
        return replace(case, known=told, bound=ONE_UP if "out_dtype" in case.body else 4e-4, nearer=False)
    told = "lengths and inner products are summed in float32 there, exactly here"
    if not narrow and (case.method in SUMS or "rescale: true" in case.body):
        return replace(case, known=told, bound=ONE_UP if "out_dtype" in case.body else SUMS.get(case.method, 5e-7))
    if narrow and case.method == "karcher":
        told += "; then angles come from cosines of 8 bits, where one rounds the other way its whole tensor does"
        far = case.shape == "t5"
        return replace(case, known=told, bound=0.3 if far else 2 * ONE_UP, share=0.025 if far else 1e-3)
    return replace(case, known=told, bound=ONE_UP, share=1e-5) if narrow and case.method in SUMS else case


def cases() -> list[Case]:
    """Return the grid."""
    listed = []
    for precision, lines in PRECISIONS.items():
        listed += [Case(f"{name}.{precision}", body + lines) for name, body in METHODS.items()]
        listed += [Case(f"{name}.{precision}", body + lines, random=True) for name, body in RANDOM.items()]
        listed += [Case(f"{name}.{precision}", body + lines) for name, body in STRUCTURE.items()]
    listed += [Case(f"{name}.no-dtype", METHODS[name]) for name in ("linear", "ties", "slerp")]
    listed += [Case("ties.f16", METHODS["ties"] + "dtype: float16\n")]
    for shape in SHAPES[1:]:
        listed += [Case(f"{shape}.{name}", METHODS[name] + PRECISIONS["bf16"], shape) for name in OTHERS]
    listed += [Case(name, body) for name, body in WORDS_CASES.items()]
    return [explained(case) for case in listed]
