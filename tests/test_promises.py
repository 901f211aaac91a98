"""export.promises: nobody is promised what so few images cannot carry."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.promises import Promises, carried


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 2000))
def test_coverages_are_offered_where_there_are_images_enough(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that can be, in their order; the others are told, with how many it takes."""
    promises = Promises(alphas=(0.05, 0.1, 0.01, 0.001))
    found = carried(promises, n, "images").alphas
    enough = tuple(alpha for alpha in promises.alphas if n >= math.ceil(1 / alpha) - 1)
    assert found == (enough or promises.alphas)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 - len(enough)
    if 99 <= n < 999:
        assert told == [f"coverage 0.999 is not offered: that takes 999 images, not {n}"]
