"""What the plots of a comparison show."""

import json

import pytest
from helpers import EXAMPLES

from simmim_hf.comparison import plots
from simmim_hf.comparison.plots import draw, styles_of
from simmim_hf.comparison.statistics import front_axes, metrics_of

COMPARISONS = EXAMPLES / "comparisons"


def results_of(name: str) -> dict:
    return json.loads((COMPARISONS / name / "results.json").read_text())


def test_of_many_arms_the_plots_name_the_front_alone():
    results = results_of("sweep")
    axes = front_axes(metrics_of(results))
    assert [metric.title for metric in axes] == ["held-out text: MLM loss", "stsb_en/dev.jsonl.gz: Spearman x 100"]
    labels = [style["label"] for style in styles_of(results, axes).values()]
    named = [label for label in labels if label in results["arms"]]
    assert len(labels) == 41 and labels.count("other arms") == 1 and labels.count("_other") == 40 - len(named)
    assert {"batch 32", "decoupled + weight 0.1 + cropped"} <= set(named) and len(named) == 8


def test_few_arms_are_all_named_each_in_its_own_way():
    styles = styles_of(results_of("objectives"), None)
    assert all(style["label"] == arm for arm, style in styles.items())
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(styles)


def front_panel(results: dict):
    """The panel of the plot of two goals."""
    axes = front_axes(metrics_of(results))
    return plots._draw_front(results, axes, styles_of(results, axes)).axes[0]


def test_an_arm_off_the_scale_stands_beyond_a_break_that_the_front_does_not_cross():
    results = results_of("objectives")
    for run in results["runs"]:
        if run["arm"] == "simcse":  # the best vectors of all, by which it is on the front
            run["figures"]["stsb_en/dev.jsonl.gz"]["spearman"] += 20
    panel = front_panel(results)
    x, _ = front_axes(metrics_of(results))
    start = next(text.get_position()[0] for text in panel.texts if text.get_text() == "//")
    assert max(panel.get_xticks()) < start < panel.get_xlim()[1]
    front = next(line for line in panel.lines if line.get_color() == "grey")
    assert list(front.get_xdata()) == pytest.approx([x.known["fused"].mean, x.known["simmim decoupled"].mean])
    marks = {line.get_label(): line.get_xdata()[0] for line in panel.lines if not line.get_label().startswith("_")}
    assert {label for label, at in marks.items() if at > start} == {
        "clm (7.99, off the scale)",
        "simcse (9.06, off the scale)",
    }


def test_an_axis_with_room_for_all_does_not_break():
    panel, (x, _) = front_panel(results_of("finalists")), front_axes(metrics_of(results_of("finalists")))
    left, right = panel.get_xlim()
    seeds = [value for arm in x.known.values() for value in arm.by_seed.values()]
    assert not panel.texts and left < min(seeds) and max(seeds) < right


def test_only_what_was_measured_is_drawn(tmp_path):
    results = results_of("objectives")
    for run in results["runs"]:
        del run["figures"]["held-out text"]["mlm_loss"]
    assert draw(results, tmp_path) == {"curves": "curves.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
