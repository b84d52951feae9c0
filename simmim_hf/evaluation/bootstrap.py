"""How sure the difference of two models is: a paired bootstrap over the items that both were measured on."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000


class ResamplableMetric(NamedTuple):
    """A metric with the items it is computed from, so that it can be computed again on a resample of them.

    Args:
        metric: of the columns, a number
        columns: (items,) each, where an item is a pair, a query or a text
    """

    metric: Callable[..., float]
    columns: tuple[np.ndarray, ...]

    def value(self, rows: np.ndarray | slice = slice(None)) -> float:
        """The metric of these items, by default of all."""
        return float(self.metric(*(column[rows] for column in self.columns)))


class Difference(NamedTuple):
    """The metric of one model minus that of another, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(one: ResamplableMetric, other: ResamplableMetric, seed: int = 0) -> Difference | None:
    """`other` minus `one`, of the same items in the same order, with the percentile interval of the paired bootstrap
    (Efron & Tibshirani 1993, chapter 13): items are drawn with replacement, for both models the same.

    Returns:
        None where the metric of a sample is not defined, as of very few items.
    """

    from scipy import stats  # takes a second to import, and `import simmim_hf` has no use for it

    def difference(rows: np.ndarray) -> float:
        return other.value(rows) - one.value(rows)

    rows = np.arange(len(one.columns[0]))  # (items,)
    if len(rows) < 2:
        return None
    interval = stats.bootstrap(
        (rows,),
        difference,
        n_resamples=RESAMPLES,
        batch=1,  # one resample in memory at a time
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    result = Difference(difference(rows), float(interval.low), float(interval.high))
    if not all(map(math.isfinite, result)):
        return None
    return result
