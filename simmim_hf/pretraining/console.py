"""What a run shows a person: the table, the plot, the snippet."""

import textwrap
from collections.abc import Sequence

from .. import records, tables
from ..training.card import held_out_rows, search_snippet


def before_after_table(results: dict) -> str:
    """A plain-text table of held-out metrics for the weights before and after training, and of the baselines."""
    rows = [["held out", "before", "after", "baseline", ""], *held_out_rows(results)]
    head, *lines = tables.plain(rows, align="<>>><")
    rule = "-" * max(map(len, [head, *lines]))
    return "\n".join(["", head, rule, *lines, ""])


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
        dropped = "nothing cut off"
        if counts.dropped:
            dropped = f"{counts.dropped:,} tokens cut off (--long_texts)"
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


def neighbours(query: str, found: list[tuple[str, float]]) -> str:
    """A text and its nearest neighbours with their cosines, a line each."""
    return "\n".join([_start(query, 100), *(f"   {cosine:.2f}  {_start(text, 92)}" for text, cosine in found)])


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
