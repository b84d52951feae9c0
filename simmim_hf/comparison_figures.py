"""The figures of a comparison: what they are, and what they say over several seeds."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Quantity:
    """A reported figure: its axis, its title, and whether more (1) or less (-1) of it is better, or neither (0)."""

    axis: str
    title: str
    better: int
    digits: int = 3
    leads: bool = False  # stands for its axis in the overview


# By the name that `HeldOut.measure` and `simmim evaluate` give them; what is not here is in results.json only.
QUANTITIES = {
    "mlm_loss": Quantity("Language modelling", "MLM loss", -1, leads=True),
    "mlm_accuracy": Quantity("Language modelling", "MLM accuracy", 1),
    "pseudo_perplexity": Quantity("Language modelling", "pseudo-perplexity", -1, 1),
    "perplexity": Quantity("Language modelling", "causal perplexity", -1, 1, leads=True),
    "contrastive_accuracy": Quantity("Telling texts apart", "own copy is the nearest", 1),
    "spearman": Quantity("Similarity", "Spearman x 100", 1, 2, leads=True),
    "pearson": Quantity("Similarity", "Pearson x 100", 1, 2),
    "accuracy": Quantity("Transfer", "accuracy, %", 1, 2, leads=True),
    "mrr@10": Quantity("Retrieval", "MRR@10", 1, leads=True),
    "recall@1": Quantity("Retrieval", "recall@1", 1),
    "recall@10": Quantity("Retrieval", "recall@10", 1),
    "ndcg@10": Quantity("Retrieval", "nDCG@10", 1),
    "alignment": Quantity("Geometry", "alignment", 0),
    "uniformity": Quantity("Geometry", "uniformity", 0),
    "mean_cosine": Quantity("Geometry", "mean cosine", 0),
    "effective_rank": Quantity("Geometry", "effective rank", 0, 1),
    "length_r2": Quantity("Geometry", "length readable, R²", 0),
}
COST = {  # title -> (name in a result, divided by, format)
    "steps": ("steps", 1, ",.0f"),
    "tokens": ("tokens", 1, ",.0f"),
    "TFLOPs": ("flops", 1e12, ".3g"),
    "seconds": ("seconds", 1, ",.1f"),
    "peak memory, GiB": ("peak_memory_bytes", 2**30, ".2f"),
    "parameters": ("parameters", 1, ",.0f"),
}


# ---------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Estimate:
    """The mean of a figure over seeds, and half the width of its 95 % interval, None for one seed."""

    mean: float
    half_width: float | None
    by_seed: dict[int, float]


def estimate(by_seed: dict[int, float | None]) -> Estimate | None:
    """The mean with Student's t interval, mean +- t(0.975, n - 1) * s / sqrt(n), of the seeds that have a figure."""
    values = {seed: value for seed, value in by_seed.items() if value is not None and math.isfinite(value)}
    if not values:
        return None
    figures, count = list(values.values()), len(values)
    half_width = None
    if count > 1:
        half_width = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(figures, ddof=1) / math.sqrt(count)
    return Estimate(float(np.mean(figures)), None if half_width is None else float(half_width), values)


def paired_p(one: Estimate, other: Estimate) -> float | None:
    """The p-value of a paired t-test over the seeds that both have; None for fewer than two of them.

    Paired, because the arms of a seed share their initial weights and the order of their data, and what these do to a
    figure cancels in the difference.
    """
    seeds = sorted(one.by_seed.keys() & other.by_seed.keys())
    if len(seeds) < 2:
        return None
    differences = np.array([one.by_seed[seed] - other.by_seed[seed] for seed in seeds])
    if np.ptp(differences) == 0:  # the test divides by their spread
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def differ(one: Estimate, other: Estimate) -> bool:
    """Whether the paired test tells two arms apart; one seed tells nothing apart."""
    p = paired_p(one, other)
    return p is not None and p < 1 - CONFIDENCE


# ---------------------------------------------------------------------------------------------- figures


