"""Zstandard with bounds: what is decompressed has the size that is known beforehand, or is refused."""

from __future__ import annotations

import threading
from functools import cache
from importlib.util import find_spec
from typing import Any

from weightsmith.errors import ResourceError
from weightsmith.tensor.damage import damaged

# Numbers of trained weights repeat little: the higher levels find matches that cost more than they save, and decode slower.
LEVEL = 1

_held = threading.local()  # a context serves one thread


@cache
def has_zstandard() -> bool:
    """Tell whether the package zstandard is installed."""
    return find_spec("zstandard") is not None


def compress(raw: bytes) -> bytes:
    """Return raw as one zstd frame that tells its size; only where `has_zstandard`."""
    if not hasattr(_held, "compressor"):
        import zstandard

        _held.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    found: bytes = _held.compressor.compress(raw)
    return found


def decompress(data: Any, least: int, most: int, where: str) -> bytes:
    """Return what one zstd frame holds; its declared size is checked before it is decoded.

    Args:
        data: The frame, and nothing after it.
        least: Bytes that it must hold at least.
        most: Bytes that it may hold.
        where: What an error's message starts with.

    Raises:
        CheckpointError: It declares no size or another one, yields another one, is cut short or damaged, or is
            followed by more.
        ResourceError: The package zstandard is missing.
    """
    if not has_zstandard():
        raise ResourceError(
            f"{where} is compressed with zstd",
            expected="the package zstandard",
            got="none installed",
            do='run: pip install "weightsmith[bundle]"',
        )
    import zstandard

    expected = f"a zstd frame of {least} bytes" if least == most else f"a zstd frame of {least} to {most} bytes"
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if not least <= declared <= most:
            unknown = declared == zstandard.CONTENTSIZE_UNKNOWN
            raise damaged(where, expected, "one that does not tell its size" if unknown else f"one of {declared}")
        if not hasattr(_held, "decompressor"):
            _held.decompressor = zstandard.ZstdDecompressor()
        found: bytes = _held.decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damaged(where, expected, f"bytes that do not decode: {error}") from error
    if len(found) != declared:  # a frame to be skipped tells a size and holds nothing
        raise damaged(where, expected, f"bytes that do not decode: {len(found)} instead of {declared}")
    return found
