"""What the plots of a comparison show."""

import json

import pytest
from helpers import EXAMPLES

from simmim_hf.comparison import plots
from simmim_hf.comparison.plots import draw, styles_of
from simmim_hf.comparison.statistics import front_axes, front_of, front_points, metrics_of

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


@pytest.mark.parametrize("name", ["finalists", "objectives", "sweep"])
def test_every_seed_has_room_and_the_front_is_joined(name):
    results = results_of(name)
    x, y = front_axes(metrics_of(results))
    panel = front_panel(results)
    left, right = panel.get_xlim()
    seeds = [value for arm in x.known.values() for value in arm.by_seed.values()]
    assert left < min(seeds) and max(seeds) < right
    front = next(line for line in panel.lines if line.get_linestyle() == "--")
    points = front_points(x, y)
    joined = sorted(points[arm] for arm in front_of(points, x.definition.sign, y.definition.sign))
    assert list(zip(front.get_xdata(), front.get_ydata())) == joined


def test_only_what_was_measured_is_drawn(tmp_path):
    results = results_of("objectives")
    for run in results["runs"]:
        del run["figures"]["held-out text"]["mlm_loss"]
    assert draw(results, metrics_of(results), tmp_path) == {"curves": "curves.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
