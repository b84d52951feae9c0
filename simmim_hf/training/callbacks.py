"""The order of a training, and what is logged of it."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import IntervalStrategy

from .sampling import PassCollator


class SimilarLengthSampler(LengthGroupedSampler):
    """Batches of similar length in random order, the same for a seed and an epoch even when training is resumed.

    Sequences of one length save padding, and keep the contrastive term from telling pairs apart by their length alone.

    Args:
        batch_size: of all processes together
        lengths: tokens of each row
        seed: of the order
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.epoch}").getrandbits(63))
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=self.generator)
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        # The longest batch stays first, to run out of memory early or never; a short one stays last.
        full = len(indices) // self.batch_size
        middle = 1 + torch.randperm(max(full - 1, 0), generator=self.generator)
        order = [0, *middle.tolist(), *range(full, len(batches))]
        return iter([index for batch in order[: len(batches)] for index in batches[batch]])


class LastStepLogged(TrainerCallback):
    """Logs the last step too: a run of fewer steps than `logging_steps` would say nothing of what it learned."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        ends = state.global_step >= state.max_steps or control.should_training_stop
        if ends and args.logging_strategy == IntervalStrategy.STEPS:
            control.should_log = True


class SamplerEpoch(TrainerCallback):
    """Sets the epoch where Trainer does not: of the sampler behind the skipped batches of a resumed run, and of the
    collator."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        collator = getattr(train_dataloader, "collate_fn", None)
        if isinstance(collator, PassCollator):
            collator.number.fill_(int(state.epoch))
        sampler: Any = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler = getattr(sampler, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch))
