"""What is said of coded bytes that are not what they should be."""

from __future__ import annotations

from weightsmith.errors import CheckpointError


def damaged(where: str, expected: str, got: str) -> CheckpointError:
    """Return the error for a piece of a bundle that cannot be decoded; `where` names the file, tensor and frame."""
    return CheckpointError(
        f"{where} is damaged",
        expected=expected,
        got=got,
        do="fetch the bundle's file again, or pack the task again",
    )
