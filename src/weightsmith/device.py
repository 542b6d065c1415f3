"""Where a method's formulas run: the host's compiled loops, or a CUDA device through torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import ArgumentError, ResourceError
from weightsmith.tensor.arrays import Array


@dataclass(frozen=True)
class Device:
    """A place to compute; `torch_device` None is the host, compiled."""

    torch_device: Any = None
    stream: Any = None

    def for_thread(self) -> Device:
        """Return this device with a stream of its own, so that threads overlap copies with computation."""
        if self.torch_device is None or self.torch_device.type != "cuda":
            return self
        import torch

        return Device(self.torch_device, torch.cuda.Stream(self.torch_device))  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def run(self, function: Callable[[Array, Array], Array], base: Array, others: Array) -> Array:
        """Return function(base, others), computed on this device; arguments and result are host arrays.

        `base` may be None. On a device the inputs are copied, so the host's buffers are free when this returns.
        """
        with self.active():
            return self.back(function(None if base is None else self.move(base), self.move(others)))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute here, without recording gradients, while the context lasts."""
        if self.torch_device is None:
            yield
            return
        import torch

        with torch.inference_mode(), torch.cuda.stream(self.stream) if self.stream else nullcontext():
            yield

    def move(self, array: Array) -> Array:
        """Return a host array as one of this device: a copy, or on the host the array itself."""
        if self.torch_device is None:
            return array
        import torch

        return torch.from_numpy(array).to(self.torch_device, copy=True)

    def back(self, array: Array) -> Array:
        """Return an array of this device as a host array."""
        return array if self.torch_device is None else array.cpu().numpy()


def find_device(name: str) -> Device:
    """Return the device called "cpu", "cuda" or "cuda:N".

    Raises:
        ArgumentError: Another name.
        ResourceError: torch is missing, or there is no such device.
    """
    if name == "cpu":
        return Device()
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise ArgumentError("--device", expected="cpu, cuda or cuda:N", got=repr(name))
    try:
        import torch
    except ImportError as error:
        raise ResourceError(
            f"--device {name} needs torch", do="Install it: pip install 'weightsmith[torch]'"
        ) from error
    device = torch.device(name)
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"--device {name}",
            expected="a CUDA device",
            got=f"{torch.cuda.device_count()} devices",
            do="Use --device cpu",
        )
    return Device(device)
