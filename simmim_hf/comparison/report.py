"""The report of a comparison: tables and plots."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from .. import records, tables
from ..metric_catalogue import APART, GEOMETRY, LANGUAGE, RETRIEVAL, SIMILARITY, TRANSFER, listed
from .plots import draw
from .statistics import COST, ComparedMetric, mean_costs, without_masked_term

MANY_ARMS = 10  # the most that a sentence names
TEMPLATE = Path(__file__).with_name("report.html.jinja")

# What the tokens of a run are, in results of today and of before.
TOKENS = {
    "read": "Tokens count as often as the encoder reads them.",
    "text": "A token of the text counts once, however often the objective reads it.",
}
PLOTS = {"front": "Two goals at once", "curves": "Learning curves"}
NOTES = {  # what a reader has to know to read a section, by its title
    "At a glance": "Bold: the best mean over seeds, where it is better than that of the weights before training. ±: "
    "half the width of its 95 % interval (Student's t). ≈: better than before training, too, and not distinguishable "
    "from the best by a paired t-test over seeds at 5 %, not corrected for the number of comparisons. "
    "Without ± there is one seed, and any difference may be chance. †: the objective has no masked term.",
    "Two goals at once": "Large marks are means over seeds, small dots single seeds. The dashed line joins the arms "
    "whose means no other arm equals or beats in both metrics.",
    "Learning curves": "Measured on a part of the held-out text during training. Thin lines are single seeds.",
    LANGUAGE: "All arms are asked for the same masked tokens, also those that were never trained for it (†). "
    "Causal perplexity is that of arms with a causal term.",
    APART: "How often a text is nearest to its own masked copy, within a batch of texts of similar length.",
    SIMILARITY: "Correlation of cosines with human scores.",
    TRANSFER: "Logistic regression on frozen vectors.",
    RETRIEVAL: "Each query looks for its document among all documents, by cosine.",
    GEOMETRY: "None of these is better high or low by itself. A mean cosine near 1 is a narrow cone, a high effective "
    "rank a wide spread. The length is read by a linear probe: R² 1 is perfectly, 0 not at all.",
    "Cost": "Means of the finished runs. {tokens} TFLOPs are computed, not measured; like the seconds they are those "
    "of training alone. Memory is the peak of the process or, on a GPU, of what was allocated there.",
}


Cell = str | tuple[str, str]


@dataclass
class Table:
    """A head and rows of cells; a cell is a text, or a text with a mark: `best` or `same`.

    Args:
        caption: stands before the table
        note: stands after it
        of_words: whether its cells are read, not compared
    """

    head: list[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    note: str = ""
    of_words: bool = False


@dataclass
class Section:
    title: str
    paragraphs: list[str]
    tables: list[Table] = field(default_factory=list)
    plot: str | None = None


def metric_table(metrics: list[ComparedMetric], results: dict, caption: str = "") -> Table:
    """A row for each arm, for the weights they started from and for each reference; a column for each metric."""
    rows = _rows_of_arms(metrics, results)
    seeds = str(len(results["seeds"]))
    rows.append([results["initial"]["name"], seeds, *(metric.format(metric.initial) for metric in metrics)])
    for name in dict.fromkeys(metric.reference[0] for metric in metrics if metric.reference):
        rows.append([name, "-", *(_reference(metric, name) for metric in metrics)])
    titles = [metric.definition.described for metric in metrics]
    if len({metric.task for metric in metrics}) > 1:
        titles = [metric.title for metric in metrics]
    return Table(["arm", "seeds", *titles], rows, caption, _note_on_variance(metrics))


def _rows_of_arms(metrics: list[ComparedMetric], results: dict) -> list[list[Cell]]:
    untrained = without_masked_term(results)
    marks = [_marks(metric) for metric in metrics]
    rows: list[list[Cell]] = []
    for arm in results["arms"]:
        title = f"{arm} †" if arm in untrained else arm
        finished = [run for run in results["runs"] if run["arm"] == arm and run["status"] == "finished"]
        row: list[Cell] = [title, f"{len(finished)} of {len(results['seeds'])}"]
        for metric, mark in zip(metrics, marks, strict=True):
            row.append((metric.format(metric.arms[arm]), mark.get(arm, "")))
        rows.append(row)
    return rows


def _marks(metric: ComparedMetric) -> dict[str, str]:
    """The marks of arms: of the best one, and of those that a test does not tell from it."""
    marks = dict.fromkeys(metric.close(), "same")
    best = metric.best()
    if best is not None:
        marks[best] = "best"
    return marks


def _reference(metric: ComparedMetric, name: str) -> str:
    """The value of the reference of this name; `-` where the metric has another one, or none."""
    if metric.reference is None or metric.reference[0] != name:
        return "-"
    return metric.definition.format(metric.reference[1])


def _note_on_variance(metrics: list[ComparedMetric]) -> str:
    """Names the arms that no test compares with the best; empty without any."""
    untested = []
    for metric in metrics:
        arms = metric.without_variance()
        if arms:
            untested.append(f"{metric.title} ({listed(arms)})")
    if not untested:
        return ""
    return (
        f"The difference from the best is the same with every seed, which leaves nothing to test: {listed(untested)}."
    )


def sections_of(results: dict, metrics: list[ComparedMetric], plots: dict[str, str]) -> list[Section]:
    """The report.

    Args:
        plots: file names by kind, of those that were drawn
    """
    sections = [
        _at_a_glance(results, metrics),
        _failures(results),
        _options_of_arms(results),
        *(Section(title, [NOTES[title]], plot=plots[kind]) for kind, title in PLOTS.items() if kind in plots),
        *_sections_of_metrics(results, metrics),
        _costs(results),
    ]
    return [section for section in sections if section is not None]


def _at_a_glance(results: dict, metrics: list[ComparedMetric]) -> Section | None:
    headlines = headlines_of(metrics)
    if not headlines:
        return None
    return Section("At a glance", [NOTES["At a glance"]], [metric_table(headlines, results)])


def headlines_of(metrics: list[ComparedMetric]) -> list[ComparedMetric]:
    """The metrics that stand for their section."""
    return [metric for metric in metrics if metric.definition.is_headline]


def _failures(results: dict) -> Section | None:
    failed = [run for run in results["runs"] if run["status"] != "finished"]
    if not failed:
        return None
    rows = [[run["arm"], str(run["seed"]), run["reason"]] for run in failed]
    table = Table(["arm", "seed", "reason"], rows, of_words=True)
    return Section("Runs without a result", ["No mean includes them."], [table])


def _options_of_arms(results: dict) -> Section:
    shared = {name: value for name, value in results["options"].items() if name != "seed"}  # each run has its own
    rows = [["all arms", _pairs(shared)]]
    for arm, options in results["arms"].items():
        rows.append([arm, _pairs(options)])
    return Section("What was compared", [_setting(results)], [Table(["arm", "options"], rows, of_words=True)])


def _sections_of_metrics(results: dict, metrics: list[ComparedMetric]) -> list[Section]:
    """A section for each group of metrics, with a table for each task."""
    sections = []
    for name in dict.fromkeys(metric.definition.section for metric in metrics):
        section = Section(name, [NOTES[name]])
        of_section = [metric for metric in metrics if metric.definition.section == name]
        for task in dict.fromkeys(metric.task for metric in of_section):
            of_task = [metric for metric in of_section if metric.task == task]
            section.tables.append(metric_table(of_task, results, records.printable(task)))
        sections.append(section)
    return sections


def _costs(results: dict) -> Section:
    rows = [[arm, *means] for arm, means in mean_costs(results).items()]
    counted = TOKENS[results.get("tokens", "text")]
    return Section("Cost", [NOTES["Cost"].format(tokens=counted)], [Table(["arm", *COST], rows)])


def _setting(results: dict) -> str:
    """What all arms have in common, apart from their options."""
    text = results["text"]
    budget = results["budget"]
    seeds = [str(seed) for seed in results["seeds"]]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"Each arm was trained with the seed{'s' if len(seeds) > 1 else ''} {listed(seeds)} and a budget of "
        f"{budget['amount']:,.10g} {budget['unit']} for each run. The arms of a seed share their initial weights, the "
        f"text, its order and the schedule of the learning rate. The text has {text['tokens']:,} tokens in "
        f"{text['sequences']:,} sequences; {text['held_out_sequences']:,} others were held out for evaluation. "
        f"Measured on {results['hardware']} with {versions}."
    )


def _pairs(options: dict) -> str:
    """`name value, name value`, as they stand on a command line."""

    def plain(value) -> str:
        if isinstance(value, list):
            return " ".join(map(plain, value))
        return f"{value:.15g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {plain(value)}" for name, value in options.items())


def write(results: dict, metrics: list[ComparedMetric], folder: Path) -> None:
    """Writes `report.md`, its plots, and `report.html` with everything inside it.

    Args:
        results: the content of `results.json`
        metrics: `metrics_of(results)`
    """
    results = records.printable(results)
    plots = draw(results, metrics, folder)
    sections = sections_of(results, metrics, plots)
    arms = list(results["arms"])
    named = f"{len(arms)} arms"
    if len(arms) <= MANY_ARMS:
        named = listed(arms)
    title = f"Comparison of {named}"
    (folder / "report.md").write_text(as_markdown(title, sections), encoding="utf-8")
    encoded = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in plots.values()}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(title=title, sections=sections, plots=encoded)
    (folder / "report.html").write_text(page, encoding="utf-8")


def overview(results: dict, metrics: list[ComparedMetric]) -> str:
    """The table of the leading metrics, for a terminal."""
    blocks = _markdown(metric_table(headlines_of(metrics), results))
    return "\n{}\n".format("\n\n".join(blocks))


def as_markdown(title: str, sections: list[Section]) -> str:
    """The report as the text of a Markdown file."""
    blocks = [f"# {title}"]
    for section in sections:
        blocks += [f"## {section.title}", *section.paragraphs]
        for table in section.tables:
            blocks += _markdown(table)
        if section.plot is not None:
            blocks.append(f"![{section.title}]({section.plot})")
    return "\n\n".join(blocks) + "\n"


def _markdown(table: Table) -> list[str]:
    """The caption, the table and the note, as far as there are any."""
    marks = {"best": "**{}**", "same": "{} ≈", "": "{}"}
    rows = [table.head]
    for row in table.rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        rows.append([marks[mark].format(text) for text, mark in cells])
    lines = tables.markdown(rows, align="<" * len(table.head))
    return list(filter(None, [table.caption, "\n".join(lines), table.note]))
