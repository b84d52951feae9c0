"""The report of a comparison: tables, pictures and plain sentences, for a person to decide from."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from .comparison_figures import (
    COST,
    Measured,
    front_axes,
    front_of,
    front_points,
    mean_costs,
    measured,
    without_masked_term,
)
from .comparison_pictures import draw

MANY_ARMS = 10  # so many are named in a sentence

HTML = Path(__file__).with_name("comparison_report.html.jinja")

# What a reader has to know about an axis before its figures.
NOTES = {
    "Language modelling": "Masks are the same for every arm. An arm marked † has no masked term: it was never trained "
    "for this question, and its masked figures say what it learned of it by the way. Causal perplexity is given for "
    "arms with a causal term.",
    "Telling texts apart": "How often the masked copy nearest to a text, among those of its batch of similar length, "
    "is its own: the task of the contrastive term.",
    "Similarity": "Correlation of cosines with human scores.",
    "Transfer": "Logistic regression on frozen vectors.",
    "Retrieval": "Finding the document of a query among all documents by the cosine.",
    "Geometry": "How the vectors lie on the sphere. No direction is better by itself: lower alignment is closer "
    "pairs, lower uniformity and a higher effective rank are a wider spread, a mean cosine near 1 is a narrow cone. "
    "Length readable is the R² of a linear probe for the number of tokens: 1 is perfectly, 0 not at all.",
}


# ---------------------------------------------------------------------------------------------- sentences


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def describe(figure: Measured, initial: str) -> str:
    """What the figures of all arms say, in words that claim no more than the test does."""
    best, known, title = figure.best(), figure.known, figure.quantity.title
    if not known:
        return f"{title}: no arm has a figure."
    if len(known) == 1:
        return f"{title}: {next(f'{arm} {figure.text(found)}' for arm, found in known.items())}, and no other arm."
    if best is None:
        low, high = (pick(known, key=lambda arm: known[arm].mean) for pick in (min, max))
        text = f"{title}: from {figure.text(known[low])} ({low}) to {figure.text(known[high])} ({high})"
        return text + (f"; {initial}: {figure.text(figure.initial)}." if figure.initial else ".")
    parts = [f"{title}: {best} has the best mean, {figure.text(known[best])}"]
    several_seeds = figure.is_tested()
    as_good = figure.as_good()
    if not several_seeds:
        parts.append(". With one seed there is no interval: differences between arms may be chance")
    else:
        behind = [arm for arm in known if arm != best and arm not in as_good]
        behind.sort(key=lambda arm: -figure.quantity.better * known[arm].mean)
        if as_good:
            parts.append(
                f". Not distinguishable from it: {listed([f'{a} ({figure.text(known[a])})' for a in as_good])}"
            )
        if behind:
            parts.append(f". Worse than it: {listed([f'{a} ({figure.text(known[a])})' for a in behind])}")
    if figure.initial is not None:
        parts.append(f". The {initial} have {figure.text(figure.initial)}")
        if several_seeds:
            by_gain = {gain: [arm for arm in known if figure.gain(arm) == gain] for gain in (1, 0, -1)}
            words = {1: "better than them", 0: "not distinguishable from them", -1: "worse than them"}
            found = [f"{words[gain]}: {listed(arms)}" for gain, arms in by_gain.items() if arms]
            parts.append("; " + "; ".join(found))
    if figure.reference is not None:
        parts.append(". For comparison, {}: {:.{}f}".format(*figure.reference, figure.quantity.digits))
    return "".join(parts) + "."


def describe_front(x: Measured, y: Measured) -> str:
    """Which arms no other arm beats in both figures, by their means."""
    points = front_points(x, y)
    front = front_of(points, x.quantity.better, y.quantity.better)
    behind = [arm for arm in points if arm not in front]
    text = f"Not beaten in both figures at once, by their means: {listed(front)}."
    if not behind:
        return text
    others = listed(behind) if len(behind) <= MANY_ARMS else f"all the others, {len(behind)}"
    return text + f" Beaten by an arm that is at least as good in both: {others}."


def describe_cost(results: dict) -> str:
    known = {arm: row for arm, row in mean_costs(results).items() if row["TFLOPs"] is not None}
    if not known:
        return "No run was finished."
    budget = results["budget"]
    text = f"Every run had a budget of {_amount(budget['amount'])} {budget['unit']}."
    per_token = {arm: row["TFLOPs"] / row["tokens"] for arm, row in known.items()}
    cheapest, dearest = min(per_token, key=per_token.get), max(per_token, key=per_token.get)
    if dearest != cheapest:
        ratio = per_token[dearest] / per_token[cheapest]
        text += f" For the same text, {dearest} takes {ratio:.1f} times the operations of {cheapest}."
    early = [f"{run['arm']} (seed {run['seed']})" for run in results["runs"] if stopped_early(run)]
    if early:
        text += f" Out of time before the last planned step: {listed(early)}."
    return text


def stopped_early(run: dict) -> bool:
    return run["status"] == "finished" and run["steps"] < run["planned_steps"]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def describe_conflict(results: dict) -> str:
    """How the gradients of the two terms lie to each other, in words."""
    texts = []
    for arm in results["arms"]:
        curves = [run["conflict"] for run in results["runs"] if run["arm"] == arm and run.get("conflict")]
        if not curves:
            continue
        every = [entry["gradient_cosine"] for curve in curves for entry in curve]
        first, last = (np.mean([curve[i]["gradient_cosine"] for curve in curves]) for i in (0, -1))
        mean = float(np.mean(every))
        way = (
            "pull against each other"
            if mean < -0.1
            else "pull the same way"
            if mean > 0.1
            else "hardly concern each other"
        )
        texts.append(
            f"{arm}: the cosine between the encoder gradients of the masked and the contrastive term is {mean:.2f} on "
            f"average ({first:.2f} at first, {last:.2f} at last): they {way}."
        )
    return " ".join(texts)


# ---------------------------------------------------------------------------------------------- sections


@dataclass
class Table:
    """A head and rows of cells; a cell is a text, or a text with a mark: `best` or `same`."""

    head: list[str]
    rows: list[list[str | tuple[str, str]]]
    caption: str | None = None  # what it says, in words, above it


@dataclass
class Section:
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    picture: str | None = None


def table_of(figures: list[Measured], results: dict, caption: str | None = None) -> Table:
    """A row for each arm and one for the weights they started from, a column for each figure."""
    untrained = without_masked_term(results)
    finished = {
        arm: sum(r["arm"] == arm and r["status"] == "finished" for r in results["runs"]) for arm in results["arms"]
    }
    rows = []
    for arm in results["arms"]:
        row = [f"{arm} †" if arm in untrained else arm, f"{finished[arm]} of {len(results['seeds'])}"]
        for figure in figures:
            mark = "best" if arm == figure.best() else "same" if arm in figure.as_good() and figure.is_tested() else ""
            row.append((figure.text(figure.arms[arm]), mark))
        rows.append(row)
    rows.append(
        [results["initial"]["name"], str(len(results["seeds"])), *(figure.text(figure.initial) for figure in figures)]
    )
    several = len({figure.task for figure in figures}) > 1
    return Table(["arm", "seeds", *(f.title if several else f.quantity.title for f in figures)], rows, caption)


def sections_of(results: dict, pictures: dict[str, str]) -> list[Section]:
    """The report.

    Args:
        pictures: file names by kind, of those that were drawn
    """
    figures, initial = measured(results), results["initial"]["name"]
    leading = [figure for figure in figures if figure.quantity.leads]
    sections = [Section("What was compared", [describe_setting(results)], [_arms_table(results)])]
    failed = [run for run in results["runs"] if run["status"] != "finished"]
    if failed:
        rows = [[run["arm"], str(run["seed"]), run["reason"]] for run in failed]
        title = "Runs without a result"
        sections.append(Section(title, ["They count in no figure."], [Table(["arm", "seed", "reason"], rows)]))
    if leading:
        reading = READING if len(results["seeds"]) > 1 else READING_ONE_SEED
        sections.append(Section("At a glance", [reading], [table_of(leading, results)]))
    if "front" in pictures:
        x, y = front_axes(figures)
        text = describe_front(x, y)
        text += " Large marks are means over seeds, small dots single seeds."
        sections.append(Section("Two goals at once", [text], picture=pictures["front"]))
    for axis in dict.fromkeys(figure.quantity.axis for figure in figures):
        section = Section(axis, [NOTES[axis]])
        for task in dict.fromkeys(figure.task for figure in figures if figure.quantity.axis == axis):
            of_task = [figure for figure in figures if figure.quantity.axis == axis and figure.task == task]
            told = [figure for figure in of_task if figure.quantity.leads] or of_task
            caption = f"{task}: " + " ".join(describe(figure, initial) for figure in told)
            section.tables.append(table_of(of_task, results, caption))
        sections.append(section)
    if "curves" in pictures:
        text = "Figures on a part of the held-out text while training; thin lines are single seeds."
        sections.append(Section("Learning curves", [text], picture=pictures["curves"]))
    if "conflict" in pictures:
        sections.append(Section("Conflict of the terms", [describe_conflict(results)], picture=pictures["conflict"]))
    sections.append(Section("Cost", [describe_cost(results), COST_NOTE], [_cost_table(results)]))
    return sections


READING = (
    "Mean over seeds ± half the width of its 95 % interval (Student's t). Bold: the best mean. ≈: not distinguishable "
    "from the best by a paired t-test over seeds at 5 %; paired, because the arms of a seed share initial weights and "
    "data order. †: the objective has no masked term. No correction for the number of comparisons was made, and few "
    "seeds leave most differences open."
)
READING_ONE_SEED = (
    "One seed: there are no intervals, and no test that could tell a difference from chance. Bold: the best figure. "
    "†: the objective has no masked term."
)
COST_NOTE = (
    "Means of the finished runs. Tokens are those of the text, each counted once however often the objective reads "
    "it; operations are counted by the formula of simmim_hf.costs.training_flops, without those of the measurements; "
    "seconds are those of training alone; memory is the peak of the process or, on a GPU, what was allocated there."
)


def describe_setting(results: dict) -> str:
    text, budget = results["text"], results["budget"]
    seeds = listed([str(seed) for seed in results["seeds"]])
    start = "initial weights" if results["initial"]["name"] == "random weights" else "checkpoint"
    parts = [
        f"{len(results['arms'])} arms, each with the seed{'s' if len(results['seeds']) > 1 else ''} {seeds}, from the "
        f"same {start}, on the same text in the same order, with the same schedule of the learning rate and a budget "
        f"of {_amount(budget['amount'])} {budget['unit']} for each run. The text has {text['tokens']:,} tokens in "
        f"{text['sequences']:,} sequences; {text['held_out_sequences']:,} others were held out for evaluation."
    ]
    options = {name: value for name, value in results["options"].items() if name not in ("seed",)}
    if options:
        parts.append(
            "Options of all arms: " + ", ".join(f"{name} {_plain(value)}" for name, value in options.items()) + "."
        )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"Measured on {results['hardware']} with {versions}.")
    return " ".join(parts)


def _plain(value) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _arms_table(results: dict) -> Table:
    rows = [
        [arm, ", ".join(f"{name} {_plain(value)}" for name, value in options.items())]
        for arm, options in results["arms"].items()
    ]
    return Table(["arm", "options"], rows)


def _cost_table(results: dict) -> Table:
    rows = []
    for arm, row in mean_costs(results).items():
        cells = ("-" if row[title] is None else f"{row[title]:{form}}" for title, (_, _, form) in COST.items())
        rows.append([arm, *cells])
    return Table(["arm", *COST], rows)


# ---------------------------------------------------------------------------------------------- files


def write(results: dict, folder: Path) -> None:
    """Writes `report.md`, its pictures, and `report.html` with everything inside it."""
    pictures = draw(results, folder)
    sections = sections_of(results, pictures)
    arms = list(results["arms"])
    title = "Comparison of " + (listed(arms) if len(arms) <= MANY_ARMS else f"{len(arms)} arms")
    (folder / "report.md").write_text(as_markdown(title, sections), encoding="utf-8")
    encoded = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in pictures.values()}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(HTML.read_text(encoding="utf-8"))
    page = template.render(title=title, sections=sections, pictures=encoded)
    (folder / "report.html").write_text(page, encoding="utf-8")


def overview(results: dict) -> str:
    """The table of the leading figures, for a terminal."""
    figures = [figure for figure in measured(results) if figure.quantity.leads]
    return "\n".join(["", *_markdown_table(table_of(figures, results)), ""])


def as_markdown(title: str, sections: list[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        for table in section.tables:
            lines += [table.caption, ""] if table.caption else []
            lines += [*_markdown_table(table), ""]
        if section.picture is not None:
            lines += [f"![{section.title}]({section.picture})", ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    marks = {"best": "**{}**", "same": "{} ≈", "": "{}"}
    rows = [table.head, ["---"] * len(table.head)]
    for row in table.rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        rows.append([marks[mark].format(" ".join(text.replace("|", "\\|").split())) for text, mark in cells])
    return [f"| {' | '.join(row)} |" for row in rows]
