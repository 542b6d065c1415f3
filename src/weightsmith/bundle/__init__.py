"""Bundles: many finetuned models on one base, packed, changed and read back."""

from weightsmith.bundle.account import Account
from weightsmith.bundle.change import Removed, add, remove
from weightsmith.bundle.pack import Packed, pack
from weightsmith.bundle.resident import Bundle
from weightsmith.bundle.unpack import Unpacked, unpack

__all__ = ["Account", "Bundle", "Packed", "Removed", "Unpacked", "add", "pack", "remove", "unpack"]
