"""What changes in the course of a training: the order of the texts, schedules, and the limit of its time."""

import random
from types import SimpleNamespace

import pytest
from trainers import losses, make_model, make_texts, make_tokenizer, make_trainer, rows_with, tokenized
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMTrainer
from simmim_hf.training import callbacks
from simmim_hf.training.callbacks import SimilarLengthSampler, TimeLimit


@pytest.mark.parametrize("rows, batch_size", [(103, 8), (96, 8), (5, 8), (8, 8), (1, 4), (500, 3)])
def test_similar_length_sampler_gives_every_index_once(rows, batch_size):
    lengths = random.Random(0).choices(range(3, 60), k=rows)
    sampler = SimilarLengthSampler(batch_size, lengths, 7)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(rows)) and len(sampler) == rows
        assert list(sampler) == epochs[-1]
        again = SimilarLengthSampler(batch_size, lengths, 7)
        again.set_epoch(epoch)
        assert list(again) == epochs[-1]
    other = SimilarLengthSampler(batch_size, lengths, 100)
    if rows > batch_size:
        assert len({tuple(epoch) for epoch in [*epochs, list(other)]}) == 4


def test_similar_length_sampler_puts_like_to_like():
    rng = random.Random(0)
    lengths = rng.choices(range(3, 60), k=803)
    sampler = SimilarLengthSampler(8, lengths, seed=0)

    def spread(order):
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 800, 8)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches), [max(batch) for batch in batches]

    order = list(sampler)
    grouped, longest = spread(order)
    assert grouped < spread(rng.sample(range(803), 803))[0] / 4
    assert longest[0] == max(lengths)
    assert longest != sorted(longest, reverse=True)  # batches come in random order
    # A short batch is the last one: the batches before it are the groups, not parts of two.
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 803, 8)]
    assert len(batches[-1]) == 3


def test_group_by_length_uses_the_sampler(tmp_path):
    options = {"train_sampling_strategy": "group_by_length", "max_steps": 1, "data_seed": 5}
    trainer = make_trainer(tmp_path, dataset=tokenized(make_texts()), **options)
    sampler = trainer._get_train_sampler()
    assert type(sampler) is SimilarLengthSampler and sampler.seed == 5 and sampler.batch_size == 8
    assert type(sampler.lengths) is list  # a column of a dataset gives its numbers one by one in minutes
    trainer.train()
    assert len(losses(trainer)) == 1


@pytest.mark.slow
def test_time_limit(tmp_path):
    trainer = make_trainer(tmp_path / "short", callbacks=[TimeLimit(0.0)], max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 1
    trainer = make_trainer(tmp_path / "long", callbacks=[TimeLimit(60.0)], max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.slow
@pytest.mark.parametrize("seconds_a_step", [1.0, 5.0], ids=["fast enough", "too slow"])
def test_schedules_end_with_the_time(tmp_path, monkeypatch, seconds_a_step):
    """20 steps and 30 seconds, of a clock that steps move: schedules of steps, or all of them within the time."""
    now, weights = [0.0], []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            weights.append(trainer.current_objective().contrastive_weight)
            now[0] += seconds_a_step

    trainer = make_trainer(tmp_path, callbacks=[Clock(), TimeLimit(0.5)], lr_scheduler_type="linear", max_steps=20)
    trainer.args.weight_schedule = {"contrastive_weight": [(0, 0.1), (0.5, 0.1), (1, 1)]}
    trainer.train()
    rates = [row["learning_rate"] / 3e-3 for row in rows_with(trainer, "learning_rate")]
    if seconds_a_step == 1:
        assert rates == pytest.approx([1 - step / 20 for step in range(20)])
        assert weights == pytest.approx([max(0.1, 0.1 + 0.9 * (step / 10 - 1)) for step in range(20)])
    else:  # six steps; from a fifth of the time on they stand where the time stands, the rate a step behind
        assert rates == pytest.approx([1, 0.95, 0.9, 0.65, 0.45, 0.3])
        assert weights == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.37, 0.64])


def test_the_time_limit_leaves_out_what_it_is_told_to():
    limit, control = TimeLimit(1 / 60), TrainerControl()
    args = TrainingArguments("unused", use_cpu=True)
    state = TrainerState(max_steps=10)
    limit.on_train_begin(args, state, control)
    limit.extend(-2)
    limit.extend(2.5)
    limit.on_step_end(args, state, control)
    assert not control.should_training_stop
    limit.extend(-3)
    limit.on_step_end(args, state, control)
    assert control.should_training_stop


def test_several_gpus_without_a_launcher_are_one(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8, report_to="none")
    args._n_gpu = 2  # as transformers sets it where there are two and one process
    trainer = SimMIMTrainer(make_model(), args, DataCollatorForSimMIM(make_tokenizer()))
    assert trainer.args.n_gpu == 1 and trainer._train_batch_size == 8
