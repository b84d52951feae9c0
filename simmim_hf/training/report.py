"""What a run shows a person: the table, the plot, the snippet."""

import textwrap
from collections.abc import Sequence

from .. import records, tables
from ..metric_catalogue import BASELINES, as_text, metric_of, title

# What the plot shows: the metrics of the log that share a panel, as they are in training and in evaluation.
PANELS = (
    ("loss",),
    ("mlm_loss",),
    ("contrastive_loss",),
    ("clm_loss",),
    ("mlm_accuracy", "contrastive_accuracy"),
    ("alignment", "uniformity"),
)


def baselines(results: dict) -> dict[str, float]:
    """The metrics of `results.json` that need no training, by the metric to which they compare."""
    return {metric: results[key] for metric, (key, _) in BASELINES.items() if key in results}


def held_out_rows(results: dict) -> list[list[str]]:
    """What was measured, printed: title, before training, after training, baseline, name of the baseline.

    Args:
        results: what `results.json` holds
    """
    measured = (results.get("before", {}), results.get("after", {}), baselines(results))
    rows = []
    for name in measured[1]:
        cells = [as_text(values[name]) if name in values else "" for values in measured]
        rows.append([title(name), *cells, BASELINES[name][1] if name in measured[2] else ""])
    return rows


def before_after_table(results: dict) -> str:
    """A plain-text table of held-out metrics for the weights before and after training, and of the baselines."""
    rows = [["held out", "before", "after", "baseline", ""], *held_out_rows(results)]
    head, *lines = tables.plain(rows, align="<>>><")
    rule = "-" * max(map(len, [head, *lines]))
    return "\n".join(["", head, rule, *lines, ""])


def notes(results: dict) -> list[str]:
    """What a reader of the metrics has to know: what is retrieved, and how sure the gains are."""
    found = []
    if "retrieval_candidates" in results:
        built_in = results["data"].get("built_in")
        what = "a docstring's body by its summary line" if built_in else "the second half of a text by its first"
        found.append(f"Retrieval finds {what} among {results['retrieval_candidates']:,} held-out candidates.")
    for name, gain in results.get("differences", {}).items():
        value, low, high = (f"{gain[part]:+.{metric_of(name).digits}f}" for part in ("value", "low", "high"))
        found.append(f"{title(name)}: {value} by the training, 95 % interval {low} to {high} (paired bootstrap).")
    return found


def text_report(text, units: Sequence[str], max_length: int, sources: Sequence[str]) -> str:
    """How much text a run reads, and the unit of its documents.

    Args:
        text: the `TokenizedText` of the run
        units: of the `Corpus`
        max_length: tokens that the encoder reads at once
        sources: the training files as they were given, for the lines of a mixture
    """
    counts = text.train_counts
    held_out = text.held_out_counts
    lines = []
    if units:
        lines.append(f"A document is {', '.join(units)} (--text_unit).")
    if counts is None:
        lines.append(f"Training text: a stream, read in passages of {max_length} tokens at most.")
    else:
        dropped = f"{counts.dropped:,} tokens cut off (--long_texts)" if counts.dropped else "nothing cut off"
        lines.append(
            f"Training text: {counts.documents:,} documents, {counts.tokens:,} tokens in {counts.rows:,} rows for an "
            f"encoder that reads {max_length} tokens at once; {dropped}."
        )
        for source, part in zip(sources, counts.sources, strict=False):
            lines.append(
                f"  of {records.printable(source)}: {part.documents:,} documents, {part.tokens:,} tokens "
                f"({part.tokens / counts.tokens:.1%} of all)."
            )
    lines.append(f"Held out: {held_out.documents:,} documents, {held_out.tokens:,} tokens in {held_out.rows:,} rows.")
    return "\n".join(lines)


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
        colours = {}
        for name in names:
            steps, values = zip(*[(entry["step"], entry[name]) for entry in log_history if name in entry], strict=True)
            key, held_out = name.removeprefix("eval_"), name.startswith("eval_")
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


def neighbours(query: str, found: list[tuple[str, float]]) -> str:
    """A text and its nearest neighbours with their cosines, a line each."""
    return "\n".join([_start(query, 100), *(f"   {cosine:.2f}  {_start(text, 92)}" for text, cosine in found)])


def search_snippet(model: str) -> str:
    """Python that searches with a sentence-transformers model."""
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model}")
texts = ["A text.", "Another one."]
scores = model.similarity(model.encode(["A question?"]), model.encode(texts))"""


def adapted_note(folder: str, run: str) -> str:
    """What is in the folder of an adapted model, and how to search with it.

    Args:
        run: the folder in it that tells how it was made
    """
    return f"""
The adapted model is in {folder}; {run}/ in it has the checkpoint with its masked-LM head, results.json, training.png
and a model card. Search with

{textwrap.indent(search_snippet(folder), "    ")}
"""


def _start(text: str, width: int) -> str:
    text = records.printable(" ".join(text.split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def loading_snippet(folder: str, fills_masks: bool) -> str:
    """Python that loads what a run saved."""
    filling = f'\n    fill_mask = pipeline("fill-mask", model="{folder}")\n'
    return f"""
Saved in {folder}: model, tokenizer, collator settings, results.json, training.png and a model card, README.md.
Load it with

    import simmim_hf
    from transformers import AutoModel, AutoTokenizer{", pipeline" if fills_masks else ""}

    tokenizer = AutoTokenizer.from_pretrained("{folder}")
    model = AutoModel.from_pretrained("{folder}")
    batch = tokenizer(["A sentence.", "Another one."], padding=True, return_tensors="pt")
    vectors = model(**batch).pooler_output
{filling if fills_masks else ""}"""
