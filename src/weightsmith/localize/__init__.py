"""Methods that say where a task lies: from tensors to masks, one per task."""

from weightsmith.localize.fisher import fisher
from weightsmith.localize.magnitude import magnitude
from weightsmith.localize.principal import principal
from weightsmith.localize.sensitivity import sensitivity
from weightsmith.localize.tall_masks import tall_masks

LOCALIZERS = (magnitude, principal, fisher, sensitivity)

__all__ = ["LOCALIZERS", "fisher", "magnitude", "principal", "sensitivity", "tall_masks"]
