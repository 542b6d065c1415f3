"""Base and finetuned to and from adapters: extraction from a full fine-tune, exact merging on products."""

from weightsmith.adapt.extraction import extract_lora
from weightsmith.adapt.merging import merge_adapters

__all__ = ["extract_lora", "merge_adapters"]
