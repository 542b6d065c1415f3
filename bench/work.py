"""The merges that are measured: their options, the models they read, and their peer recipe."""

from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path

FINETUNED = ("ft1", "ft2", "ft3")
RELATED = ("ft1", "ft2", "base")  # as seen from ft3, their task vectors have much in common


@dataclass(frozen=True)
class Work:
    """One merge.

    Attributes:
        name: As it appears in the table.
        method: The method's name on weightsmith's command line.
        models: Folders given as --model, in order.
        base: Folder given as --base (and so read), if any.
        options: Further options.
        peer: Lines of mergekit's recipe before `models:`, or None where it has no such method.
        peer_parameters: Per-model parameters of that recipe, one for all or one for each with | between.
        peer_base: Which folder is the recipe's base_model, if any.
        comparable: Whether mergekit's result is compared; not where chance, or noise, decides.
    """

    name: str
    method: str
    models: tuple[str, ...] = FINETUNED
    base: str | None = "base"
    options: tuple[str, ...] = ()
    peer: str | None = None
    peer_parameters: str = ""
    peer_base: str | None = "base"
    comparable: bool = True

    def inputs(self) -> tuple[str, ...]:
        """Return the folders this merge reads."""
        return ((self.base,) if self.base else ()) + self.models

    def arguments(self, data: Path | None) -> list[str]:
        """Return the command's words after `weightsmith`; without a folder, as written in the README."""

        def place(folder: str) -> str:
            return str(data / folder) if data else folder

        words = ["merge", self.method]
        if self.base:
            words += ["--base", place(self.base)]
        for model in self.models:
            words += ["--model", place(model)]
        return [*words, *self.options]

    def recipe(self, data: Path, exact: bool = False) -> str:
        """Return mergekit's recipe; `exact` computes in float32 and rounds once."""
        lines = ["dtype: float32", "out_dtype: bfloat16"] if exact else ["dtype: bfloat16"]
        lines += [line.strip() for line in (self.peer or "").split(";")]
        if self.peer_base:
            lines.append(f"base_model: {data / self.peer_base}")
        lines.append("models:")
        given = cycle(self.peer_parameters.split("|")) if self.peer_parameters else repeat("")
        for model, parameters in zip(self.models, given, strict=False):
            lines.append(f"  - model: {data / model}")
            if parameters:
                lines.append(f"    parameters: {parameters.strip()}")
        return "\n".join(lines) + "\n"


PEER_TIES = ("--coefficients", "1,0.8,0.6", "--consensus", "true", "--normalize", "true", "--rescale", "true")

