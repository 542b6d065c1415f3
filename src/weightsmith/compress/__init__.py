"""Encodings: what a bundle stores of each task. One file each, one line here; the command line and the docs read it."""

from __future__ import annotations

from weightsmith.compress.bitdelta import bitdelta
from weightsmith.compress.compeft import compeft
from weightsmith.compress.emr import emr
from weightsmith.compress.graft import graft
from weightsmith.compress.lossless import lossless
from weightsmith.compress.low_rank import low_rank
from weightsmith.compress.rmm import rmm
from weightsmith.compress.rounded import rounded
from weightsmith.compress.sparse import sparse
from weightsmith.compress.tall_masks import tall_masks
from weightsmith.compress.tsv_c import tsv_c
from weightsmith.compress.twin import twin
from weightsmith.compress.twin_svd import twin_svd
from weightsmith.encoding import Encoding

ENCODINGS: tuple[Encoding, ...] = (
    tall_masks,
    emr,
    compeft,
    bitdelta,
    sparse,
    twin,
    twin_svd,
    low_rank,
    tsv_c,
    rmm,
    graft,
    rounded,
    lossless,
)
