"""Small networks of PyTorch, their checkpoints and their groups."""

import pytest


@pytest.fixture
def nets(tmp_path, save_model):
    """`nets(make, *inputs)` makes two networks of different seeds: modules, folders, and the groups of the first."""
    import torch

    from weightsmith.align import permutation_groups

    def make_both(make, *inputs):
        modules, folders = [], []
        for seed, name in enumerate(("a", "b")):
            torch.manual_seed(seed)
            modules.append(make().eval())
            tensors = {n: t.clone() for n, t in modules[-1].state_dict().items()}
            folders.append(save_model(tmp_path / name, tensors))
        return modules, folders, permutation_groups(modules[0], inputs)

    return make_both


def mlp(width=24, inputs=8, outputs=5):
    from torch import nn

    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
