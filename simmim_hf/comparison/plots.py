"""The plots of a comparison."""

from pathlib import Path

import numpy as np

from ..quantities import QUANTITIES
from .statistics import Metric, front_axes, front_of, front_points, metrics_of, without_masked_term

COLOURS = 10
KEPT = 0.8  # share of the arms that the plot of many shows


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


def styles_of(results: dict, axes: tuple[Metric, Metric] | None) -> dict[str, dict]:
    """Colour, marker and label of each arm; of more than ten arms only those of the front stand out."""
    named = list(results["arms"])
    if len(named) > COLOURS and axes is not None:
        x, y = axes
        named = front_of(front_points(x, y), x.quantity.better, y.quantity.better)
    styles = {arm: {"color": "0.8", "marker": ".", "zorder": 1, "label": "_other"} for arm in results["arms"]}
    for arm in [arm for arm in styles if arm not in named][:1]:
        styles[arm]["label"] = "other arms"  # once; matplotlib leaves a label that begins with _ out
    for place, arm in enumerate(named):
        marker = "osD^vPX*<>"[place % COLOURS - place // COLOURS]
        styles[arm] = {"color": f"C{place % COLOURS}", "marker": marker, "label": arm}
    return styles


def _draw_front(results: dict, axes: tuple[Metric, Metric], styles: dict[str, dict]):
    """Two metrics of every arm against each other."""
    x, y = axes
    points, untrained = front_points(x, y), without_masked_term(results)
    # An arm that never saw a mask would push all others into a corner: it stands beyond a break of the axis.
    inside = [arm for arm in points if arm not in untrained] or list(points)
    shown = sorted(value for arm in inside for value in x.known[arm].by_seed.values())
    heights = sorted(at_y for _, at_y in points.values())
    many = len(points) > COLOURS
    if many:  # the worst of many would push all others into a corner, too
        shown, heights = shown[: round(KEPT * len(shown))], heights[-round(KEPT * len(heights)) :]
    left, right, low, high = min(shown), max(shown), min(heights), max(heights)
    width, height = right - left or 0.1 * abs(right), high - low or 0.1 * abs(high)
    broken, edge = right + 0.25 * width, right + 0.4 * width
    pinned = [arm for arm, (at_x, _) in points.items() if at_x > edge and not many]
    figure = _figure(7.4, 4.6)
    panel = figure.subplots()
    panel.grid(alpha=0.3)
    for arm, (at_x, at_y) in points.items():
        style = dict(styles[arm])
        label, mark_x = style.pop("label"), at_x
        if arm in pinned:
            label, mark_x = f"{label} ({at_x:.2f}, off the scale)", edge
        for seed in x.known[arm].by_seed.keys() & y.known[arm].by_seed.keys():
            seed_x = mark_x if arm in pinned else x.known[arm].by_seed[seed]
            seed_y = y.known[arm].by_seed[seed]
            panel.plot([mark_x, seed_x], [at_y, seed_y], color=style["color"], linewidth=0.8, alpha=0.6)
            panel.plot(seed_x, seed_y, ".", color=style["color"], alpha=0.6)
        panel.plot(mark_x, at_y, linestyle="none", markersize=10, label=label, **style)
    front = [arm for arm in front_of(points, x.quantity.better, y.quantity.better) if arm not in pinned]
    panel.plot(*zip(*sorted(points[arm] for arm in front)), "--", color="grey", linewidth=1, zorder=0)
    levels = [(results["initial"]["name"], y.initial.mean, ":")] if y.initial else []
    levels += [(*y.reference, "-.")] if y.reference else []
    for label, level, line in levels:
        style = {"color": "black", "linestyle": line, "linewidth": 1}
        if low - height <= level <= high + height:
            panel.axhline(level, label=label, **style)
        else:
            panel.plot([], [], label=f"{label} ({level:.2f}, off the scale)", **style)
    if pinned:
        _break_axis(panel, broken, edge + (edge - broken))
    if many:
        panel.set_xlim(left - 0.1 * width, right + 0.1 * width)
        panel.set_ylim(low - 0.1 * height, high + 0.1 * height)
        beyond = sum(at_x > right or at_y < low for at_x, at_y in points.values())
        panel.plot([], [], linestyle="none", label=f"({beyond} of {len(points)} outside)")
    panel.set_xlabel(f"{x.title} (left is better)")
    panel.set_ylabel(f"{y.title} (up is better)")
    figure.legend(loc="outside right upper", fontsize=10)
    return figure


def _break_axis(panel, start: float, end: float) -> None:
    """Ends the scale of x at `start`; what stands from there to `end` has no place on it."""
    left, axis = panel.get_xlim()[0], panel.get_xaxis_transform()
    panel.axvspan(start, end, color="0.94", zorder=0)
    panel.set_xticks([tick for tick in panel.get_xticks() if left <= tick < start])
    panel.set_xlim(left, end)
    panel.text(start, 0, "//", transform=axis, ha="center", va="center", fontsize=14)
    panel.text((start + end) / 2, 1.01, "off the scale", transform=axis, ha="center", va="bottom", fontsize=9)


def _curves(results: dict, name: str) -> dict[str, list[np.ndarray]]:
    """For each arm an array (2, points) of tokens and values for each of its runs that have the quantity."""
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
        panel.set_title(f"{QUANTITIES[name].title}, held out", fontsize=11)
        if name == "mlm_loss":
            # A run that diverges, or an arm that never learned to answer, may leave the plot.
            start = max(values[0] for runs in found.values() for _, values in runs)
            lowest, highest = panel.get_ylim()
            panel.set_ylim(lowest, min(highest, 1.1 * start))
    _legend_below(figure, panels[0])
    return figure
