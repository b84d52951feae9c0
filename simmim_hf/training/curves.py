"""The plot of a training."""

from ..metric_catalogue import metric_of

# What the plot shows: the metrics of the log that share a panel, as they are in training and in evaluation.
PANELS = (
    ("loss",),
    ("mlm_loss",),
    ("contrastive_loss",),
    ("clm_loss",),
    ("mlm_accuracy", "contrastive_accuracy"),
    ("alignment", "uniformity"),
)


def plot_training(log_history: list[dict[str, float]], path: str) -> None:
    """Draws the training curves of a Trainer's log into a PNG: points are held-out evaluations."""
    from matplotlib.figure import Figure  # pyplot would choose a backend for the whole process

    logged = {name for entry in log_history for name in entry}
    panels = [[name for key in keys for name in (key, f"eval_{key}") if name in logged] for keys in PANELS]
    panels = [names for names in panels if names and names != ["eval_loss"]]
    columns = min(3, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, names in zip(axes.flat, panels, strict=False):
        colours: dict[str, str] = {}
        for name in names:
            steps, values = zip(*[(entry["step"], entry[name]) for entry in log_history if name in entry], strict=True)
            key = name.removeprefix("eval_")
            held_out = name.startswith("eval_")
            colours.setdefault(key, f"C{len(colours)}")
            label = ("loss" if key == "loss" else metric_of(key).title) + (", held out" if held_out else "")
            axis.plot(steps, values, "o" if held_out else "-", color=colours[key], label=label, linewidth=1.5)
        axis.set_title(" and ".join("loss" if key == "loss" else metric_of(key).title for key in colours), fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
