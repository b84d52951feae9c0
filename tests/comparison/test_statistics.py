"""Means over seeds, their intervals, and the paired test between arms."""

import json
import math

import numpy as np
import pytest
from helpers import EXAMPLES
from scipy import stats

from simmim_hf.comparison.statistics import (
    ComparedMetric,
    differ,
    estimate,
    front_of,
    mean_costs,
    metrics_of,
    paired_p,
    summary,
)

COMPARISONS = EXAMPLES / "comparisons"


def metric_of(name: str, **arms: list[float]) -> ComparedMetric:
    """A metric by its values for the seeds 0, 1, ...; the arm `initial` stands for the starting weights."""
    estimates = {arm: estimate(dict(enumerate(values))) for arm, values in arms.items()}
    return ComparedMetric("task", name, estimates, estimates.pop("initial", None))


def test_intervals_are_those_of_scipy():
    found = estimate({1: 3.0, 2: 5.0, 3: 4.5, 4: None})
    low, high = stats.t.interval(0.95, 2, loc=np.mean([3, 5, 4.5]), scale=stats.sem([3, 5, 4.5]))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert estimate({1: 2.0}).half_width is None
    assert estimate({1: None, 2: math.nan}) is None


def test_arms_are_told_apart_by_a_paired_test():
    one = estimate({1: 10.0, 2: 20.0, 3: 30.1})
    other = estimate({1: 11.0, 2: 21.1, 3: 31.0, 4: 99.0})
    assert paired_p(one, other) == pytest.approx(stats.ttest_rel([10.0, 20.0, 30.1], [11.0, 21.1, 31.0]).pvalue)
    assert differ(one, other), "the spread over seeds is shared and cancels"
    assert stats.ttest_ind(list(one.by_seed.values()), [11.0, 21.1, 31.0], equal_var=False).pvalue > 0.5
    alone = estimate({1: 5.0})
    assert paired_p(alone, one) is None and not differ(alone, one)
    assert paired_p(one, one) == 1


def test_a_difference_without_variance_is_not_tested():
    one, shifted = estimate({1: 10.0, 2: 20.0, 3: 30.1}), estimate({1: 10.1, 2: 20.1, 3: 30.2})
    assert len({shifted.by_seed[seed] - one.by_seed[seed] for seed in one.by_seed}) > 1, "they differ as rounded"
    assert paired_p(one, shifted) is None and not differ(one, shifted)
    metric = metric_of("spearman", a=[3, 3], b=[3, 3], c=[1, 1], d=[0, 2], initial=[1, 1])
    assert metric.without_variance() == ["b", "c"] and metric.p_against_best()["c"] is None


def test_equal_seeds_give_no_interval_and_a_narrow_one_is_not_0():
    metric = metric_of("spearman", a=[0.1, 0.1, 0.1], b=[50, 50.0005], c=[50, 50.1])
    assert metric.arms["a"].half_width == 0, "although 0.1 + 0.1 + 0.1 is not 0.3"
    assert metric.format(metric.arms["a"]) == "0.10 (all seeds equal)"
    assert metric.format(metric.arms["b"]) == "50.00 ± <0.01" and metric.format(metric.arms["c"]) == "50.05 ± 0.64"


def test_close_are_those_that_a_test_leaves_open_above_the_initial_weights():
    metric = metric_of(
        "spearman",
        best=[50, 51, 52],
        as_good=[49, 52, 51],
        below_initial=[30, 58, 46],
        no_variance=[49, 50, 51],
        one_seed=[50],
        worse=[47, 48, 49.1],
        initial=[45, 46, 47],
    )
    assert metric.as_good() == ["as_good", "below_initial", "no_variance", "one_seed"]
    assert metric.close() == ["as_good"]


def test_the_best_arm_and_those_that_may_be_as_good():
    metric = metric_of("spearman", a=[50, 51, 52], b=[49, 52, 51], c=[40, 41, 42.1], initial=[45, 46, 47.2])
    assert metric.best() == "a" and metric.as_good() == ["b"]
    assert metric.format(metric.arms["a"]) == "51.00 ± 2.48" and metric.format(None) == "-"
    loss = metric_of("mlm_loss", a=[2.0], b=[1.0], initial=[3.0])
    assert loss.best() == "b" and loss.as_good() == ["a"]
    for nothing in (metric_of("uniformity", a=[-1, -1.1], b=[-2, -2.2]), metric_of("mlm_loss", a=[1.0], b=[None])):
        assert nothing.best() is None and nothing.as_good() == []
    below = metric_of("spearman", a=[44, 45, 46], b=[43, 44, 45], initial=[45, 46, 47])
    assert below.best() is None and below.as_good() == [], "no arm is worth its training"


def test_the_front_holds_what_nothing_beats():
    points = {"a": (1.0, 5.0), "b": (2.0, 9.0), "c": (2.5, 8.0), "d": (1.0, 4.0), "e": (9.0, 9.0)}
    assert front_of(points, -1, 1) == ["a", "b"]
    assert front_of(points, 1, 1) == ["e"]


@pytest.mark.parametrize(
    "path", sorted(COMPARISONS.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_committed_results_have_the_same_statistics_today(path):
    results = json.loads(path.read_text())
    assert json.loads(json.dumps(summary(metrics_of(results)))) == results["summary"]


def test_the_cost_of_an_arm_is_the_mean_of_its_finished_runs():
    run = {"arm": "a", "status": "finished", "steps": 10, "tokens": 1000, "flops": 2e12, "seconds": 1.5}
    run |= {"peak_memory_bytes": None, "parameters": 1234567}
    runs = [run, {**run, "seconds": 2.5}, {"arm": "a", "status": "failed"}, {"arm": "b", "status": "failed"}]
    costs = mean_costs({"arms": {"a": {}, "b": {}}, "runs": runs})
    assert costs == {"a": ["10", "1,000", "2", "2.0", "-", "1,234,567"], "b": ["-"] * 6}
