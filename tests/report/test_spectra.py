import re

from weightsmith.report.depth import Depth
from weightsmith.report.spectra import filters_section, spectra_section

LAYERS = {"layers": [{"name": "layer 0", "layer": 0}], "kinds": [{"name": "mlp"}], "cells": []}


def spectrum(positions, values, ranks=(2.0, 4.0)):
    return {
        "name": "model.layers.0.mlp.w", "layer": 0, "kind": "mlp", "shape": [8, 12],
        "effective_rank": list(ranks), "stable_rank": [1.0, 1.0], "effective_rank_merged": 1.0, "stable_rank_merged": 1.0,
        "values": values, "values_merged": values, "positions": positions,
        "alignment": [0.25, 0.75], "alignment_rank": 2, "interference": None,
    }  # fmt: skip


def section(*spectra):
    return spectra_section(spectra, ["a", "b"], Depth(LAYERS))


def test_curves_are_means_over_matrices_at_the_places_of_the_longest():
    found = section(spectrum([0.0, 0.5], [1.0, 0.5]), spectrum([0.0, 0.25, 0.5, 0.75], [1.0, 0.8, 0.3, 0.1]))
    assert 'data-n="mlp" data-y="100.0 %|90.0 %|40.0 %|30.0 %"' in found.body[0]


def test_the_rank_is_told_as_a_share_of_the_full_one():
    body = "".join(section(spectrum([0.0], [1.0])).body)
    assert re.search(r'data-m="effective rank as a share[^>]* data-v="37.5 %"', body)  # mean rank 3 of 8
    assert re.search(r'data-m="share of a task vector inside[^>]* data-v="50.0 %"', body)


def test_what_no_matrix_has_is_not_drawn():
    assert "Interference" not in "".join(section(spectrum([0.0], [1.0])).body)


def test_matrices_of_zeros_leave_gaps():
    body = section(spectrum([0.0, 0.5], [None, None], (None, None))).body
    assert 'data-y="–|–"' in body[0]


def test_filters_have_a_row_for_each_model():
    health = {"sparsity": 0.0, "entropy": 0.5, "entropy_ratio": None, "orthogonality": 0.75}
    models = [{"model": name, **health} for name in ("base", "a")]
    (body,) = filters_section([{"name": "conv1", "layer": None, "shape": [8, 4, 3, 3], "models": models}]).body
    assert body.count(">conv1<") == 2
    assert re.search(r"<td>a</td><td[^>]*>0.0 %</td><td[^>]*>0.5</td><td[^>]*>–</td><td[^>]*>75.0 %</td>", body)
