import dataclasses
import json
import math

import numpy as np
import pytest

from weightsmith.demo.evaluate import accuracy
from weightsmith.demo.model import (
    HEAD_FILE,
    Shape,
    features,
    initial_head,
    initial_weights,
    load,
    load_head,
    logits,
    save,
)
from weightsmith.demo.tasks import PLAIN, TASKS, examples
from weightsmith.demo.train import Settings, finetune, finetune_all, pretrain, reproducible

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

SMALL = Shape(width=16, layers=2, attention_heads=2, inner=24)
BRIEF = Settings(shape=SMALL, base_images=16, base_epochs=1, expert_epochs=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    tasks = examples(0, TASKS[-2:])
    with reproducible():
        base, heads = pretrain(examples(0, (PLAIN,))[0], tasks, BRIEF, 0)
        expert = finetune(base, heads[tasks[0].task.name], tasks[0], BRIEF, 1)
    return tasks, base, heads, expert


def by_hand(weights, image, shape):
    """One image through the trunk in numpy, patch by patch and head by head."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        centered = x - x.mean(-1, keepdims=True)
        return (
            centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))

    patches = [image[y : y + 2, x : x + 2].ravel() for y in range(0, 8, 2) for x in range(0, 8, 2)]
    x = linear("model.embeddings.patch", np.array(patches, np.float64)) + w["model.embeddings.position"]
    size = shape.width // shape.attention_heads
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        y = norm(f"{at}.input_norm", x)
        q, k, v = (linear(f"{at}.attention.{p}", y) for p in ("q_proj", "k_proj", "v_proj"))
        mixed = []
        for head in range(shape.attention_heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            mixed.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        x = x + linear(f"{at}.attention.o_proj", np.concatenate(mixed, 1))
        x = x + linear(f"{at}.mlp.down_proj", gelu(linear(f"{at}.mlp.up_proj", norm(f"{at}.post_norm", x))))
    return norm("model.norm", x.mean(0))


def test_forward_equals_a_plain_numpy_computation():
    weights = initial_weights(SMALL, seeded())
    images = torch.rand(3, 8, 8, generator=seeded(1))
    found = features(weights, images, SMALL)
    assert found.shape == (3, SMALL.width)
    for image, row in zip(images.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(row, by_hand(weights, image, SMALL), atol=2e-5)


def test_a_checkpoint_folder_gives_the_trained_model_back(tmp_path, trained):
    tasks, _, heads, expert = trained
    head = heads[tasks[0].task.name]
    save(tmp_path / "expert", expert, head, SMALL)
    weights, shape = load(tmp_path / "expert")
    assert shape == SMALL
    images = torch.from_numpy(tasks[0].images["test"])
    assert torch.equal(
        logits(weights, load_head(tmp_path / "expert"), images, shape), logits(expert, head, images, SMALL)
    )


def test_the_folder_is_an_ordinary_checkpoint_with_the_head_outside(tmp_path):
    weights = initial_weights(SMALL, seeded())
    save(tmp_path / "a", weights, initial_head(SMALL, 10, seeded()), SMALL)
    save(tmp_path / "b", weights, None, SMALL)
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["architectures"]
    assert (tmp_path / "a" / HEAD_FILE).exists()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["config.json", "model.safetensors"]
    from weightsmith.checkpoint.names import layer_count

    assert layer_count(weights) == 2
    assert "model.layers.0.attention.q_proj.weight" in weights


def test_training_the_expert_changes_the_trunk_and_leaves_base_and_head(trained):
    tasks, base, heads, _ = trained
    name = tasks[0].task.name
    before = {k: v.clone() for k, v in base.items()}, {k: v.clone() for k, v in heads[name].items()}
    with reproducible():
        expert = finetune(base, heads[name], tasks[0], BRIEF, 1)
    assert all(torch.equal(before[0][k], base[k]) for k in base)
    assert all(torch.equal(before[1][k], heads[name][k]) for k in heads[name])
    assert not torch.equal(expert["model.norm.weight"], base["model.norm.weight"])


def test_same_seed_same_bytes_alone_or_side_by_side(trained):
    tasks, base, heads, expert = trained
    said = []
    with reproducible():
        again, _ = pretrain(examples(0, (PLAIN,))[0], tasks, BRIEF, 0)
        experts = finetune_all(base, heads, tasks, BRIEF, 0, said.append)
    assert all(torch.equal(base[k], again[k]) for k in base)
    assert all(torch.equal(expert[k], experts[tasks[0].task.name][k]) for k in expert)
    assert sorted(said) == sorted(e.task.name for e in tasks)


def test_tasks_with_ten_labels_share_one_head():
    tasks = examples(0, (*TASKS[:2], TASKS[-1]))
    brief = dataclasses.replace(BRIEF, base_epochs=0)
    _, heads = pretrain(examples(0, (PLAIN,))[0], tasks, brief, 0)
    a, b, c = (heads[e.task.name]["head.weight"] for e in tasks)
    assert torch.equal(a, b)
    assert c.shape == (2, SMALL.width)


def test_torch_is_left_as_it_was():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with reproducible():
        assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), reproducible():
        1 / 0  # noqa: B018
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_accuracy_counts_right_answers():
    (task,) = examples(0, (TASKS[-1],))
    weights = initial_weights(SMALL, seeded())
    head = {"head.weight": torch.zeros(2, SMALL.width), "head.bias": torch.tensor([0.0, 1.0])}
    assert accuracy(weights, head, SMALL, task, "test") == pytest.approx(task.labels["test"].mean())
