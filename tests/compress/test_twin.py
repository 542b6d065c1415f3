"""Twin-Merging as an encoding: by hand, and exact where everything is kept."""

import numpy as np

from weightsmith.compress import twin


def test_by_hand():
    part = twin(np.array([3.0, -1.0, 0.2, 0.1]), np.array([1.0, -1.0, 0.0, 2.0]), density=0.5, values="float32")
    assert part.arrays["values"].tolist() == [2.0, 0.0, 0.0, -1.9]
    assert part.arrays["mask"].tolist() == [True, False, False, True]
    assert part.settings == {"dtype": "F32"}


def test_everything_kept_is_exact():
    rng = np.random.default_rng(0)
    own, shared = rng.integers(-8, 8, (2, 50)).astype(np.float32)
    assert (shared + twin(own, shared, density=1.0).arrays["values"] == own).all()
