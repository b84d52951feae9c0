"""The loss of reading from left to right, by itself and in the Trainer."""

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    GENERATING,
    LENGTHS,
    NO_DROPOUT,
    VOCAB,
    assert_same_gradients,
    causal_model,
    gradients,
    ragged_batch,
    real_rows,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from simmim_hf import SimMIMForCausalLM

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def by_hand(model, rows):
    """-sum_t log P(x_{t+1} | x_1..x_t) of each text alone, and the number of predictions."""
    total, count = 0, 0
    for row in rows:
        log_p = model(row).logits[0].log_softmax(-1)
        for t in range(row.shape[1] - 1):
            total, count = total - log_p[t, row[0, t + 1]], count + 1
    return total, count


@pytest.mark.parametrize("family", GENERATING)
def test_the_loss_is_that_of_a_loop(family):
    model, (ids, mask) = causal_model(family), texts_of()
    loss = model(ids, mask, labels=ids.masked_fill(mask == 0, -100)).loss
    total, count = by_hand(model, real_rows(ids, mask))
    torch.testing.assert_close(loss, total / count, **CLOSE)
    assert_same_gradients(gradients(model, loss), gradients(model, total / count), rtol=1e-3)


@pytest.mark.parametrize(("family", "side"), [("bert", "right"), ("bert", "left"), ("llama", "left")])
def test_the_loss_is_the_causal_term_of_pretraining(family, side):
    trained = tiny_model(family, mlm_weight=0, contrastive_weight=0, clm_weight=1).requires_grad_(True)
    batch = ragged_batch(LENGTHS, side)
    expected = trained(**batch)
    model = SimMIMForCausalLM(trained.config)
    model.load_state_dict(trained.state_dict())
    mask = batch["attention_mask"]
    first = F.pad(mask[:, 1:] > mask[:, :-1], (1, 0))  # behind padding on the left, nothing precedes it
    labels = batch["input_ids"].masked_fill((mask == 0) | first, -100)
    actual = model.eval()(batch["input_ids"], mask, labels=labels)
    torch.testing.assert_close(actual.loss, expected.clm_loss, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model, actual.loss), gradients(trained, expected.loss))


class Gradients(TrainerCallback):
    """Those that the optimizer is given in each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "no_dropout"),
    [("bert", NO_DROPOUT), ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})],
)
def test_accumulation_in_the_trainer_equals_one_large_batch(family, no_dropout, tmp_path):
    """Texts of unequal length: a mean of means would weigh them wrongly."""
    ids, mask = texts_of()
    rows = [{"input_ids": row[0].tolist(), "attention_mask": [1] * row.shape[1]} for row in real_rows(ids, mask)]
    runs = {}
    for size in (1, 4):
        model, seen = causal_model(family, backbone=no_dropout), Gradients()
        arguments = TrainingArguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_grad_norm=0,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False),
            callbacks=[seen],
        )
        assert trainer.model_accepts_loss_kwargs
        trainer.train()
        runs[size] = trainer.state.log_history[0]["loss"], seen.steps[0]
    model = causal_model(family)
    total, count = by_hand(model, real_rows(ids, mask))
    expected = gradients(model, total / count)
    for loss, found in runs.values():
        assert loss == pytest.approx((total / count).item(), rel=1e-3)
        assert_same_gradients(found, expected, rtol=1e-3)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_evaluation_gathers_logits_and_no_cache(family, tmp_path):
    ids, mask = texts_of()
    rows = [{"input_ids": row[0].tolist(), "attention_mask": [1] * row.shape[1]} for row in real_rows(ids, mask)]
    trainer = Trainer(
        causal_model(family),
        TrainingArguments(tmp_path, report_to=[], disable_tqdm=True, use_cpu=True),
        eval_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False),
        compute_metrics=lambda predicted: {"shape": list(predicted.predictions.shape)},
    )
    assert trainer.evaluate()["eval_shape"] == [4, 11, VOCAB]
