"""What the metrics of a comparison say over several seeds: means, intervals, and which arms a test tells apart."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .. import records
from ..evaluation.bootstrap import CONFIDENCE
from ..metric_catalogue import METRICS, Metric

INITIAL = "initial weights"  # in the place of an arm

COST = {  # title -> (name in a result, divided by, format)
    "steps": ("steps", 1, ",.0f"),
    "tokens": ("tokens", 1, ",.0f"),
    "TFLOPs": ("flops", 1e12, ".3g"),
    "seconds": ("seconds", 1, ",.1f"),
    "peak memory, GiB": ("peak_memory_bytes", 2**30, ".2f"),
    "parameters": ("parameters", 1, ",.0f"),
}


@dataclass(frozen=True)
class Estimate:
    """The mean of a metric over seeds, and half the width of its 95 % interval.

    Args:
        half_width: None for one seed, 0 where all seeds gave the same value
    """

    mean: float
    half_width: float | None
    by_seed: dict[int, float]


def estimate(by_seed: dict[int, float | None]) -> Estimate | None:
    """The mean with Student's t interval, mean +- t(0.975, n - 1) * s / sqrt(n), of the seeds that have a value."""
    known = {seed: value for seed, value in by_seed.items() if value is not None and math.isfinite(value)}
    if not known:
        return None
    values = np.array(list(known.values()))  # (seeds,)
    count = len(values)
    half_width = None
    if count > 1 and np.ptp(values) == 0:
        half_width = 0.0  # exactly, where a standard deviation would keep what was rounded
    elif count > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        half_width = float(quantile * values.std(ddof=1) / math.sqrt(count))
    return Estimate(float(values.mean()), half_width, known)


def differences(one: Estimate, other: Estimate) -> np.ndarray:
    """`one` minus `other` for each seed that both have (seeds,)."""
    shared = sorted(one.by_seed.keys() & other.by_seed)
    return np.array([one.by_seed[seed] - other.by_seed[seed] for seed in shared])


def without_variance(differences: np.ndarray) -> bool:
    """Whether there are several differences, and all are the same up to rounding: a t-test would divide by 0."""
    return len(differences) > 1 and bool(np.ptp(differences) <= 1e-9 * np.abs(differences).max())


def paired_p(one: Estimate, other: Estimate) -> float | None:
    """The p-value of a paired t-test over the seeds that both have.

    Paired, because the arms of a seed share their initial weights and the order of their data, and what these do to a
    metric cancels in the difference.

    Returns:
        None where there is no test: for fewer than two seeds, and for a difference without variance. Arms that are
        equal with every seed have 1.
    """
    found = differences(one, other)
    if len(found) > 1 and not found.any():
        return 1.0
    if len(found) < 2 or without_variance(found):
        return None
    return float(stats.ttest_1samp(found, 0).pvalue)


def differ(one: Estimate, other: Estimate) -> bool:
    """Whether the paired test tells two arms apart; it never does with one seed, or without variance."""
    p = paired_p(one, other)
    return p is not None and p < 1 - CONFIDENCE


@dataclass
class ComparedMetric:
    """One metric of one task: its values for every arm, and for the weights that the arms started from.

    Args:
        reference: name and value of what needs no training
    """

    task: str
    name: str
    arms: dict[str, Estimate | None]
    initial: Estimate | None
    reference: tuple[str, float] | None = None

    @property
    def definition(self) -> Metric:
        return METRICS[self.name]

    @property
    def title(self) -> str:
        return f"{records.printable(self.task)}: {self.definition.title}"

    @property
    def known(self) -> dict[str, Estimate]:
        """The arms that have a value."""
        return {arm: found for arm, found in self.arms.items() if found is not None}

    def best(self) -> str | None:
        """The arm with the best mean; None where no direction is better, fewer than two arms have a value, or none
        of them is better than the weights they started from."""
        if not self.definition.sign or len(self.known) < 2:
            return None
        best = max(self.known, key=lambda arm: self.definition.sign * self.known[arm].mean)
        return best if self.beats_initial(best) else None

    def beats_initial(self, arm: str) -> bool:
        """Whether the mean of an arm is better than that of the weights it started from, where these have one."""
        return self.initial is None or self.definition.is_better(self.known[arm].mean, self.initial.mean)

    def against_best(self) -> dict[str, tuple[Estimate, Estimate]]:
        """For each other arm than the best, the estimates of the best and of this arm; {} without a best arm."""
        best = self.best()
        if best is None:
            return {}
        return {arm: (self.known[best], found) for arm, found in self.known.items() if arm != best}

    def p_against_best(self) -> dict[str, float | None]:
        """For each other arm than the best, `paired_p` of the two; {} without a best arm."""
        return {arm: paired_p(best, found) for arm, (best, found) in self.against_best().items()}

    def as_good(self) -> list[str]:
        """The other arms that the paired test does not tell from the best, in the order of the arms."""
        return [arm for arm, (best, found) in self.against_best().items() if not differ(best, found)]

    def close(self) -> list[str]:
        """Those of `as_good` that a reader may take as well: a test has compared them with the best, and their means
        are better than that of the weights they started from."""
        p = self.p_against_best()
        return [arm for arm in self.as_good() if p[arm] is not None and self.beats_initial(arm)]

    def without_variance(self) -> list[str]:
        """The other arms whose difference from the best is the same with every seed."""
        pairs = self.against_best().items()
        return [arm for arm, (best, found) in pairs if without_variance(differences(best, found))]

    def format(self, found: Estimate | None) -> str:
        """`mean ± half width`, in words where equal seeds give no interval; `-` where nothing is known."""
        if found is None:
            return "-"
        mean = self.definition.format(found.mean)
        if found.half_width is None:
            return mean
        if found.half_width == 0:
            return f"{mean} (all seeds equal)"
        half_width = self.definition.format(found.half_width)
        if half_width == self.definition.format(0):  # narrower than the last digit, but not of no width
            half_width = f"<{self.definition.format(10**-self.definition.digits)}"
        return f"{mean} ± {half_width}"


