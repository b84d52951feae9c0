"""The interval of a difference: what it has to be where theory says it, and that the items stay paired."""

import numpy as np
import pytest
from scipy import stats

from simmim_hf.evaluation.bootstrap import ResamplableMetric, paired_difference
from simmim_hf.evaluation.metrics import CORRELATIONS

RNG = np.random.default_rng(0)


def test_a_difference_of_means_has_the_interval_of_a_paired_test():
    one = RNG.normal(size=400)
    gain = RNG.normal(0.1, 0.2, size=400)
    found = paired_difference(ResamplableMetric(np.mean, (one,)), ResamplableMetric(np.mean, (one + gain,)))
    expected = stats.ttest_1samp(gain, 0).confidence_interval()
    assert found.value == pytest.approx(gain.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.003)
    shuffled = RNG.permutation(one + gain)
    unpaired = paired_difference(ResamplableMetric(np.mean, (one,)), ResamplableMetric(np.mean, (shuffled,)))
    assert unpaired.high - unpaired.low > 3 * (found.high - found.low)


def test_a_correlation_is_computed_anew_of_each_sample():
    scores = RNG.normal(size=200)
    good, bad = (scores + RNG.normal(size=200) * noise for noise in (0.3, 3.0))
    one, other = (ResamplableMetric(CORRELATIONS["spearman"], (cosines, scores)) for cosines in (bad, good))
    found = paired_difference(one, other)
    assert found.value == pytest.approx(100 * (stats.spearmanr(good, scores)[0] - stats.spearmanr(bad, scores)[0]))
    assert 0 < found.low < found.value < found.high
    assert paired_difference(one, other) == found and paired_difference(one, other, seed=1) != found
    assert paired_difference(one, one) == (0, 0, 0)


def test_what_is_not_defined_has_no_interval():
    constant = np.ones(5)
    undefined = ResamplableMetric(CORRELATIONS["spearman"], (constant, constant))
    assert paired_difference(undefined, undefined) is None
    single = ResamplableMetric(np.mean, (constant[:1],))
    assert paired_difference(single, single) is None
