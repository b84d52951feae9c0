"""Training with the plain Trainer and with SimMIMTrainer on the CPU: what is learned, logged and read."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainers import (
    METRICS,
    TERMS,
    Spy,
    fixed_batch,
    furthest,
    losses,
    make_model,
    make_texts,
    make_tokenizer,
    make_trainer,
    ready_trainer,
    rows_with,
    tokenized,
)
from transformers import Trainer, TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining, SimMIMTrainer
from simmim_hf.training.arguments import SimMIMTrainingArguments

# ------------------------------------------------------------------------------------------------- the plain Trainer


@pytest.mark.slow
def test_plain_trainer_learns_evaluates_and_saves(tmp_path):
    data = tokenized(make_texts(8) * 4)
    trainer = make_trainer(tmp_path, Trainer, dataset=data, eval_dataset=data, max_steps=40, eval_strategy="epoch")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.5
    assert sum(losses(trainer)[-5:]) < sum(losses(trainer)[:5]) - 2.5
    trainer.save_model()
    loaded = SimMIMForPreTraining.from_pretrained(tmp_path)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    batch = fixed_batch([5, 9])
    with torch.no_grad():
        assert loaded(**batch).loss == trainer.model.eval()(**batch).loss


@pytest.mark.parametrize("trainer_class", [Trainer, SimMIMTrainer])
def test_evaluation_gathers_no_outputs_of_the_model(tmp_path, trainer_class):
    data = tokenized(make_texts(12))
    trainer = make_trainer(tmp_path, trainer_class, make_model("fused"), eval_dataset=data)
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "evaluation")
    assert output.predictions is None or len(output.predictions) == 0


# --------------------------------------------------------------------------------------------------- what is logged


def test_the_views_of_a_batch_are_made_once(tmp_path, monkeypatch):
    made = []
    views = SimMIMForPreTraining.views
    monkeypatch.setattr(SimMIMForPreTraining, "views", lambda *args, **batch: made.append(1) or views(*args, **batch))
    make_trainer(tmp_path, SimMIMTrainer, max_steps=3).train()
    assert len(made) == 3


@pytest.mark.parametrize("objective", ["clm", "simcse", "fused"])
def test_every_term_is_logged_and_the_loss_is_their_weighted_sum(tmp_path, objective):
    weights = {"mlm_weight": 0.5, "contrastive_weight": 2.0, "clm_weight": 0.25}
    preset = SimMIMConfig.from_objective(objective)
    weights = {name: weight for name, weight in weights.items() if getattr(preset, name)}
    terms = [term for term, weight in TERMS.items() if weight in weights]
    expected = [*terms, *(["mlm_accuracy"] if "mlm_loss" in terms else [])]
    expected += METRICS[1:] if "contrastive_loss" in terms else []
    trainer = make_trainer(
        *(tmp_path, SimMIMTrainer, make_model(objective, dropout=0.1, **weights)),
        **{"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8},
        eval_dataset=Dataset.from_dict({"text": make_texts(8, seed=1)}),
    )
    trainer.train()
    rows = rows_with(trainer, "loss")
    assert len(rows) == 4
    for row in rows:
        assert set(expected) <= row.keys() and row["tokens_per_second"] > 0
        assert set(row).isdisjoint({*TERMS, *METRICS} - set(expected))
        assert row["loss"] == pytest.approx(sum(weights[TERMS[term]] * row[term] for term in terms), abs=1e-5)
    evaluations = rows_with(trainer, "eval_loss")
    assert len(evaluations) == 2
    for row in evaluations:
        assert {f"eval_{name}" for name in expected} <= row.keys()
        total = sum(weights[TERMS[term]] * row[f"eval_{term}"] for term in terms)
        assert row["eval_loss"] == pytest.approx(total, abs=1e-5)


def test_the_logged_quantities_are_those_of_the_batch(tmp_path):
    model, batch = make_model(), DataCollatorForSimMIM(make_tokenizer())(make_texts(8))
    with torch.no_grad():
        outputs = model(**batch)
    x = torch.nn.functional.normalize(outputs.original_embeds, dim=-1)
    y = torch.nn.functional.normalize(outputs.masked_embeds, dim=-1)
    distances = torch.pdist(x).square()
    trainer = ready_trainer(tmp_path, [batch], model=model)
    trainer.train()
    row = rows_with(trainer, "loss")[0]
    expected = {"alignment": (x - y).square().sum(-1).mean(), "uniformity": (-2 * distances).exp().mean().log()}
    expected |= {name: outputs[name] for name in ("loss", "mlm_loss", "contrastive_loss", "mlm_accuracy")}
    for name, value in expected.items():
        assert row[name] == pytest.approx(value.item(), abs=1e-4), name


@pytest.mark.slow
def test_terms_and_evaluation_are_in_tensorboard(tmp_path):
    data = Dataset.from_dict({"text": make_texts(16)})
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "report_to": "tensorboard"}
    trainer = make_trainer(tmp_path, model=make_model("fused"), dataset=data, eval_dataset=data, **options)
    trainer.train()
    files = list(tmp_path.rglob("events.out.tfevents*"))
    tags = {}
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        tags |= {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for name in ("loss", *TERMS, *METRICS):
        assert len(tags[f"train/{name}"]) == len(tags[f"eval/{name}"]) == 2, name
        logged = [row[name] for row in rows_with(trainer, "loss")]
        assert [event.value for event in tags[f"train/{name}"]] == pytest.approx(logged, rel=1e-5)
    assert len(tags["train/tokens_per_second"]) == 2


def test_log_intervals_average_over_things_and_not_over_batches(tmp_path):
    batches = [fixed_batch([4, 4]), fixed_batch([9, 9, 9], corrupted=5, seed=5)]
    trainer = ready_trainer(tmp_path, batches, max_steps=2, logging_steps=2, learning_rate=0.0)
    trainer.train()
    outputs = [make_model()(**batch) for batch in batches]
    row = rows_with(trainer, "loss")[0]
    mean = sum(output.mlm_loss * (batch["labels"] != -100).sum() for output, batch in zip(outputs, batches))
    assert row["mlm_loss"] == pytest.approx(mean.item() / (2 * 1 + 3 * 5), abs=1e-5)
    mean = (2 * outputs[0].contrastive_loss + 3 * outputs[1].contrastive_loss) / 5
    assert row["contrastive_loss"] == pytest.approx(mean.item(), abs=1e-5)


# ---------------------------------------------------------------------------------------------------- kinds of data


def test_hard_negatives_from_a_dataset_of_strings(tmp_path):
    seen = []
    model = make_model()
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    data = Dataset.from_dict({"text": make_texts(16), "negative": make_texts(16, seed=2), "unused": [1] * 16})
    make_trainer(tmp_path, model=model, dataset=data, max_steps=1).train()
    assert {"negative_input_ids", "negative_attention_mask"} <= seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [Trainer, SimMIMTrainer])
def test_streaming(tmp_path, trainer_class):
    def rows():
        for text in make_texts(20):
            yield {"text": text}

    stream = IterableDataset.from_generator(rows)
    trainer = make_trainer(tmp_path, trainer_class, dataset=stream, max_steps=5, remove_unused_columns=False)
    trainer.train()
    assert len(losses(trainer)) == 5


@pytest.mark.slow
def test_workers(tmp_path):
    here = make_trainer(tmp_path / "0", max_steps=7, train_sampling_strategy="sequential")
    workers = make_trainer(
        *(tmp_path / "2",), max_steps=7, train_sampling_strategy="sequential", dataloader_num_workers=2
    )
    here.train(), workers.train()
    assert losses(here) == pytest.approx(losses(workers), abs=1e-6)


@pytest.mark.slow
def test_bfloat16(tmp_path):
    trainer = make_trainer(tmp_path, model=make_model("fused", dropout=0.1), bf16=True, max_steps=3)
    trainer.train()
    assert len(losses(trainer)) == 3 and all(torch.tensor(losses(trainer)).isfinite())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.slow
def test_gradient_checkpointing_recomputes_and_changes_nothing(tmp_path):
    batch, runs = fixed_batch(range(4, 12)), {}
    for checkpointing in (False, True):
        model, calls, spy = make_model("fused"), [], Spy()
        layer = model.simmim.encoder.encoder.layer[0].attention
        layer.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        options = {"gradient_checkpointing": checkpointing, "max_steps": 1, "callbacks": [spy], "max_grad_norm": 0.0}
        ready_trainer(tmp_path, [batch], model=model, **options).train()
        runs[checkpointing] = spy.gradients[0], len(calls)
    assert furthest(runs[True][0], runs[False][0]) < 1e-6
    assert runs[True][1] >= runs[False][1] + 2  # the siamese pass and the causal one, once more each


@pytest.mark.parametrize(
    "options",
    [
        *({"max_skipped_steps": value} for value in (-1, "mean", 2.5, True)),
        *({"chunk_size": value} for value in (0, "small", 2.5)),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_by_its_name(tmp_path, options):
    (name, value), training = *options.items(), {"use_cpu": True, "report_to": "none"}
    with pytest.raises(ValueError, match=f"{name}={value!r}: give a whole number, [01] or more"):
        SimMIMTrainer(make_model(), TrainingArguments(str(tmp_path), **training), **options)
    with pytest.raises(ValueError, match=f"{name}={value!r}: give a whole number, [01] or more"):
        SimMIMTrainer(make_model(), SimMIMTrainingArguments(str(tmp_path), **training, **options))


@pytest.mark.parametrize("points", [3, [3], [(0, "one")], [(0, 1, 2)], "0:1", [(None, 1)]])
def test_a_schedule_without_points_is_refused(tmp_path, points):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="weight_schedule: `mlm_weight` has .*: give points"):
        SimMIMTrainer(make_model(), args, weight_schedule={"mlm_weight": points})