WORKS = (
    Work(
        "linear",
        "linear",
        base=None,
        peer="merge_method: linear",
        peer_parameters="{weight: 1.0}",
        peer_base=None,
    ),
    Work(
        "task_arithmetic",
        "task_arithmetic",
        options=("--lambda", "0.3"),
        peer="merge_method: task_arithmetic; parameters: {lambda: 0.3, normalize: false}",
        peer_parameters="{weight: 1.0}",
    ),
    Work(
        "slerp",
        "slerp",
        models=FINETUNED[:2],
        base=None,
        options=("--t", "0.5"),
        peer="merge_method: slerp; parameters: {t: 0.5}",
        peer_base="ft1",
    ),
    Work("wise_ft", "wise_ft", models=FINETUNED[:1], options=("--lambda", "0.5")),
    Work("lines", "lines", options=("--beta", "0.5")),
    Work("tall_masks", "tall_masks", options=("--task", "1")),
    Work("consensus", "consensus", options=("--lambda", "0.3")),
    Work("dare", "dare", options=("--density", "0.5", "--seed", "0")),
    Work("dare_ties", "dare_ties", options=("--density", "0.5", "--seed", "0")),
    Work("breadcrumbs", "breadcrumbs", options=("--density", "0.5", "--drop-top", "0.01", "--lambda", "0.3")),
    Work(
        "ties, scope tensor",
        "ties",
        options=("--density", "0.5", "--scope", "tensor"),
        peer="merge_method: ties; parameters: {normalize: true}",
        peer_parameters="{weight: 1.0, density: 0.5}",
    ),
    Work("ties, scope model", "ties", options=("--density", "0.5", "--scope", "model")),
    Work("breadcrumbs_ties", "breadcrumbs_ties", options=("--density", "0.5", "--drop-top", "0.01")),
    Work("magmax", "magmax", options=("--lambda", "0.5")),
    Work("emr", "emr", options=("--task", "2")),
    Work("pcb", "pcb", options=("--density", "0.1")),
    Work("lt_sft", "lt_sft", options=("--density", "0.1")),
    Work("rebase", "rebase", models=("base", "ft1", "ft2"), base="ft3"),
    Work("robust_signatures", "robust_signatures", options=("--lambda", "0.5")),
    Work("flag", "flag", models=RELATED, base="ft3"),
    Work(
        "model_stock",
        "model_stock",
        models=RELATED,
        base="ft3",
        options=("--clamp", "false"),
        peer="merge_method: model_stock",
        peer_base="ft3",
    ),
    Work("karcher", "karcher", base=None, peer="merge_method: karcher", peer_base=None),
    Work(
        "nuslerp",
        "nuslerp",
        models=FINETUNED[:2],
        base=None,
        options=("--coefficients", "0.7,0.3"),
        peer="merge_method: nuslerp",
        peer_parameters="{weight: 0.7} | {weight: 0.3}",
        peer_base=None,
    ),
    Work(
        "nuslerp_base",
        "nuslerp_base",
        models=FINETUNED[:2],
        options=("--coefficients", "0.7,0.3"),
        peer="merge_method: nuslerp",
        peer_parameters="{weight: 0.7} | {weight: 0.3}",
    ),
    Work(
        "multislerp",
        "multislerp",
        base=None,
        options=("--coefficients", "0.5,0.3,0.2"),
        peer="merge_method: multislerp",
        peer_parameters="{weight: 0.5} | {weight: 0.3} | {weight: 0.2}",
        peer_base=None,
    ),
    Work(
        "multislerp_base",
        "multislerp_base",  # mergekit ends at a tensor that no model changed, and the checkpoints have such
        options=("--coefficients", "0.5,0.3,0.2"),
    ),
    Work(
        "nearswap",
        "nearswap",
        models=FINETUNED[:1],
        options=("--t", "0.0005"),
        peer="merge_method: nearswap; parameters: {t: 0.0005}",
    ),
    Work(
        "sce",
        "sce",
        options=("--select-topk", "0.5", "--peer-floor", "true"),
        peer="merge_method: sce; parameters: {select_topk: 0.5}",
    ),
    Work("arcee_fusion", "arcee_fusion", models=FINETUNED[:1], peer="merge_method: arcee_fusion", comparable=False),
    Work("ram", "ram", peer="merge_method: ram"),
    Work("ramplus", "ramplus", options=("--r", "1"), peer="merge_method: ramplus_tl; parameters: {r: 1.0}"),
    Work(
        "della",
        "della",
        options=(
            *("--densities", "0.5,0.5,0.5", "--epsilons", "0.1,0.1,0.1", "--lambda", "1"),
            *("--normalize", "true", "--rescale", "l1"),
        ),
        peer="merge_method: della; parameters: {lambda: 1.0, normalize: true, rescale: true}",
        peer_parameters="{weight: 1.0, density: 0.5, epsilon: 0.1}",
        comparable=False,
    ),
    Work(
        "della_linear",
        "della_linear",
        options=("--densities", "0.5,0.5,0.5", "--epsilons", "0.1,0.1,0.1", "--rescale", "none"),
        peer="merge_method: della_linear; parameters: {lambda: 1.0, normalize: false, rescale: false}",
        peer_parameters="{weight: 1.0, density: 0.5, epsilon: 0.1}",
        comparable=False,
    ),
    Work(
        "sparse_task_arithmetic, magnitude",
        "sparse_task_arithmetic",
        options=("--sparsify", "magnitude", "--densities", "0.5,0.5,0.5", *PEER_TIES),
        peer="merge_method: ties; parameters: {normalize: true, rescale: true}",
        peer_parameters="{weight: 1.0, density: 0.5} | {weight: 0.8, density: 0.5} | {weight: 0.6, density: 0.5}",
    ),
    Work(
        "sparse_task_arithmetic, outliers",
        "sparse_task_arithmetic",
        options=("--sparsify", "outliers", "--densities", "0.5,0.5,0.5", *PEER_TIES),
        peer="merge_method: breadcrumbs_ties; parameters: {normalize: true, rescale: true}",
        peer_parameters="{weight: 1.0, density: 0.5} | {weight: 0.8, density: 0.5} | {weight: 0.6, density: 0.5}",
    ),
    Work(
        "sparse_task_arithmetic, random",
        "sparse_task_arithmetic",
        options=(
            *("--sparsify", "random", "--densities", "0.5,0.5,0.5"),
            *("--consensus", "true", "--normalize", "true", "--rescale", "true"),
        ),
        peer="merge_method: dare_ties; parameters: {normalize: true, rescale: true}",
        peer_parameters="{weight: 1.0, density: 0.5}",
        comparable=False,
    ),
    Work(
        "passthrough", "passthrough", models=FINETUNED[:1], base=None, peer="merge_method: passthrough", peer_base=None
    ),
)
