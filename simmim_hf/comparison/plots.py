"""The plots of a comparison."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..metric_catalogue import METRICS
from .statistics import ComparedMetric, front_axes, front_of, front_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 10
CURVES = ("mlm_loss", "contrastive_accuracy")


def draw(results: dict, metrics: list[ComparedMetric], folder: Path) -> dict[str, str]:
    """Draws what was measured into PNG files; their names by kind: `front`, `curves`."""
    axes = front_axes(metrics)
    styles = styles_of(results, axes)
    figures = {}
    if axes is not None:
        figures["front"] = _draw_front(results, axes, styles)
    curves = curves_of(results)
    if curves:
        figures["curves"] = _draw_curves(curves, styles)
    for kind, figure in figures.items():
        figure.savefig(folder / f"{kind}.png")
    return {kind: f"{kind}.png" for kind in figures}


def _figure(width: float, height: float = 4.2) -> "Figure":
    # Without pyplot, which would keep every figure and choose a backend for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def styles_of(results: dict, axes: tuple[ComparedMetric, ComparedMetric] | None) -> dict[str, dict]:
    """Colour, marker and label of each arm; of more than ten arms only those of the front stand out."""
    named = list(results["arms"])
    if len(named) > COLOURS and axes is not None:
        x, y = axes
        named = front_of(front_points(x, y), x.definition.sign, y.definition.sign)
    styles = {arm: {"color": "0.8", "marker": ".", "zorder": 1, "label": "_other"} for arm in results["arms"]}
    others = [arm for arm in styles if arm not in named]
    if others:
        styles[others[0]]["label"] = "other arms"  # once: matplotlib leaves out a label that begins with _
    for place, arm in enumerate(named):
        marker = "osD^vPX*<>"[place % COLOURS - place // COLOURS]
        styles[arm] = {"color": f"C{place % COLOURS}", "marker": marker, "label": arm}
    return styles


def _draw_front(results: dict, axes: tuple[ComparedMetric, ComparedMetric], styles: dict[str, dict]) -> "Figure":
    """A scatter of two metrics: a large mark for the mean of each arm, a dot for each of its seeds."""
    x, y = axes
    means = front_points(x, y)
    figure = _figure(7.4, 4.6)
    panel = figure.subplots()
    panel.grid(alpha=0.3)
    for arm, mean in means.items():
        of_x = x.known[arm].by_seed
        of_y = y.known[arm].by_seed
        for seed in of_x.keys() & of_y.keys():
            line = np.array([mean, (of_x[seed], of_y[seed])]).T  # two points -> (x and y, points)
            panel.plot(*line, ".-", markevery=[1], color=styles[arm]["color"], linewidth=0.8, alpha=0.6)
        panel.plot(*mean, linestyle="none", markersize=10, **styles[arm])
    front = sorted(means[arm] for arm in front_of(means, x.definition.sign, y.definition.sign))
    panel.plot(*np.array(front).T, "--", color="grey", linewidth=1, zorder=0)
    if y.initial:
        panel.axhline(y.initial.mean, label=results["initial"]["name"], color="black", linestyle=":", linewidth=1)
    if y.reference:
        name, level = y.reference
        panel.axhline(level, label=name, color="black", linestyle="-.", linewidth=1)
    panel.set_xlabel(f"{x.title} (left is better)")
    panel.set_ylabel(f"{y.title} (up is better)")
    figure.legend(loc="outside right upper", fontsize=10)
    return figure


def curves_of(results: dict) -> dict[str, dict[str, list[np.ndarray]]]:
    """The learning curves that were recorded: metric -> arm -> an array (2, points) of tokens and values per run."""
    curves: dict = {}
    for name in CURVES:
        for run in results["runs"]:
            rows = [row for row in run.get("curve") or () if row.get(name) is not None]
            if rows:
                points = np.array([(row["tokens"], row[name]) for row in rows]).T  # (points, 2) -> (2, points)
                curves.setdefault(name, {}).setdefault(run["arm"], []).append(points)
    return curves


def _draw_lines(panel: "Axes", curves: dict[str, list[np.ndarray]], styles: dict[str, dict]) -> None:
    """The mean of each arm over its runs, and thin lines for the runs."""
    for arm, runs in curves.items():
        if len(runs) > 1:
            for tokens, values in runs:
                panel.plot(tokens, values, color=styles[arm]["color"], linewidth=0.6, alpha=0.5)
        shortest = min(run.shape[1] for run in runs)  # a run that diverged has fewer points
        stacked = np.stack([run[:, :shortest] for run in runs])  # (runs, 2, points)
        tokens, values = stacked.mean(axis=0)  # (2, points): the mean curve
        panel.plot(tokens, values, **styles[arm], markersize=4, linewidth=1.8)
    panel.grid(alpha=0.3)
    panel.set_xlabel("tokens read")
    panel.xaxis.set_major_formatter(lambda value, _: _as_tokens(value))


def _as_tokens(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k"


def _legend_below(figure: "Figure", panel: "Axes") -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=10)


def _draw_curves(curves: dict[str, dict[str, list[np.ndarray]]], styles: dict[str, dict]) -> "Figure":
    """What was measured on held-out text during training, a panel for each metric."""
    figure = _figure(5.2 * len(curves))
    panels = list(figure.subplots(1, len(curves), squeeze=False)[0])
    for panel, (name, by_arm) in zip(panels, curves.items(), strict=True):
        _draw_lines(panel, by_arm, styles)
        panel.set_title(f"{METRICS[name].title}, held out", fontsize=11)
        if name == "mlm_loss":
            # A run that diverges, or an arm without the masked term, may leave the plot.
            start = max(values[0] for runs in by_arm.values() for _, values in runs)
            lowest, highest = panel.get_ylim()
            panel.set_ylim(lowest, min(highest, 1.1 * start))
    _legend_below(figure, panels[0])
    return figure
