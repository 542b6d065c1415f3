"""What a notebook shows of a result: the pictures of its report."""

from __future__ import annotations

import importlib


class Pictured:
    """A result that a notebook shows as pictures; the room that draws them lies above all results, and is reached by name."""

    def _repr_html_(self) -> str:
        html: str = importlib.import_module("weightsmith.report").notebook(self)
        return html
