"""The order of the texts in a training, and which devices it takes."""

import random

import pytest
from trainers import losses, make_model, make_texts, make_tokenizer, make_trainer, tokenized
from transformers import TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMTrainer
from simmim_hf.training.callbacks import SimilarLengthSampler


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


def test_several_gpus_without_a_launcher_are_one(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8, report_to="none")
    args._n_gpu = 2  # as transformers sets it where there are two and one process
    trainer = SimMIMTrainer(make_model(), args, DataCollatorForSimMIM(make_tokenizer()))
    assert trainer.args.n_gpu == 1 and trainer._train_batch_size == 8
