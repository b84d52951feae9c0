"""`queue_size` of the Trainer: what is in the queue, who sees it, and how it is resumed."""

import pytest
import torch
from datasets import Dataset
from helpers import NO_DROPOUT, batch_of_two_views, ragged_batch, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from transformers import TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMTrainer
from simmim_hf.training.queue import FILE, VectorQueue


def make_trainer(folder, model=None, batches=None, **options) -> SimMIMTrainer:
    """On ready batches, or on 40 rows in batches of 4."""
    method = {name: options.pop(name) for name in ("queue_size", "chunk_size") if name in options}
    defaults = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    defaults |= {"per_device_train_batch_size": 1 if batches else 4, "max_steps": 6, "save_steps": 2}
    defaults |= {"logging_steps": 1, "train_sampling_strategy": "sequential"}
    rows = ragged_batch([3 + i % 7 for i in range(40)])
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(rows["input_ids"], rows["attention_mask"])]
    return SimMIMTrainer(
        model=model or tiny_model(backbone=NO_DROPOUT),
        args=TrainingArguments(**{**defaults, **options}),
        train_dataset=batches or Dataset.from_dict({"input_ids": texts}),
        data_collator=(lambda features: features[0]) if batches else DataCollatorForSimMIM(tiny_tokenizer()),
        **method,
    )


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_micro_batches_see_those_before_them(tmp_path, chunk_size):
    batches = [batch_of_two_views(lengths, lengths) for lengths in ([9, 3, 5], [4, 11], [7, 2, 6], [8, 8])]
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "learning_rate": 0.0, "save_strategy": "no"}
    trainer = make_trainer(tmp_path, batches=batches, queue_size=3, chunk_size=chunk_size, **options)
    trainer.train()
    model, queue, expected = tiny_model(backbone=NO_DROPOUT), None, []
    for batch in batches:
        outputs = model(**batch, queue_embeds=queue)
        expected.append(outputs.contrastive_loss.item())
        pairs = torch.stack([outputs.original_embeds, outputs.masked_embeds], dim=1).detach()
        queue = (pairs if queue is None else torch.cat([queue, pairs]))[-3:]
    torch.testing.assert_close(trainer._queue.pairs, queue)
    logged = [row["contrastive_loss"] for row in trainer.state.log_history if "contrastive_loss" in row]
    assert logged == pytest.approx([(3 * expected[0] + 2 * expected[1]) / 5, (3 * expected[2] + 2 * expected[3]) / 5])
    evaluated = trainer.evaluate(batches[:1], metric_key_prefix="eval")["eval_contrastive_loss"]
    assert evaluated == pytest.approx(expected[0]) and len(trainer._queue.pairs) == 3


@pytest.mark.slow
def test_a_resumed_queue_is_that_of_the_unbroken_run(tmp_path):
    unbroken, resumed = (make_trainer(tmp_path / name, queue_size=10) for name in ("unbroken", "resumed"))
    unbroken.train()
    assert load_file(tmp_path / "unbroken" / "checkpoint-2" / FILE)["pairs"].shape == (8, 2, 32)
    resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken" / "checkpoint-2"))
    assert torch.equal(resumed._queue.pairs, unbroken._queue.pairs) and len(resumed._queue.pairs) == 10
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    without = make_trainer(tmp_path / "without")
    without.train()
    losses = [[row["loss"] for row in run.state.log_history[:6]] for run in (unbroken, without)]
    assert losses[0][0] == losses[1][0] and losses[0][1:] != losses[1][1:]


def test_what_is_not_finite_does_not_stay():
    queue, x = VectorQueue(3), torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [3.0, 4.0]])
    queue.add(x, x)
    assert queue.pairs[:, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [(0, {}, "give 1 or more"), (4, {"contrastive_weight": 0.0}, "contrastive_weight is 0"), (40, {}, "40 training")],
)
def test_a_queue_that_cannot_work_is_refused(tmp_path, size, options, reason):
    with pytest.raises(ValueError, match=f"queue_size={size}.*{reason}"):
        make_trainer(tmp_path, tiny_model(**options), queue_size=size)
