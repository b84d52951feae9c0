"""The report of a comparison, written again from results that are committed."""

import copy
import json
import re
from pathlib import Path

import pytest
from helpers import EXAMPLES

from simmim_hf.comparison import report
from simmim_hf.comparison.statistics import metrics_of
from simmim_hf.quantities import QUANTITIES

OBJECTIVES = EXAMPLES / "comparisons" / "objectives"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((OBJECTIVES / "results.json").read_text())


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(results, folder)
    return folder


def verdict(results: dict) -> str:
    return report.verdict([metric for metric in metrics_of(results) if metric.quantity.leads], results)


def test_the_committed_report_is_what_is_written_today(folder):
    assert (folder / "report.md").read_text() == (OBJECTIVES / "report.md").read_text()


def test_the_page_shows_all_and_needs_nothing_from_outside(folder, results):
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert not re.search(r"https?:|//[\w.]+\.\w+/|<script|<link|@import", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3 and all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for arm in results["arms"]:
        assert re.search(rf"<td>{arm}( †)?</td>", page)
    assert re.findall(r"<h2>(.*)</h2>", page) == re.findall(r"^## (.*)", text, re.M)
    assert '<td class="best">4.510 ± 0.020</td>' in page and '<td class="same">48.49 ± 6.81 ≈</td>' in page


def test_the_verdict_says_no_more_than_the_test(results):
    best, below, test, initial = verdict(results).split(". ")
    assert below == "No arm is better than the random weights in stsb_en/dev.jsonl.gz Spearman"
    assert best.startswith("The best mean is that of fused in held-out text MLM loss; clm in ")
    assert best.endswith("; simcse in docstrings MRR@10")
    better, open_ = test.split("; ")
    assert better == (
        "By the paired test the best arm is better than every other arm with a value in held-out text MLM loss and "
        "held-out text causal perplexity"
    )
    assert open_.startswith("not distinguishable from some others (≈) in stsb_en/test.jsonl.gz Spearman, ")
    assert initial.startswith("By the same test it is better than the random weights in held-out text MLM loss, trec")
    assert initial.endswith("; not distinguishable from the random weights in stsb_en/test.jsonl.gz Spearman.")


@pytest.mark.usefixtures("no_pictures")
def test_what_is_below_the_random_weights_is_never_the_best(results, tmp_path):
    worse = copy.deepcopy(results)
    for run in worse["runs"]:
        run["figures"]["trec"]["accuracy"] = 1.0
    below = "No arm is better than the random weights in stsb_en/dev.jsonl.gz Spearman and trec accuracy"
    assert verdict(worse).split(". ")[1] == below
    report.write(worse, tmp_path)
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| mlm | 3 of"))
    assert "| 1.00 ± 0.00 |" in row, "not bold"


def with_seeds(results: dict, *seeds: int) -> dict:
    runs = [run for run in results["runs"] if run["seed"] in seeds]
    initial = [run for run in results["initial"]["runs"] if run["seed"] in seeds]
    return {**results, "seeds": list(seeds), "runs": runs, "initial": {**results["initial"], "runs": initial}}


@pytest.mark.usefixtures("no_pictures")
def test_with_one_seed_nothing_is_told_apart(results, tmp_path):
    one_seed = with_seeds(results, 42)
    said = verdict(one_seed)
    assert said.endswith(". With one seed nothing can be told apart: any difference may be chance.")
    report.write(one_seed, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert said in text and not re.search(r"^\|.*[±≈]", text, re.M)
    assert not re.search("better than|worse|distinguishable", said)


@pytest.mark.usefixtures("no_pictures")
def test_failed_and_interrupted_runs_are_named(results, tmp_path):
    changed = copy.deepcopy(with_seeds(results, 42, 43))
    for run in changed["runs"]:
        if run["arm"] == "clm":
            run |= {"status": "failed", "reason": "The loss is nan | at step 7.", "figures": {}}
        if (run["arm"], run["seed"]) == ("mlm", 43):
            run["steps"] -= 1
    report.write(changed, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| clm | 42 | The loss is nan \\| at step 7. |" in text and "| clm † | 0 of 2 | - |" in text
    assert "Out of time before the last planned step: mlm (seed 43)." in text
    assert "causal perplexity" not in verdict(changed), "one arm has no other to be better than"
    one_arm = {**results, "arms": {"clm": {}}, "runs": [run for run in results["runs"] if run["arm"] == "clm"]}
    assert verdict(one_arm) == "No metric has two arms to compare."
    one_seed_each = [run for run in results["runs"] if (run["arm"], run["seed"]) in (("clm", 42), ("mlm", 43))]
    assert "With so few finished seeds nothing can be told apart" in verdict({**results, "runs": one_seed_each})


@pytest.mark.usefixtures("no_pictures")
def test_titles_name_few_arms_and_count_many(results, tmp_path):
    arms = {f"arm {place}": {"objective": "mlm"} for place in range(11)}
    many = {**results, "arms": arms, "weights": {arm: {"mlm_weight": 1.0} for arm in arms}}
    many["runs"] = [{**results["runs"][0], "arm": arm} for arm in arms]
    report.write(many, tmp_path)
    assert (tmp_path / "report.md").read_text().startswith("# Comparison of 11 arms\n")
    assert report.listed(["a"]) == "a" and report.listed(["a", "b", "c"]) == "a, b and c"


def test_every_section_has_its_note():
    assert {quantity.axis for quantity in QUANTITIES.values()} - {""} <= report.NOTES.keys()
    assert set(report.PLOTS.values()) <= report.NOTES.keys()


def test_the_overview_is_the_table_of_the_leading_metrics(results):
    lines = report.overview(results).strip().splitlines()
    assert lines[0].startswith("| arm | seeds | held-out text: MLM loss | held-out text: causal perplexity |")
    assert len(lines) == 2 + 6 + 1 + 2, "a head, the arms, the random weights, two references"
    assert lines[-1] == "| TF-IDF | - | - | - | - | - | - | 0.445 |"
