"""Where tasks lie in the weights: masks, how they agree and clash, and what follows when they are taken out or put back."""

from weightsmith.localization.analysis import localize
from weightsmith.localization.causal import CausalCheck, causal_check
from weightsmith.localization.lineage import Lineage, lineage
from weightsmith.localization.restoring import Restoration, restore
from weightsmith.localization.result import Localization

__all__ = ["CausalCheck", "Lineage", "Localization", "Restoration", "causal_check", "lineage", "localize", "restore"]