@dataclass
class Measured:
    """One figure of every arm, and of the weights that they started from."""

    task: str
    name: str
    arms: dict[str, Estimate | None]
    initial: Estimate | None
    reference: tuple[str, float] | None = None  # what needs no training

    @property
    def quantity(self) -> Quantity:
        return QUANTITIES[self.name]

    @property
    def title(self) -> str:
        return f"{self.task}: {self.quantity.title}"

    @property
    def known(self) -> dict[str, Estimate]:
        return {arm: found for arm, found in self.arms.items() if found is not None}

    def best(self) -> str | None:
        """The arm with the best mean; None where no direction is better, or there is nothing to be better than."""
        if not self.quantity.better or len(self.known) < 2:
            return None
        return max(self.known, key=lambda arm: self.quantity.better * self.known[arm].mean)

    def as_good(self) -> list[str]:
        """The arms that the paired test does not tell from the best, in their order, without it."""
        best = self.best()
        if best is None:
            return []
        return [arm for arm, found in self.known.items() if arm != best and not differ(self.known[best], found)]

    def is_tested(self) -> bool:
        """Whether any arm can be compared with the best: that takes two seeds."""
        best = self.best()
        return any(paired_p(self.known[best], found) is not None for arm, found in self.known.items() if arm != best)

    def gain(self, arm: str) -> int:
        """1 where an arm is better than the weights it started from, -1 where it is worse, 0 where that is open."""
        if self.initial is None or not differ(self.known[arm], self.initial):
            return 0
        return 1 if self.quantity.better * (self.known[arm].mean - self.initial.mean) > 0 else -1

    def text(self, found: Estimate | None) -> str:
        return number(found, self.quantity.digits)


def number(found: Estimate | None, digits: int) -> str:
    """`mean ± half width`."""
    if found is None:
        return "-"
    mean = f"{found.mean:,.{digits}f}"
    return mean if found.half_width is None else f"{mean} ± {found.half_width:,.{digits}f}"


def measured(results: dict) -> list[Measured]:
    """All figures of `results.json` that are reported, by axis."""
    found = {}
    runs = [(run["arm"], run) for run in results["runs"]] + [(None, run) for run in results["initial"]["runs"]]
    for arm, run in runs:
        for task, figures in run.get("figures", {}).items():
            for name, value in figures.items():
                if name in QUANTITIES:
                    found.setdefault((task, name), {}).setdefault(arm, {})[run["seed"]] = value
    order = {name: place for place, name in enumerate(QUANTITIES)}
    tasks = list(dict.fromkeys(task for task, _ in found))
    return [
        Measured(
            task,
            name,
            {arm: estimate(by_arm.get(arm, {})) for arm in results["arms"]},
            estimate(by_arm.get(None, {})),
            results["references"].get(task, {}).get(name),
        )
        for (task, name), by_arm in sorted(
            found.items(), key=lambda item: (order[item[0][1]], tasks.index(item[0][0]))
        )
    ]


def summary(results: dict) -> list[dict]:
    """The statistics of every figure for `results.json`."""
    rows = []
    for figure in measured(results):
        best, as_good = figure.best(), figure.as_good()
        rows.append(
            {
                "task": figure.task,
                "figure": figure.name,
                "initial": _as_dict(figure.initial),
                "arms": {arm: _as_dict(found) for arm, found in figure.arms.items()},
                "best": best,
                "not_distinguishable_from_best": as_good,
                "p_against_best": {
                    arm: paired_p(figure.known[best], found)
                    for arm, found in figure.known.items()
                    if best and arm != best
                },
            }
        )
    return rows


def _as_dict(found: Estimate | None) -> dict | None:
    return found and {"mean": found.mean, "half_width_95": found.half_width, "seeds": len(found.by_seed)}


# ---------------------------------------------------------------------------------------------- two goals, and costs


def front_axes(figures: list[Measured]) -> tuple[Measured, Measured] | None:
    """The held-out MLM loss, and what the vectors are worth: the first task of similarity, retrieval or transfer."""
    x = next((figure for figure in figures if figure.name == "mlm_loss"), None)
    for name in ("spearman", "mrr@10", "accuracy"):
        for y in figures:
            if y.name == name and x is not None and len(front_points(x, y)) > 1:
                return x, y
    return None


def front_points(x: Measured, y: Measured) -> dict[str, tuple[float, float]]:
    return {arm: (x.known[arm].mean, y.known[arm].mean) for arm in x.known if arm in y.known}


def front_of(points: dict[str, tuple[float, float]], better_x: int, better_y: int) -> list[str]:
    """The arms that no other arm is at least as good as in both coordinates and better in one."""
    signed = {arm: (better_x * x, better_y * y) for arm, (x, y) in points.items()}
    return [
        arm
        for arm, one in signed.items()
        if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in signed.values())
    ]


def without_masked_term(results: dict) -> list[str]:
    """The arms whose objective never predicts a masked token."""
    return [arm for arm, weights in results["weights"].items() if not weights["mlm_weight"]]


def mean_costs(results: dict) -> dict[str, dict[str, float | None]]:
    """For each arm the mean of its finished runs, by the titles of `COST`; None where nothing is known."""
    finished = [run for run in results["runs"] if run["status"] == "finished"]
    means = {}
    for arm in results["arms"]:
        runs = [run for run in finished if run["arm"] == arm]
        means[arm] = {}
        for title, (name, unit, _) in COST.items():
            values = [run[name] / unit for run in runs if run[name] is not None]
            means[arm][title] = float(np.mean(values)) if values else None
    return means
