"""mergekit's recipe files: read, checked, and translated to recipes of our own."""

from weightsmith.dialect.convert import convert_recipe
from weightsmith.dialect.steps import Step, is_dialect, read_steps
from weightsmith.dialect.translate import Translation

__all__ = ["Step", "Translation", "convert_recipe", "is_dialect", "read_steps"]
