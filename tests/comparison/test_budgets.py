"""What a run may use: tokens, operations and seconds are planned as they are then spent."""

import helpers
import pytest
from comparisons import ARMS, BATCH, BUDGET, LONGEST, compare, options, recorded
from torch.utils.flop_counter import FlopCounterMode

from simmim_hf.comparison import budget
from simmim_hf.comparison.comparison import Comparison
from simmim_hf.model.backbones import dropouts

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.slow
def test_all_arms_read_the_budget_of_tokens_to_within_one_batch(files, tmp_path):
    arms = {name: {"objective": name} for name in ("mlm", "simmim", "spans")}
    with recorded() as runs:
        results = compare(
            files, tmp_path / "out", arms, seeds=1, tasks=None, budget_text=None, budget_tokens=2 * BUDGET
        )
    steps = {}
    for result in results["runs"]:
        text = sum(map(len, runs[f"{result['arm']}/seed-42"]["batches"]))
        assert 0 <= result["tokens"] - 2 * BUDGET < 2 * BATCH * LONGEST
        steps[result["arm"]] = result["steps"]
        if result["arm"] == "mlm":
            assert result["tokens"] == text
    assert steps["simmim"] < 0.6 * steps["mlm"]
    operations = {result["arm"]: result["flops"] / result["tokens"] for result in results["runs"]}
    # These texts are so short that the special tokens of a second view count.
    assert operations["spans"] == pytest.approx(operations["mlm"], rel=0.1)


@pytest.mark.slow
def test_the_plan_is_what_training_reads(files, tmp_path):
    more = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    more |= {"train_sampling_strategy": "random", "dataloader_drop_last": True}
    with recorded() as runs:
        comparison = Comparison({"mlm": ARMS["mlm"]}, options(files, **more), tmp_path, seeds=1, budget_tokens=2500)
        result = comparison.run()["runs"][0]
    batches = runs["mlm/seed-42"]["batches"]
    assert result["tokens"] == sum(map(len, batches)) and result["curve"][-1]["tokens"] == result["tokens"]
    assert result["tokens"] > sum(comparison.text.train["length"]), "more than one epoch is tested"
    assert 0 <= 2 * result["steps"] - len(batches) <= 2


@pytest.mark.parametrize(
    ("term", "view"), [("mlm", "masked"), ("contrastive", "masked"), ("contrastive", "deleted"), ("clm", "masked")]
)
def test_operations_are_those_that_torch_counts(term, view):
    backbone = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    batch, ragged = helpers.ragged_batch([40] * 4), helpers.ragged_batch([40, 20, 20, 20])
    for columns in (batch, ragged) if view == "deleted" else ():
        for name in ("input_ids", "attention_mask"):
            columns |= {f"positive_{name}": columns[name], f"negative_{name}": batch[name][:2]}
    weights = {f"{name}_weight": float(name == term) for name in ("mlm", "contrastive", "clm")}
    model = helpers.tiny_model(backbone=backbone, positive_view=view, **weights)
    model.simmim.encoder.config._attn_implementation = "eager"  # one that torch can look into
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    # Norms and biases are parameters, but no products.
    assert budget.training_flops(model, batch) == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert 0.5 < budget.training_flops(model, ragged) / budget.training_flops(model, batch) < 0.75


@pytest.mark.slow
def test_a_budget_of_operations_gives_half_the_steps_to_twice_the_views(files, tmp_path):
    arms = {"one view": {"objective": "mlm"}, "two views": {"objective": "simmim"}}
    results = compare(files, tmp_path / "out", arms, seeds=1, tasks=None, budget_text=None, budget_flops=7e7)
    one, two = results["runs"]
    assert 1.6 < one["steps"] / two["steps"] < 2.1
    for run in results["runs"]:
        assert run["flops"] == pytest.approx(7e7, rel=0.12)


@pytest.mark.slow
def test_weights_that_change_are_counted_as_they_are(files, tmp_path):
    arms = {
        "joint": {"objective": "simmim"},
        "later": {"objective": "simmim", "weight_schedule": "contrastive_weight=0:0,0.5:0,0.5:1"},
    }
    runs = compare(files, tmp_path / "out", arms, seeds=1, tasks=None)["runs"]
    assert runs[0]["steps"] == runs[1]["steps"] and runs[0]["tokens"] > runs[1]["tokens"]
    assert 0.65 < runs[1]["flops"] / runs[0]["flops"] < 0.85  # half of the time one reading instead of two


def test_simcse_has_its_dropout_on_the_default_backbone(files, tmp_path):
    """As in `simmim pretrain`, though every arm starts from a folder of weights; the other arms have none."""
    arms = {name: {"objective": name} for name in ("mlm", "simcse")}
    given = {name: value for name, value in options(files).items() if name != "text_config"}
    comparison = Comparison(arms, given, str(tmp_path / "out"), seeds=1, budget_tokens=3000)
    comparison.prepare()
    found = {arm: set(dropouts(comparison._trainer(arm, 42).model.config.text_config).values()) for arm in arms}
    assert found == {"mlm": {0.0}, "simcse": {0.1}}
