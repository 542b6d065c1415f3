"""Defects that tests once found: each stays mended."""

import os
import threading

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.arguments import Real, Reals
from weightsmith.checkpoint.write import Output
from weightsmith.engine.stream import Worker
from weightsmith.errors import ArgumentError, NonFiniteError, WeightsmithError
from weightsmith.merge import METHODS, linear, slerp, task_arithmetic
from weightsmith.plan import Options
from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.coding import decode, encode
from weightsmith.tensor.sign import MERGES, merge_agreeing
from weightsmith.tensor.vector import add_scaled

BY_NAME = {m.name: m for m in METHODS}


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFFFC000])
def test_nan_stays_nan_in_bfloat16(bits):
    # 0x7FFFFFFF is the NaN that CUDA arithmetic makes; it was stored as -0.0 and called finite.
    out = np.empty(2, np.uint8)
    finite = encode(np.array([bits], np.uint32).view(np.float32), "BF16", out)
    assert not finite
    back = np.empty(1, np.float32)
    decode(out, "BF16", back)
    assert np.isnan(back[0])


@pytest.mark.parametrize("merge", MERGES)
def test_merge_agreeing_of_minus_zeros_has_the_same_bits_everywhere(merge):
    # `trim` leaves -0.0 where it drops a negative entry, so that columns of -0.0 are common.
    vectors = np.array([[-0.0, 1.0, 0.0], [-0.0, -1.0, -0.0]], np.float32)
    compiled = merge_agreeing(vectors, merge, 0)
    assert merge_agreeing(vectors.view(Plain), merge, 0).tobytes() == compiled.tobytes()
    assert merge_agreeing(torch.from_numpy(vectors), merge, 0).numpy().tobytes() == compiled.tobytes()


def test_adding_nothing_keeps_minus_zero():
    # The docstring of add_scaled: "A factor of 0 gives base itself, bit for bit".
    base, vector = np.array([-0.0, 1.0], np.float32), np.array([2.0, 3.0], np.float32)
    assert add_scaled(base, vector, 0.0).tobytes() == base.tobytes()
    assert add_scaled(base.view(Plain), vector.view(Plain), 0.0).tobytes() == base.tobytes()


@pytest.mark.parametrize("method", [linear, slerp], ids=lambda m: m.name)
def test_copies_with_minus_zero_come_back_bit_for_bit(method):
    # The docstring of linear: "equal inputs come back bit for bit".
    model = np.array([-0.0, 1.0, 0.0], np.float32)
    assert method([model, model.copy()]).tobytes() == model.tobytes()


def test_result_that_overflows_is_an_error_not_a_warning():
    with pytest.raises(NonFiniteError, match="float16"):
        task_arithmetic(np.full(3, 60000, np.float16), [np.full(3, 60000, np.float16)])


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_result_shares_no_memory_with_the_inputs(lambda_):
    base, model = torch.ones(3), torch.full((3,), 2.0)
    before = base.clone(), model.clone()
    BY_NAME["wise_ft"](base, [model], lambda_=lambda_).zero_()
    assert torch.equal(base, before[0])
    assert torch.equal(model, before[1])


def test_result_of_no_elements_or_one_model_shares_no_memory():
    model = torch.ones(3)
    linear([model]).zero_()
    assert torch.equal(model, torch.ones(3))


def test_a_number_beyond_float_is_refused():
    with pytest.raises(ArgumentError, match="lambda_"):
        Real().check(10**400, "lambda_", "merge ties")


@pytest.mark.parametrize("value", [1 + 2j, object()])
def test_coefficients_that_are_no_sequence_are_refused(value):
    with pytest.raises(ArgumentError, match="coefficients"):
        Reals().check(value, "coefficients", "merge linear")


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_integers_are_not_averaged(dtype):
    # 0 and 1 average to 0 by truncation; the command line copies such tensors, a call should refuse them.
    with pytest.raises(WeightsmithError):
        linear([np.zeros(3, dtype), np.ones(3, dtype)])


