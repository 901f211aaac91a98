"""AUROC and FPR95 against their definitions, pair by pair and threshold by threshold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.detection import auroc, false_positive_rate

# Few values, so that many tie.
scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40).map(np.array)


@given(scores, scores)
def test_auroc_is_the_share_of_pairs(ordinary: np.ndarray, strange: np.ndarray) -> None:
    """In which the strange image scores higher; a tie counts half."""
    pairs = strange[:, None] - ordinary[None, :]
    assert auroc(ordinary, strange) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)


@given(scores, scores)
def test_auroc_turns_with_its_arguments(ordinary: np.ndarray, strange: np.ndarray) -> None:
    """Strange and ordinary exchanged, and any rising function of both."""
    assert auroc(ordinary, strange) + auroc(strange, ordinary) == pytest.approx(1)
    assert auroc(np.exp(ordinary), np.exp(strange)) == auroc(ordinary, strange)


@given(scores, scores, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_the_false_positive_rate_is_that_of_the_strictest_threshold(
    ordinary: np.ndarray, strange: np.ndarray, accepted: float
) -> None:
    """Of all thresholds that accept so many ordinary images, the one that accepts fewest strange ones."""
    thresholds = [t for t in np.concatenate([ordinary, strange]) if (ordinary <= t).mean() >= accepted - 1e-12]
    assert false_positive_rate(ordinary, strange, accepted) == min((strange <= t).mean() for t in thresholds)


@pytest.mark.slow
def test_both_are_those_of_scikit_learn() -> None:
    """On scores with and without ties."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an oracle only")
    rng = np.random.default_rng(0)
    for decimals in (1, 9):
        ordinary, strange = rng.normal(0, 1, 3000).round(decimals), rng.normal(1, 1.5, 2000).round(decimals)
        joined = np.concatenate([ordinary, strange])
        is_strange = np.arange(5000) >= 3000
        assert auroc(ordinary, strange) == pytest.approx(metrics.roc_auc_score(is_strange, joined), abs=1e-12)
        # An image is accepted for a low score.
        wrong, right, _ = metrics.roc_curve(~is_strange, -joined, drop_intermediate=False)
        assert false_positive_rate(ordinary, strange) == pytest.approx(wrong[right >= 0.95][0], abs=1e-12)


@pytest.mark.parametrize("measure", [auroc, false_positive_rate])
@pytest.mark.parametrize("bad", [[], [0.0, np.nan], [np.inf]])
def test_no_figure_is_made_of_no_numbers(measure: object, bad: list[float]) -> None:
    """Neither of none nor of NaN, on either side."""
    assert callable(measure)
    for pair in ((np.array(bad), np.ones(3)), (np.ones(3), np.array(bad))):
        with pytest.raises(ValueError, match="all of them finite"):
            measure(*pair)
