"""Runs drawn from seeds, killed or stopped at drawn moments, end as the same runs undisturbed, bit for bit.

More of them: ``python tests/helpers/random_runs.py FIRST COUNT``.
"""

import pytest
from random_runs import difference, draw


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 108))
def test_random_runs(seed, tmp_path):
    assert difference(draw(seed), tmp_path) == [], draw(seed)
