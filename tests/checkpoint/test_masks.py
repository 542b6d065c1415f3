"""Stored masks: what fits, what is read, what is put together."""

import numpy as np
import pytest

from weightsmith.checkpoint.masks import of_tasks, open_mask, read_mask, where_masked
from weightsmith.checkpoint.read import Files
from weightsmith.errors import CheckpointError, MismatchError


@pytest.fixture
def mask(tmp_path, save_raw):
    save_raw(
        tmp_path / "mask" / "model.safetensors", {"w": ("BOOL", (2, 2), b"\0\1\1\0"), "bad": ("BOOL", (2,), b"\1\7")}
    )
    return tmp_path / "mask"


def test_elements_by_hand(mask):
    opened = open_mask(mask, {"w": (2, 2), "bad": (2,)}, "the model")
    with Files() as files:
        assert read_mask(files, opened.tensors["w"], 1, 4).tolist() == [True, True, False]
        assert read_mask(files, None, 0, 2).tolist() == [False, False]
        with pytest.raises(CheckpointError, match="expected bytes 0 and 1, as BOOL has; got 7 at flat index 1"):
            read_mask(files, opened.tensors["bad"], 1, 2)
    assert of_tasks([opened], ["w", "v"]) == {"w": [opened.tensors["w"]], "v": [None]}


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<u8"])
def test_stored_elements_of_any_width(dtype):
    first, second = np.arange(1, 4, dtype=dtype), np.zeros(3, dtype)
    found = where_masked(np.array([True, False, True]), first.view(np.uint8), second.view(np.uint8))
    assert found.view(dtype).tolist() == [1, 0, 3]


def test_every_misfit_is_told_at_once(mask, save_raw, tmp_path):
    save_raw(tmp_path / "odd" / "model.safetensors", {"w": ("U8", (2, 2), b"\0" * 4), "x": ("BOOL", (1,), b"\0")})
    with pytest.raises(MismatchError, match="2 faults") as caught:
        open_mask(tmp_path / "odd", {"w": (2, 2), "y": (1,)}, "the model")
    assert "is U8, a mask is BOOL" in str(caught.value)
    assert "'x' is not in the model" in str(caught.value)
    with pytest.raises(MismatchError, match=r"has shape \(2, 2\), in the model \(4,\)"):
        open_mask(mask, {"w": (4,), "bad": (2,)}, "the model")
