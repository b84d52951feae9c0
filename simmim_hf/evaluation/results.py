"""The results of `simmim evaluate` as tables: for a terminal, for `results.md` and for a model card."""

import itertools
from collections.abc import Iterable

from .. import metric_catalogue, records, tables
from .bootstrap import CONFIDENCE

Row = tuple[str, ...]


def models_of(results: dict) -> dict[str, dict]:
    """The facts and values of each model by its name, from the content of `results.json`."""
    return results.get("models") or {results["model"]: results}


def table_rows(results: dict, shown: Iterable[str] = metric_catalogue.METRICS) -> list[Row]:
    """Task, kind, metric and the value of each model, as text, under a row of titles.

    A value is followed by its difference from that of the first model, and the ends of the interval of the difference.

    Args:
        results: the content of `results.json`
        shown: the keys of the metrics
    """
    keys = list(shown)
    results = records.printable(results)
    models = models_of(results)
    titles = list(models) if len(models) > 1 else ["value"]
    rows: list[Row] = [("task", "kind", "metric", *titles)]
    for part in ("tasks", "mteb"):
        tasks: dict[str, None] = {}  # a set that keeps the order
        for model in models.values():
            tasks |= dict.fromkeys(model.get(part, {}))
        for task in tasks:
            rows += _rows_of_task(results, part, task, keys)
    return rows


def plain_table(results: dict) -> str:
    """The rows for a terminal; task and kind are not repeated."""
    rows = table_rows(results)
    cells = [rows[0]]
    for above, row in itertools.pairwise(rows):
        same_task = row[0] == above[0]
        task = "" if same_task else row[0]
        kind = "" if same_task and row[1] == above[1] else row[1]
        cells.append((task, kind, *row[2:]))
    return "\n".join(tables.plain(cells, align=_alignment(results)))


def markdown_table(results: dict, shown: Iterable[str] = metric_catalogue.METRICS) -> list[str]:
    """The lines of `table_rows` in Markdown."""
    return tables.markdown(table_rows(results, shown), align=_alignment(results))


def markdown(results: dict) -> str:
    """`results.md`: a table of the metrics, and how they were measured."""
    results = records.printable(results)
    models = models_of(results)
    how = [f"{model['pooling']} pooling, at most {model['max_seq_length']} tokens" for model in models.values()]
    if len(models) > 1:
        how = [f"{name}: {text}" for name, text in zip(models, how, strict=True)]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = f"{'; '.join(how)}, {results['precision']} on {results['device']}, seed {results['seed']}; {versions}."
    if results.get("differences"):
        facts += (
            f" In brackets: the difference to the first model and its {CONFIDENCE:.0%} interval (paired bootstrap)."
        )
    lines = [f"# Evaluation of {metric_catalogue.listed(list(models))}", "", *markdown_table(results), "", facts, ""]
    if "command" in results:
        lines += [f"`{results['command']}`", ""]
    return "\n".join(lines)


def _alignment(results: dict) -> str:
    return "<<<" + ">" * len(models_of(results))


def _rows_of_task(results: dict, part: str, task: str, keys: list[str]) -> list[Row]:
    """A row for each metric that a model has on a task."""
    values: dict[str, dict] = {}
    differences: dict[str, dict] = {}
    for name, model in models_of(results).items():
        of_model = results.get("differences", {}).get(name, {})
        differences[name] = of_model.get(task, {})
        values[name] = model.get(part, {}).get(task, {})
    kind = next(iter(values.values())).get("kind", "mteb")
    rows: list[Row] = []
    for key in keys:
        if not any(key in of_model for of_model in values.values()):
            continue
        cells = []
        for name, of_model in values.items():
            difference = differences[name].get(key)
            cells.append(_cell(of_model, key, difference))
        rows.append((task, kind, metric_catalogue.title(key), *cells))
    return rows


def _cell(values: dict, key: str, difference: dict | None) -> str:
    """`0.513 (+0.022: +0.010 to +0.035)`, the difference with its interval where there is one."""
    text = _as_text(values[key]) if key in values else ""
    if difference is None:
        return text
    return f"{text} ({difference['value']:+.3f}: {difference['low']:+.3f} to {difference['high']:+.3f})"


def _as_text(value: float | None) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}"
