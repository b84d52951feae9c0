"""What a run shows a person: the table, the picture, the snippet."""

import importlib.metadata
import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments

# Held-out metrics in the order of the table: name -> (title, whether more is better).
HELD_OUT_METRICS = {
    "eval_mlm_loss": "MLM loss",
    "eval_mlm_accuracy": "MLM accuracy",
    "eval_clm_loss": "CLM loss",
    "eval_contrastive_loss": "contrastive loss",
    "eval_contrastive_accuracy": "contrastive accuracy",
    "eval_alignment": "alignment (lower is closer)",
    "eval_uniformity": "uniformity (lower is more even)",
}
OTHER_METRICS = {
    "retrieval_mrr@10": "retrieval MRR@10",
    "similarity_spearman": "similarity, Spearman x 100",
}

BASELINES = {"mlm_loss": "token frequencies", "retrieval_mrr@10": "TF-IDF"}
BASELINE_KEYS = {"mlm_loss": "unigram_cross_entropy", "retrieval_mrr@10": "tfidf_mrr@10"}  # in results.json

# What the picture shows: title -> names in the log.
PANELS = {
    "loss": ["loss", "eval_loss"],
    "masked language modelling, loss": ["mlm_loss", "eval_mlm_loss"],
    "contrastive loss": ["contrastive_loss", "eval_contrastive_loss"],
    "causal language modelling, loss": ["clm_loss", "eval_clm_loss"],
    "accuracy": ["mlm_accuracy", "contrastive_accuracy", "eval_mlm_accuracy", "eval_contrastive_accuracy"],
    "alignment and uniformity": ["alignment", "uniformity"],
}


def versions() -> dict[str, str]:
    """The versions that a figure depends on."""
    names = ("simmim_hf", "torch", "transformers", "datasets", "tokenizers", "accelerate")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def hardware(args: TrainingArguments) -> str:
    """The device of one process, by the name that its maker gave it."""
    if args.device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    return f"{args.n_gpu} x {name}" if args.n_gpu > 1 else name


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")  # on Linux `platform` knows the architecture only
    names = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.M) if information.is_file() else []
    return (names or [platform.processor() or platform.machine()])[0]


def without_folders(value):
    """An option with absolute paths cut to their last part: what is shared names no folder of this machine."""
    if isinstance(value, dict):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def command(argv: Sequence[str]) -> str:
    """The command line of `simmim` as it may be shared: without access tokens and folders of this machine."""
    shared, words = ["simmim"], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--\w+[_-]token", name):
            if not equals:
                next(words, None)
        else:
            shared.append(f"{name}={without_folders(value)}" if equals else without_folders(word))
    return shlex.join(shared)


def titles() -> dict[str, str]:
    """The titles of the figures of `results.json`, in the order of the table."""
    return {name.removeprefix("eval_"): title for name, title in HELD_OUT_METRICS.items()} | OTHER_METRICS


def baselines(results: dict) -> dict[str, float]:
    """The figures of `results.json` that need no training, by the metric to which they compare."""
    return {metric: results[key] for metric, key in BASELINE_KEYS.items() if key in results}


def held_out_rows(
    before: dict[str, float], after: dict[str, float], baseline: dict[str, float]
) -> list[tuple[str, float | None, float | None, float | None, str]]:
    """What was measured, in order: (title, before training, after training, baseline, name of the baseline)."""
    return [
        (title, before.get(name), after[name], baseline.get(name), BASELINES[name] if name in baseline else "")
        for name, title in titles().items()
        if name in after
    ]


def before_after_table(before: dict[str, float], after: dict[str, float], baseline: dict[str, float]) -> str:
    """A plain-text table of held-out figures for the weights before and after training, and of the baselines."""
    rows = [("held out", "before", "after", "baseline", "")]
    for title, *figures, note in held_out_rows(before, after, baseline):
        rows.append((title, *("" if figure is None else f"{figure:.3f}" for figure in figures), note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *figures, note in rows:
        aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True))
        lines.append("  ".join([title.ljust(widths[0]), *aligned, note]).rstrip())
    return "\n".join(["", lines[0], "-" * max(map(len, lines)), *lines[1:], ""])


def plot_training(log_history: list[dict[str, float]], path: str) -> None:
    """Draws the training curves of a Trainer's log into a PNG: points are held-out evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logged = {name for entry in log_history for name in entry}
    panels = {title: [name for name in names if name in logged] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names and not set(names) <= {"eval_loss"}}
    columns = min(3, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.2 * rows), squeeze=False, dpi=120)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        colours = {}
        for name in names:
            steps, values = zip(*[(entry["step"], entry[name]) for entry in log_history if name in entry], strict=True)
            quantity = name.removeprefix("eval_")
            colours.setdefault(quantity, f"C{len(colours)}")
            held_out = name.startswith("eval_")
            label = f"{quantity.replace('_', ' ')}{', held out' if held_out else ''}"
            axis.plot(steps, values, "o" if held_out else "-", color=colours[quantity], label=label, linewidth=1.5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def neighbours(query: str, found: list[tuple[str, float]]) -> str:
    """A text and its nearest neighbours with their cosines, a line each."""
    return "\n".join([_start(query, 100), *(f"   {cosine:.2f}  {_start(text, 92)}" for text, cosine in found)])


def _start(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def loading_snippet(folder: str) -> str:
    """Python that loads what a run saved."""
    return f"""
Saved in {folder}: model, tokenizer, collator settings, results.json, training.png and a model card, README.md.
Load it with

    import simmim_hf
    from transformers import AutoModel, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained("{folder}")
    model = AutoModel.from_pretrained("{folder}")
    batch = tokenizer(["A sentence.", "Another one."], padding=True, return_tensors="pt")
    vectors = model(**batch).pooler_output

    fill_mask = pipeline("fill-mask", model="{folder}")
"""
