"""The plots of a comparison."""

from pathlib import Path

import numpy as np

from ..metric_catalogue import METRICS
from .statistics import ComparedMetric, front_axes, front_of, front_points, metrics_of

COLOURS = 10


def draw(results: dict, folder: Path) -> dict[str, str]:
    """Draws what there is to draw into PNG files; their names by kind: `front`, `curves`."""
    axes = front_axes(metrics_of(results))
    styles = styles_of(results, axes)
    figures = {
        "front": axes and _draw_front(results, axes, styles),
        "curves": _draw_curves(results, styles),
    }
    drawn = {kind: figure for kind, figure in figures.items() if figure is not None}
    for kind, figure in drawn.items():
        figure.savefig(folder / f"{kind}.png")
    return {kind: f"{kind}.png" for kind in drawn}


def _figure(width: float, height: float = 4.2):
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
    for arm in [arm for arm in styles if arm not in named][:1]:
        styles[arm]["label"] = "other arms"  # once; matplotlib leaves a label that begins with _ out
    for place, arm in enumerate(named):
        marker = "osD^vPX*<>"[place % COLOURS - place // COLOURS]
        styles[arm] = {"color": f"C{place % COLOURS}", "marker": marker, "label": arm}
    return styles


def _draw_front(results: dict, axes: tuple[ComparedMetric, ComparedMetric], styles: dict[str, dict]):
    """Two metrics of every arm against each other."""
    x, y = axes
    points = front_points(x, y)
    figure = _figure(7.4, 4.6)
    panel = figure.subplots()
    panel.grid(alpha=0.3)
    for arm, (at_x, at_y) in points.items():
        colour = styles[arm]["color"]
        for seed in x.known[arm].by_seed.keys() & y.known[arm].by_seed.keys():
            seed_x = x.known[arm].by_seed[seed]
            seed_y = y.known[arm].by_seed[seed]
            panel.plot([at_x, seed_x], [at_y, seed_y], color=colour, linewidth=0.8, alpha=0.6)
            panel.plot(seed_x, seed_y, ".", color=colour, alpha=0.6)
        panel.plot(at_x, at_y, linestyle="none", markersize=10, **styles[arm])
    front = front_of(points, x.definition.sign, y.definition.sign)
    panel.plot(*zip(*sorted(points[arm] for arm in front)), "--", color="grey", linewidth=1, zorder=0)
    if y.initial:
        panel.axhline(y.initial.mean, label=results["initial"]["name"], color="black", linestyle=":", linewidth=1)
    if y.reference:
        name, level = y.reference
        panel.axhline(level, label=name, color="black", linestyle="-.", linewidth=1)
    panel.set_xlabel(f"{x.title} (left is better)")
    panel.set_ylabel(f"{y.title} (up is better)")
    figure.legend(loc="outside right upper", fontsize=10)
    return figure


def _curves(results: dict, name: str) -> dict[str, list[np.ndarray]]:
    """For each arm an array (2, points) of tokens and values for each of its runs that have the metric."""
    found = {}
    for run in results["runs"]:
        rows = [(row["tokens"], row[name]) for row in run.get("curve") or () if row.get(name) is not None]
        if rows:
            found.setdefault(run["arm"], []).append(np.array(rows).T)
    return found


def _draw_lines(panel, curves: dict[str, list[np.ndarray]], styles: dict[str, dict]) -> None:
    """The mean of each arm over its runs, and thin lines for the runs."""
    for arm, runs in curves.items():
        for tokens, values in runs if len(runs) > 1 else ():
            panel.plot(tokens, values, color=styles[arm]["color"], linewidth=0.6, alpha=0.5)
        shortest = min(run.shape[1] for run in runs)
        tokens, values = np.mean([run[:, :shortest] for run in runs], axis=0)  # (runs, 2, points) -> (2, points)
        panel.plot(tokens, values, **styles[arm], markersize=4, linewidth=1.8)
    panel.grid(alpha=0.3)
    panel.set_xlabel("tokens read")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")


def _legend_below(figure, panel) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=10)


def _draw_curves(results: dict, styles: dict[str, dict]):
    """What was measured on held-out text during training."""
    curves = {name: _curves(results, name) for name in ("mlm_loss", "contrastive_accuracy")}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        return None
    figure = _figure(5.2 * len(curves))
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, found) in zip(panels, curves.items(), strict=True):
        _draw_lines(panel, found, styles)
        panel.set_title(f"{METRICS[name].title}, held out", fontsize=11)
        if name == "mlm_loss":
            # A run that diverges, or an arm that never learned to answer, may leave the plot.
            start = max(values[0] for runs in found.values() for _, values in runs)
            lowest, highest = panel.get_ylim()
            panel.set_ylim(lowest, min(highest, 1.1 * start))
    _legend_below(figure, panels[0])
    return figure
