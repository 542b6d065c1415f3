"""The table of the peer's methods fits our methods."""

from __future__ import annotations

import pytest

from weightsmith.dialect.methods import PEER_METHODS, ROW_WISE
from weightsmith.merge import METHODS
from weightsmith.recipe import plural

OURS = {method.name: method for method in METHODS}
NAMES = (
    "linear task_arithmetic ties dare_linear dare_ties breadcrumbs breadcrumbs_ties della della_linear slerp nuslerp multislerp"
    " karcher model_stock sce ram ramplus_tl nearswap arcee_fusion passthrough"
)


def test_every_method_of_the_peer_is_there() -> None:
    assert set(PEER_METHODS) == set(NAMES.split())


@pytest.mark.parametrize("name", PEER_METHODS)
def test_our_method_takes_what_it_is_given(name: str) -> None:
    peer = PEER_METHODS[name]
    for ours in filter(None, (peer.ours, peer.with_base)):
        method = OURS[ours]
        given = [a for a in peer.shared.values() if a.ours not in (None, ROW_WISE)]
        plain = {a.ours: a.words[bool(a.default)] if a.words else a.default for a in given if a.default is not None}
        alone = peer.base == "model" and peer.most == 1
        per_model = [a.ours for a in peer.per_model.values() if a.ours is not None]
        many = {} if alone else {plural(n): (0.5,) * peer.least for n in per_model}
        one = dict.fromkeys(per_model, 0.5) if alone else {}
        for fixed in (peer.fixed, {**peer.fixed, **peer.exact}):
            checked = method.check({**plain, **many, **one, **fixed}, peer.least)
            assert {a.ours for a in given} <= checked.keys()
        assert method.has_base == (peer.base == "needed" or ours == peer.with_base)
        assert method.least <= peer.least
        assert method.most is None or (peer.most is not None and peer.most <= method.most)