def metrics_of(results: dict) -> list[ComparedMetric]:
    """All metrics of `results.json` that a report shows, in the order of the catalogue and then of the tasks."""
    of_arms = _values(results["runs"])
    of_initial = _values({"arm": INITIAL, **run} for run in results["initial"]["runs"])
    tasks = dict.fromkeys(task for task, _ in [*of_arms, *of_initial])
    shown = [name for name, definition in METRICS.items() if definition.section]
    metrics = []
    for name in shown:
        for task in tasks:
            if (task, name) not in of_arms and (task, name) not in of_initial:
                continue
            by_arm = of_arms.get((task, name), {})
            arms = {arm: estimate(by_arm.get(arm, {})) for arm in results["arms"]}
            initial = estimate(of_initial.get((task, name), {}).get(INITIAL, {}))
            reference = results["references"].get(task, {}).get(name)
            metrics.append(ComparedMetric(task, name, arms, initial, reference))
    return metrics


def _values(runs: Iterable[dict]) -> dict[tuple[str, str], dict[str, dict[int, float | None]]]:
    """(task, metric) -> arm -> seed -> value."""
    values: dict = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        for task, by_name in run.get("figures", {}).items():
            for name, value in by_name.items():
                values[task, name][run["arm"]][run["seed"]] = value
    return values


def summary(metrics: list[ComparedMetric]) -> list[dict]:
    """The statistics of every metric, for `results.json`."""
    return [
        {
            "task": metric.task,
            "figure": metric.name,
            "initial": _as_dict(metric.initial),
            "arms": {arm: _as_dict(found) for arm, found in metric.arms.items()},
            "best": metric.best(),
            "not_distinguishable_from_best": metric.as_good(),
            "p_against_best": metric.p_against_best(),
        }
        for metric in metrics
    ]


def _as_dict(found: Estimate | None) -> dict | None:
    if found is None:
        return None
    return {"mean": found.mean, "half_width_95": found.half_width, "seeds": len(found.by_seed)}


def front_axes(metrics: list[ComparedMetric]) -> tuple[ComparedMetric, ComparedMetric] | None:
    """The held-out MLM loss, and what the vectors are worth: the first task of similarity, retrieval or transfer."""
    x = next((metric for metric in metrics if metric.name == "mlm_loss"), None)
    if x is None:
        return None
    for name in ("spearman", "mrr@10", "accuracy"):
        for y in metrics:
            if y.name == name and len(front_points(x, y)) > 1:
                return x, y
    return None


def front_points(x: ComparedMetric, y: ComparedMetric) -> dict[str, tuple[float, float]]:
    """The means (x, y) of the arms that have both."""
    return {arm: (x.known[arm].mean, y.known[arm].mean) for arm in x.known if arm in y.known}


def front_of(points: dict[str, tuple[float, float]], better_x: int, better_y: int) -> list[str]:
    """The arms that no other arm is at least as good as in both coordinates and better in one."""
    signed = {arm: (better_x * x, better_y * y) for arm, (x, y) in points.items()}  # more is better in both

    def is_beaten(one: tuple[float, float]) -> bool:
        return any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in signed.values())

    return [arm for arm, one in signed.items() if not is_beaten(one)]


def without_masked_term(results: dict) -> list[str]:
    """The arms whose objective never predicts a masked token."""
    return [arm for arm, weights in results["weights"].items() if not weights["mlm_weight"]]


def mean_costs(results: dict) -> dict[str, list[str]]:
    """For each arm the means of its finished runs, printed, in the order of `COST`; `-` where nothing is known."""
    means = {}
    for arm in results["arms"]:
        runs = [run for run in results["runs"] if run["arm"] == arm and run["status"] == "finished"]
        means[arm] = [_mean_cost(runs, *column) for column in COST.values()]
    return means


def _mean_cost(runs: list[dict], name: str, unit: float, form: str) -> str:
    known = [run[name] / unit for run in runs if run[name] is not None]
    return f"{np.mean(known):{form}}" if known else "-"
