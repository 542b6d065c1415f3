"""Methods that make one model of many."""

from weightsmith.merge.breadcrumbs import breadcrumbs
from weightsmith.merge.breadcrumbs_ties import breadcrumbs_ties
from weightsmith.merge.consensus import consensus
from weightsmith.merge.dare import dare
from weightsmith.merge.dare_ties import dare_ties
from weightsmith.merge.linear import linear
from weightsmith.merge.lines import lines
from weightsmith.merge.slerp import slerp
from weightsmith.merge.tall_masks import tall_masks
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.merge.ties import ties
from weightsmith.merge.wise_ft import wise_ft

METHODS = (
    linear,
    task_arithmetic,
    slerp,
    ties,
    dare,
    dare_ties,
    breadcrumbs,
    breadcrumbs_ties,
    wise_ft,
    lines,
    tall_masks,
    consensus,
)
