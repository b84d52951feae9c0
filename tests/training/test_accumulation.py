"""Gradient accumulation gives the gradients of all its batches at once."""

import pytest
import torch
from accelerate import Accelerator
from trainers import Spy, fixed_batch, furthest, gradients_of, losses, make_model, ready_trainer
from transformers import Trainer

from simmim_hf import SimMIMTrainer


def join(batches: list[dict]) -> dict[str, torch.Tensor]:
    """Several batches as one."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"labels": -100}
    return {
        name: torch.cat(
            [
                torch.nn.functional.pad(batch[name], (0, length - batch[name].shape[1]), value=fill.get(name, 0))
                for batch in batches
            ]
        )
        for name in batches[0]
    }


EQUAL = [fixed_batch([4, 6, 8, 6], 2, seed) for seed in range(4)]
UNEQUAL = [
    *(fixed_batch([3, 12], 1, 0), fixed_batch([5, 5, 6, 7, 8, 9], 4, 1)),
    *(fixed_batch([12, 4, 5], 2, 2), fixed_batch([7, 11, 9, 8, 10], 3, 3)),
]


def reference(objective: str, batches: list[dict]) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients and loss of all batches at once; only the negatives stay those of each batch."""
    model = make_model(objective).train()
    config, whole = model.config, join(batches)
    loss = 0.0
    if config.contrastive_weight:
        total = sum(model(**batch).contrastive_loss * len(batch["input_ids"]) for batch in batches)
        loss = loss + config.contrastive_weight * total / len(whole["input_ids"])
    if config.mlm_weight:
        loss = loss + config.mlm_weight * model(**whole).mlm_loss
    if config.clm_weight:
        loss = loss + config.clm_weight * model(**whole).clm_loss
    loss.backward()
    return gradients_of(model), loss.item()


def accumulated(folder, trainer_class, objective: str, batches: list[dict]) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients that a Trainer gives to its optimizer, and the loss it logs."""
    spy = Spy()
    options = {"gradient_accumulation_steps": len(batches), "max_grad_norm": 0.0, "callbacks": [spy]}
    trainer = ready_trainer(folder, batches, trainer_class, make_model(objective), **options)
    trainer.train()
    assert len(spy.gradients) == 1
    return spy.gradients[0], losses(trainer)[0]


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [Trainer, SimMIMTrainer])
def test_accumulation_over_equal_batches_is_exact(tmp_path, trainer_class):
    gradients, loss = reference("fused", EQUAL)
    ours, logged = accumulated(tmp_path, trainer_class, "fused", EQUAL)
    assert furthest(ours, gradients) < 1e-5
    assert logged == pytest.approx(loss, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm", "clm", "simcse", "simmim", "fused"])
def test_accumulation_over_unequal_batches_is_exact_in_simmim_trainer_only(tmp_path, objective):
    gradients, loss = reference(objective, UNEQUAL)
    ours, logged = accumulated(tmp_path / "ours", SimMIMTrainer, objective, UNEQUAL)
    assert furthest(ours, gradients) < 1e-5
    assert logged == pytest.approx(loss, abs=1e-5)
    if objective == "fused":
        plain, _ = accumulated(tmp_path / "plain", Trainer, objective, UNEQUAL)
        assert furthest(plain, gradients) > 1e-3


@pytest.mark.slow
def test_a_short_last_accumulation_is_exact(tmp_path):
    spy = Spy()
    options = {"gradient_accumulation_steps": 4, "num_train_epochs": 1, "max_steps": -1, "max_grad_norm": 0.0}
    batches = [*EQUAL, *UNEQUAL[:2]]
    ready_trainer(tmp_path, batches, model=make_model(), learning_rate=0.0, callbacks=[spy], **options).train()
    assert len(spy.gradients) == 2
    assert furthest(spy.gradients[1], reference("simmim", UNEQUAL[:2])[0]) < 1e-5


def test_accumulation_in_an_accelerate_loop_is_exact(fresh_accelerator):
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = accelerator.prepare(make_model())
    steps = []
    for batch in EQUAL:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                steps.append(gradients_of(model))
    assert len(steps) == 1
    assert furthest(steps[0], reference("simmim", EQUAL)[0]) < 1e-5
