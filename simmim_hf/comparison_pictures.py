"""The pictures of a comparison."""

from pathlib import Path

import numpy as np

from .comparison_figures import front_axes, front_of, front_points, measured, without_masked_term

COLOURS = 10
KEPT = 0.8  # share of the arms that the picture of many shows


def draw(results: dict, folder: Path) -> dict[str, str]:
    """Draws what there is to draw into PNG files; their names by kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles, pictures = _styles(results), {}
    for kind, drawing in (("front", _draw_front), ("curves", _draw_curves), ("conflict", _draw_conflict)):
        figure = drawing(results, styles, pyplot)
        if figure is not None:
            figure.savefig(folder / f"{kind}.png")
            pyplot.close(figure)
            pictures[kind] = f"{kind}.png"
    return pictures


def _styles(results: dict) -> dict[str, dict]:
    """Colour, marker and label of each arm; of more than ten arms only those of the front stand out."""
    named, axes = list(results["arms"]), front_axes(measured(results))
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


def _draw_front(results, styles, pyplot):
    axes = front_axes(measured(results))
    if axes is None:
        return None
    x, y = axes
    points, untrained = front_points(x, y), without_masked_term(results)
    trained = [point[0] for arm, point in points.items() if arm not in untrained] or [p[0] for p in points.values()]
    many, heights = len(points) > COLOURS, sorted(at_y for _, at_y in points.values())
    if many:  # the worst of many would push all others into a corner, too
        trained, heights = sorted(trained)[: round(KEPT * len(trained))], heights[-round(KEPT * len(heights)) :]
    # An arm that never saw a mask would push all others into a corner: it stands at the edge.
    width = max(trained) - min(trained) or 0.1 * abs(max(trained))
    edge = max(trained) + 0.4 * width
    figure, plot = pyplot.subplots(figsize=(7.4, 4.6), dpi=130, layout="constrained")
    plot.grid(alpha=0.3)
    for arm, (at_x, at_y) in points.items():
        outside, style = at_x > edge, dict(styles[arm])
        label, where = style.pop("label"), at_x
        if outside and not many:
            label, where = f"{label} ({at_x:.2f}, off the scale)", edge
        for seed in x.known[arm].by_seed.keys() & y.known[arm].by_seed.keys():
            seed_x = where if outside else x.known[arm].by_seed[seed]
            seed_y = y.known[arm].by_seed[seed]
            plot.plot([where, seed_x], [at_y, seed_y], color=style["color"], linewidth=0.8, alpha=0.6)
            plot.plot(seed_x, seed_y, ".", color=style["color"], alpha=0.6)
        plot.plot(where, at_y, linestyle="none", markersize=10, label=label, **style)
    front = sorted(points[arm] for arm in front_of(points, x.quantity.better, y.quantity.better))
    plot.plot(*zip(*((min(at_x, edge), at_y) for at_x, at_y in front)), "--", color="grey", linewidth=1, zorder=0)
    room = max(heights) - min(heights) or 0.1 * abs(max(heights))
    levels = {results["initial"]["name"]: (y.initial and y.initial.mean, ":")}
    levels |= {y.reference[0]: (y.reference[1], "-.")} if y.reference else {}
    for label, (level, line) in levels.items():
        if level is not None and min(heights) - room <= level <= max(heights) + room:
            plot.axhline(level, color="black", linestyle=line, linewidth=1, label=label)
        elif level is not None:
            plot.plot(
                [], [], color="black", linestyle=line, linewidth=1, label=f"{label} ({level:.2f}, off the scale)"
            )
    if many:
        plot.set_xlim(min(trained) - 0.1 * width, max(trained) + 0.1 * width)
        plot.set_ylim(min(heights) - 0.1 * room, max(heights) + 0.1 * room)
        beyond = sum(at_x > max(trained) or at_y < min(heights) for at_x, at_y in points.values())
        plot.plot([], [], linestyle="none", label=f"({beyond} of {len(points)} outside)")
    plot.set_xlabel(f"{x.title} (left is better)")
    plot.set_ylabel(f"{y.title} (up is better)")
    figure.legend(loc="outside right upper", fontsize=10)
    return figure


def _curves(results: dict, kind: str, name: str) -> dict[str, list[tuple[list[float], list[float]]]]:
    """For each arm the (tokens, values) of each of its runs that have the quantity."""
    found = {}
    for run in results["runs"]:
        rows = [(row["tokens"], row[name]) for row in run.get(kind) or () if row.get(name) is not None]
        if rows:
            found.setdefault(run["arm"], []).append(tuple(map(list, zip(*rows))))
    return found


def _draw_lines(plot, curves, styles, line="-", label=True) -> None:
    for arm, runs in curves.items():
        colour, shortest = styles[arm]["color"], min(len(tokens) for tokens, _ in runs)
        for tokens, values in runs if len(runs) > 1 else ():
            plot.plot(tokens, values, line, color=colour, linewidth=0.6, alpha=0.5)
        mean_tokens, mean_values = (np.mean([run[i][:shortest] for run in runs], axis=0) for i in (0, 1))
        style = {**styles[arm], "markersize": 4, "linewidth": 1.8, **({} if label else {"label": None})}
        plot.plot(mean_tokens, mean_values, line, **style)
    plot.grid(alpha=0.3)
    plot.set_xlabel("tokens of text")
    plot.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")


def _draw_curves(results, styles, pyplot):
    panels = {"mlm_loss": "MLM loss, held out", "contrastive_accuracy": "own copy is the nearest, held out"}
    panels = {name: title for name, title in panels.items() if _curves(results, "curve", name)}
    if not panels:
        return None
    figure, plots = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), dpi=130, layout="constrained", squeeze=False
    )
    for plot, (name, title) in zip(plots.flat, panels.items(), strict=True):
        curves = _curves(results, "curve", name)
        _draw_lines(plot, curves, styles)
        plot.set_title(title, fontsize=11)
        if name == "mlm_loss":
            # What diverges, or never learned to answer, may leave the picture.
            start = max(values[0] for runs in curves.values() for _, values in runs)
            lowest, highest = plot.get_ylim()
            plot.set_ylim(lowest, min(highest, 1.1 * start))
    handles, labels = plots.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=10)
    return figure


def _draw_conflict(results, styles, pyplot):
    cosines = _curves(results, "conflict", "gradient_cosine")
    if not cosines:
        return None
    figure, plots = pyplot.subplots(1, 2, figsize=(10.4, 4.2), dpi=130, layout="constrained")
    _draw_lines(plots[0], cosines, styles)
    plots[0].axhline(0, color="black", linewidth=0.8)
    plots[0].set_title("cosine of the gradients of both terms", fontsize=11)
    _draw_lines(plots[1], _curves(results, "conflict", "mlm_gradient_norm"), styles)
    _draw_lines(plots[1], _curves(results, "conflict", "contrastive_gradient_norm"), styles, "--", label=False)
    plots[1].set_title("norm of each gradient: masked —, contrastive - -", fontsize=11)
    plots[1].set_yscale("log")
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=10)
    return figure
