"""The peer's methods, and which of ours has its numerics: names, defaults and kinds of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightsmith.strict_yaml import Value


@dataclass(frozen=True)
class Argument:
    """One parameter of a method of the peer.

    Attributes:
        ours: Our name for it, singular where it is given per model; None where it changes no number.
        default: The peer's default; None for none.
        needed: Whether the peer refuses a recipe without it.
        kind: "number", "whole" or "flag".
        words: For a flag that is a choice of words here: what true and false are called.
    """

    ours: str | None
    default: Value | None = None
    needed: bool = False
    kind: str = "number"
    words: Mapping[bool, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PeerMethod:
    """One method of the peer.

    Attributes:
        ours: The name of our method.
        with_base: Its name where there is a base, for base "optional".
        base: What a base is to it: "needed"; "optional"; "first", where our method takes it as the first of its models;
            "model", where it is one more model.
        shared: Parameters with one value for all models, by the peer's name.
        per_model: Parameters with one value per model other than the base.
        fixed: Our parameters that make it this method.
        exact: Our parameters that reproduce a harmless defect, with --peer-exact.
        notes: What is done better, told unless --peer-exact.
        least: Fewest models beside the base ("first": the base included).
        most: Most of them; None for any number.
        widens: Whether the peer writes float32 whatever the dtype.
    """

    ours: str
    base: str = "needed"
    with_base: str = ""
    shared: Mapping[str, Argument] = field(default_factory=dict)
    per_model: Mapping[str, Argument] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    exact: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    least: int = 1
    most: int | None = None
    widens: bool = False


def _flag(ours: str | None, default: bool) -> Argument:
    return Argument(ours, default, kind="flag")


ROW_WISE, COLUMN = "row_wise", "column"  # a flag, and the scope it stands for, which is a method of its own here
_WEIGHT = Argument("coefficient", needed=True)


def _sparse(
    sparsify: str, *, consensus: bool, normalize: bool = False, rescale: bool = False, **more: Argument
) -> PeerMethod:
    """Return one of the family that trims task vectors, weighs them and adds them up."""
    shared = {
        "lambda": Argument("lambda_", 1.0),
        "normalize": _flag("normalize", normalize),
        "rescale": _flag("rescale", rescale),
        "int8_mask": _flag(None, False),
    }
    density = {} if sparsify == "none" else {"density": Argument("density", 1.0)}
    if sparsify == "none":
        shared["rescale"] = _flag(None, rescale)
        density = {"density": Argument(None, 1.0)}
    fixed = {"sparsify": sparsify, "consensus": consensus}
    return PeerMethod(
        "sparse_task_arithmetic", shared=shared, per_model={"weight": _WEIGHT, **density, **more}, fixed=fixed
    )


def _della(ours: str, *, normalize: bool) -> PeerMethod:
    shared = {
        "lambda": Argument("lambda_", 1.0),
        "normalize": _flag("normalize", normalize),
        "rescale": Argument("rescale", True, kind="flag", words={True: "l1", False: "none"}),
        "int8_mask": _flag(None, False),
    }
    per_model = {"weight": _WEIGHT, "density": Argument("density", 1.0), "epsilon": Argument("epsilon", 0.15)}
    return PeerMethod(ours, shared=shared, per_model=per_model)


_GAMMA = Argument("gamma", 0.01)
_WIDE = "mergekit writes float32 whatever dtype says; here the dtype holds"

PEER_METHODS: Mapping[str, PeerMethod] = {
    "linear": PeerMethod(
        "linear", "model", shared={"normalize": _flag("normalize", True)}, per_model={"weight": _WEIGHT}
    ),
    "task_arithmetic": _sparse("none", consensus=False),
    "ties": _sparse("magnitude", consensus=True, normalize=True),
    "dare_linear": _sparse("random", consensus=False, rescale=True),
    "dare_ties": _sparse("random", consensus=True, rescale=True),
    "breadcrumbs": _sparse("outliers", consensus=False, gamma=_GAMMA),
    "breadcrumbs_ties": _sparse("outliers", consensus=True, gamma=_GAMMA),
    "della": _della("della", normalize=True),
    "della_linear": _della("della_linear", normalize=False),
    "slerp": PeerMethod("slerp", "first", shared={"t": Argument("t", needed=True)}, least=2, most=2),
    "nuslerp": PeerMethod(
        "nuslerp",
        "optional",
        "nuslerp_base",
        shared={
            "nuslerp_flatten": Argument("scope", True, kind="flag", words={True: "tensor", False: "row"}),
            "nuslerp_row_wise": _flag(ROW_WISE, False),
        },
        per_model={"weight": _WEIGHT},
        least=2,
        most=2,
    ),
    "multislerp": PeerMethod(
        "multislerp",
        "optional",
        "multislerp_base",
        shared={"normalize_weights": _flag("normalize", True), "eps": Argument("eps", 1e-8)},
        per_model={"weight": _WEIGHT},
    ),
    "karcher": PeerMethod(
        "karcher",
        "model",
        shared={"max_iter": Argument("max_iter", 10, kind="whole"), "tol": Argument("tol", 1e-5)},
    ),
    "model_stock": PeerMethod(
        "model_stock",
        shared={"filter_wise": Argument("scope", False, kind="flag", words={True: "row", False: "tensor"})},
        fixed={"clamp": False},
        least=2,
    ),
    "sce": PeerMethod(
        "sce",
        shared={"select_topk": Argument("select_topk", 1.0), "int8_mask": _flag(None, False)},
        exact={"peer_floor": True},
        notes=(
            "models are weighed by the energy of their changes; mergekit weighs them equally where it is below 1e-6",
        ),
    ),
    "arcee_fusion": PeerMethod("arcee_fusion", most=1, widens=True, notes=(_WIDE,)),
    "nearswap": PeerMethod("nearswap", shared={"t": Argument("t", needed=True)}, most=1),
    "ram": PeerMethod("ram", shared={"epsilon": Argument("epsilon", 1e-5)}),
    "ramplus_tl": PeerMethod(
        "ramplus",
        shared={"epsilon": Argument("epsilon", 1e-5), "r": Argument("r", 0.1), "alpha": Argument("alpha", 0.2)},
        fixed={"scope": "tensor"},
        widens=True,
        notes=(_WIDE,),
    ),
    "passthrough": PeerMethod("passthrough", "model", per_model={"scale": Argument("scale")}, most=1),
}