def test_signalling_nan_is_told_without_a_warning():
    raw = np.array([0x7FA0], "<u2").view(np.uint8)
    assert not decode(raw, "BF16", np.empty(1, np.float64))


def test_task_vector_that_overflows_is_an_error_not_a_warning(tmp_path, save_model):
    base = save_model(tmp_path / "base", {"w": torch.full((8,), 3e38)})
    model = save_model(tmp_path / "model", {"w": torch.full((8,), -3e38)})
    with pytest.raises(NonFiniteError, match="'w'"):
        weightsmith.merge(
            "task_arithmetic", base=base, models=[model], out=tmp_path / "out", options=Options(force_base=True)
        )


def test_a_factor_beyond_float32_is_an_error_not_a_warning():
    with pytest.raises(NonFiniteError):
        task_arithmetic(np.ones(3, np.float32), [np.ones(3, np.float32)], lambda_=1e300)


@pytest.mark.parametrize("wrong", ["nan in the base", "another base"])
def test_a_run_that_fails_closes_its_files(wrong, tmp_path, save_model):
    base = torch.ones(20_000)
    model = base * (50.0 if wrong == "another base" else 1.0)
    if wrong == "nan in the base":
        base[10_000] = float("nan")
    folders = save_model(tmp_path / "base", {"w": base}), save_model(tmp_path / "model", {"w": model})
    open_files = []
    for i in range(3):
        with pytest.raises(WeightsmithError):
            weightsmith.merge("task_arithmetic", base=folders[0], models=[folders[1]], out=tmp_path / f"out{i}")
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert open_files[0] == open_files[2]


def test_float64_rounds_once_to_bfloat16_in_memory():
    # 1 + 2**-8 lies halfway between two bfloat16 numbers; 2**-40 more decides, and float32 does not see it.
    result = task_arithmetic(
        torch.tensor([1.0], dtype=torch.bfloat16), [torch.tensor([2.0**-8 + 2.0**-40], dtype=torch.float64)]
    )
    assert result.dtype == torch.bfloat16
    assert result.item() == 1 + 2.0**-7


def test_rows_of_a_later_tile_keep_their_kth_entry(tmp_path, save_model, load_model):
    # Where rows are ranked, positions count from the row, not from the tensor; see Tile.position.
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((3000, 64)).astype(np.float32))
    model = base + torch.from_numpy(rng.standard_normal((3000, 64)).astype(np.float32)) / 8
    folders = save_model(tmp_path / "base", {"w": base}), save_model(tmp_path / "model", {"w": model})
    weightsmith.merge(
        "breadcrumbs", base=folders[0], models=[folders[1]], out=tmp_path / "out", scope="row", density=0.25,
        drop_top=0.0, lambda_=1.0,
    )  # fmt: skip
    changed = (load_model(tmp_path / "out")["w"] != base).sum(1)
    assert changed.tolist() == [16] * 3000


def test_threads_are_at_rest_before_the_output_is_taken_back(tmp_path, save_model, monkeypatch):
    # A thread that still writes after Output.__exit__ writes to a descriptor that is closed, or someone else's.
    names = [f"layers.{i}.w" for i in range(4)]
    base = save_model(tmp_path / "base", {n: torch.ones(1_100_000) for n in names})
    model = save_model(tmp_path / "model", {n: torch.ones(1_100_000) for n in names})
    busy, release, seen = threading.Event(), threading.Event(), []
    store, leave = Worker.store, Output.__exit__

    def slow(self, work, start, values, out):
        if work.name == names[0] and start == 0:
            busy.wait(5)
            raise NonFiniteError("made up")
        busy.set()
        release.wait(0.5)
        store(self, work, start, values, out)
        busy.clear()

    def left(self, *error):
        seen.append(busy.is_set())
        release.set()
        leave(self, *error)

    monkeypatch.setattr(Worker, "store", slow)
    monkeypatch.setattr(Output, "__exit__", left)
    with pytest.raises(NonFiniteError, match="made up"):
        weightsmith.merge(
            "task_arithmetic", base=base, models=[model], out=tmp_path / "out", options=Options(threads=2)
        )
    assert seen == [False]
