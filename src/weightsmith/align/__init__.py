"""Units that may change places: groups of axes that move together, matching by weights, merging of like units."""

from weightsmith.align.alignment import align
from weightsmith.align.barrier import barrier
from weightsmith.align.experts import merge_experts
from weightsmith.align.groups import read_groups, write_groups
from weightsmith.align.shrinking import shrink
from weightsmith.align.trace import permutation_groups

__all__ = ["align", "barrier", "merge_experts", "permutation_groups", "read_groups", "shrink", "write_groups"]
