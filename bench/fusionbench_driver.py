"""Call FusionBench's functions on single matrices, in FusionBench's own environment, for `matrices.py`.

Its merges take state dicts, so each matrix is a state dict of one entry. What has no function of its own there is put
together from its parts: KnOTS from `subspace_alignment` and the package's own TIES.
"""

import os
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from fusion_bench.method.wudi.wudi import wudi_merging

from matrix_serve import Problem, serve

KEY = "matrix.weight"
Tensors = list[torch.Tensor]


class Holder(torch.nn.Module):
    """A model of one matrix, with a name that DOGE's filter takes."""

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.weight = torch.nn.Parameter(values, requires_grad=False)


def state_dicts(task_vectors: Tensors) -> list[dict[str, torch.Tensor]]:
    return [{KEY: matrix} for matrix in task_vectors]


def tsv_m(task_vectors: Tensors) -> torch.Tensor:
    with torch.no_grad():
        return compute_and_sum_svd_mem_reduction(state_dicts(task_vectors), accelerator="cpu")[KEY]


def knots(task_vectors: Tensors, eps: float, density: float) -> torch.Tensor:
    basis, values, blocks = subspace_alignment(task_vectors, eps=eps)
    aligned = [values[:, None] * block for block in blocks]
    merged = ties_merging(torch.stack([block.flatten() for block in aligned]), density, "mean")
    return basis @ merged.reshape(aligned[0].shape)


def doge(task_vectors: Tensors, subspace: int, density: float, eta: float) -> torch.Tensor:
    algorithm = DOGE_TA_Algorithm(subspace=subspace, K=density, lamda=eta)
    algorithm._fabric_instance = lightning.Fabric(accelerator="cpu", devices=1)
    models = {f"model{t}": Holder(matrix) for t, matrix in enumerate(task_vectors)}
    models["_pretrained_"] = Holder(torch.zeros_like(task_vectors[0]))
    return algorithm.run(models).encoder.weight


FUNCTIONS: dict[str, Any] = {
    "tsv_m": tsv_m,
    "iso_c": lambda taus: iso_c(state_dicts(taus), accelerator="cpu")[KEY],
    "iso_cts": lambda taus, common: iso_cts(state_dicts(taus), common_space_fraction=common, accelerator="cpu")[KEY],
    "knots": knots,
    "wudi": lambda taus, steps: wudi_merging(state_dicts(taus), accelerator="cpu", iter_num=steps)[KEY],
    "doge": doge,
}


def solve(work: str, problems: Sequence[Problem], side_by_side: bool) -> list[Any]:
    """Return the merged task vector of each matrix, one after the other: torch's threads share each."""
    inputs = [([torch.from_numpy(matrix) for matrix in p.task_vectors], p.options) for p in problems]
    return [FUNCTIONS[work](taus, **options).detach().numpy() for taus, options in inputs]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve(solve)
