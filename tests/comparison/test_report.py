"""The report of a comparison, written again from results that are committed."""

import copy
import json
import re
from pathlib import Path

import pytest
from helpers import EXAMPLES

from simmim_hf.comparison import report
from simmim_hf.comparison.statistics import metrics_of
from simmim_hf.metric_catalogue import METRICS

OBJECTIVES = EXAMPLES / "comparisons" / "objectives"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((OBJECTIVES / "results.json").read_text())


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(results, metrics_of(results), folder)
    return folder


def test_the_committed_report_is_what_is_written_today(folder):
    assert (folder / "report.md").read_text() == (OBJECTIVES / "report.md").read_text()


def test_the_page_shows_all_and_needs_nothing_from_outside(folder, results):
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert not re.search(r"https?:|//[\w.]+\.\w+/|<script|<link|@import", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for arm in results["arms"]:
        assert re.search(rf"<td>{arm}( †)?</td>", page)
    assert re.findall(r"<h2>(.*)</h2>", page) == re.findall(r"^## (.*)", text, re.M)
    assert '<td class="best">4.510 ± 0.020</td>' in page and '<td class="same">73.40 ± 6.11 ≈</td>' in page


def test_what_is_wide_scrolls_alone(folder):
    page = (folder / "report.html").read_text()
    assert ".wide { overflow-x: auto; }" in page
    for element in ("<table", "<img"):
        assert page.count(element) == page.count(f'<div class="wide">{element}') > 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", ["finalists", "modernbert", "objectives", "sweep", "views", "weights"])
def test_the_leading_metrics_stand_first(name, tmp_path):
    results = json.loads((OBJECTIVES.parent / name / "results.json").read_text())
    report.write(results, metrics_of(results), tmp_path)
    title, heading, note, table = (tmp_path / "report.md").read_text().split("\n\n")[:4]
    assert title.startswith("# ") and heading == "## At a glance" and note.startswith("Bold: ")
    assert table.startswith("| arm | seeds |")


@pytest.mark.usefixtures("no_pictures")
def test_what_is_below_the_random_weights_is_never_the_best(results, tmp_path):
    worse = copy.deepcopy(results)
    for run in worse["runs"]:
        run["figures"]["trec"]["accuracy"] = 1.0
    report.write(worse, metrics_of(worse), tmp_path)
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| mlm | 3 of"))
    assert "| 1.00 (all seeds equal) |" in row, "not bold"


def test_nothing_below_the_random_weights_is_marked(results):
    for metric in metrics_of(results):
        for row in report.metric_table([metric], results).rows[: len(results["arms"])]:
            arm, (_, mark) = row[0].removesuffix(" †"), row[-1]
            assert not mark or metric.initial is None or metric.beats_initial(arm)
    metric = next(metric for metric in metrics_of(results) if metric.title == "stsb_en/test.jsonl.gz: Spearman x 100")
    marks = [row[-1][1] for row in report.metric_table([metric], results).rows[: len(results["arms"])]]
    assert marks == ["", "", "", "", "", "best"] and metric.as_good() == ["simcse", "fused"]


@pytest.mark.usefixtures("no_pictures")
def test_what_has_no_variance_is_said(results, tmp_path):
    constant = copy.deepcopy(results)
    for run in constant["runs"]:
        run["figures"] = {"trec": {"accuracy": 80.0 if run["arm"] == "mlm" else 79.0}}
    report.write(constant, metrics_of(constant), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "**80.00 (all seeds equal)** |" in text and "79.00 (all seeds equal) |" in text
    note = "\n\nThe difference from the best is the same with every seed, which leaves nothing to test: trec: "
    note += "accuracy, % (clm, simcse, simmim, fused and simmim decoupled).\n\n"
    assert text.count(note) == 2, "at a glance, and in its own section"
    assert note.strip() in (tmp_path / "report.html").read_text()
    assert note.strip() in report.overview(constant, metrics_of(constant))


@pytest.mark.usefixtures("no_pictures")
def test_the_name_of_a_task_cannot_write_to_a_terminal(results, tmp_path):
    """It is that of a file, and may hold any character."""
    renamed = copy.deepcopy(results)
    for run in renamed["runs"]:
        run["figures"] = {"we\x1b[31mird": run["figures"]["trec"]}
    metrics = metrics_of(renamed)
    report.write(renamed, metrics, tmp_path)
    for text in ((tmp_path / "report.md").read_text(), report.overview(renamed, metrics)):
        assert r"we\x1b[31mird" in text and "\x1b" not in text


def with_seeds(results: dict, *seeds: int) -> dict:
    runs = [run for run in results["runs"] if run["seed"] in seeds]
    initial = [run for run in results["initial"]["runs"] if run["seed"] in seeds]
    return {**results, "seeds": list(seeds), "runs": runs, "initial": {**results["initial"], "runs": initial}}


@pytest.mark.usefixtures("no_pictures")
def test_with_one_seed_nothing_is_told_apart(results, tmp_path):
    one_seed = with_seeds(results, 42)
    report.write(one_seed, metrics_of(one_seed), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Without ± there is one seed, and any difference may be chance." in text
    assert not re.search(r"^\|.*[±≈]", text, re.M)


@pytest.mark.usefixtures("no_pictures")
def test_failed_runs_are_named(results, tmp_path):
    changed = copy.deepcopy(with_seeds(results, 42, 43))
    for run in changed["runs"]:
        if run["arm"] == "clm":
            run |= {"status": "failed", "reason": "The loss is nan | at step 7.", "figures": {}}
    report.write(changed, metrics_of(changed), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| clm | 42 | The loss is nan \\| at step 7. |" in text and "| clm † | 0 of 2 | - |" in text


@pytest.mark.usefixtures("no_pictures")
def test_titles_name_few_arms_and_count_many(results, tmp_path):
    arms = {f"arm {place}": {"objective": "mlm"} for place in range(11)}
    many = {**results, "arms": arms, "weights": {arm: {"mlm_weight": 1.0} for arm in arms}}
    many["runs"] = [{**results["runs"][0], "arm": arm} for arm in arms]
    report.write(many, metrics_of(many), tmp_path)
    assert (tmp_path / "report.md").read_text().startswith("# Comparison of 11 arms\n")
    assert report.listed(["a"]) == "a" and report.listed(["a", "b", "c"]) == "a, b and c"


def test_every_section_has_its_note():
    assert {definition.section for definition in METRICS.values()} - {""} <= report.NOTES.keys()
    assert set(report.PLOTS.values()) <= report.NOTES.keys()


def test_the_overview_is_the_table_of_the_leading_metrics(results):
    lines = report.overview(results, metrics_of(results)).strip().splitlines()
    assert lines[0].startswith("| arm | seeds | held-out text: MLM loss | held-out text: causal perplexity |")
    assert len(lines) == 2 + 6 + 1 + 2, "a head, the arms, the random weights, two references"
    assert lines[-1] == "| TF-IDF | - | - | - | - | - | - | 0.445 |"
