"""Methods that make one model of many."""

from weightsmith.merge.arcee_fusion import arcee_fusion
from weightsmith.merge.breadcrumbs import breadcrumbs
from weightsmith.merge.breadcrumbs_ties import breadcrumbs_ties
from weightsmith.merge.consensus import consensus
from weightsmith.merge.dare import dare
from weightsmith.merge.dare_ties import dare_ties
from weightsmith.merge.della import della
from weightsmith.merge.della_linear import della_linear
from weightsmith.merge.delta_svd import delta_svd
from weightsmith.merge.doge import doge
from weightsmith.merge.emr import emr
from weightsmith.merge.flag import flag
from weightsmith.merge.iso_c import iso_c
from weightsmith.merge.iso_cts import iso_cts
from weightsmith.merge.karcher import karcher
from weightsmith.merge.knots import knots
from weightsmith.merge.linear import linear
from weightsmith.merge.lines import lines
from weightsmith.merge.lt_sft import lt_sft
from weightsmith.merge.magmax import magmax
from weightsmith.merge.model_stock import model_stock
from weightsmith.merge.multislerp import multislerp
from weightsmith.merge.multislerp_base import multislerp_base
from weightsmith.merge.nearswap import nearswap
from weightsmith.merge.nuslerp import nuslerp
from weightsmith.merge.nuslerp_base import nuslerp_base
from weightsmith.merge.nuslerp_columns import nuslerp_columns
from weightsmith.merge.nuslerp_columns_base import nuslerp_columns_base
from weightsmith.merge.passthrough import passthrough
from weightsmith.merge.pcb import pcb
from weightsmith.merge.ram import ram
from weightsmith.merge.ramplus import ramplus
from weightsmith.merge.rebase import rebase
from weightsmith.merge.robust_signatures import robust_signatures
from weightsmith.merge.sce import sce
from weightsmith.merge.slerp import slerp
from weightsmith.merge.sparse_task_arithmetic import sparse_task_arithmetic
from weightsmith.merge.tall_masks import tall_masks
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.merge.ties import ties
from weightsmith.merge.tsv_m import tsv_m
from weightsmith.merge.wise_ft import wise_ft
from weightsmith.merge.wudi import wudi

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
    magmax,
    emr,
    model_stock,
    karcher,
    lt_sft,
    flag,
    rebase,
    robust_signatures,
    pcb,
    tsv_m,
    iso_c,
    iso_cts,
    knots,
    wudi,
    doge,
    delta_svd,
    arcee_fusion,
    della,
    della_linear,
    multislerp,
    multislerp_base,
    nearswap,
    nuslerp,
    nuslerp_base,
    nuslerp_columns,
    nuslerp_columns_base,
    passthrough,
    ram,
    ramplus,
    sce,
    sparse_task_arithmetic,
)
