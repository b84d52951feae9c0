"""The order of a training, what is logged of it, and the end of its time."""

import math
import random
import time

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from transformers.trainer_utils import IntervalStrategy


class SimilarLengthSampler(LengthGroupedSampler):
    """Batches of similar length in random order, the same for a seed and an epoch even when training is resumed.

    Sequences of one length save padding, and keep the contrastive term from telling pairs apart by their length alone.

    Args:
        batch_size: of all processes together
        lengths: tokens of each row
        seed: of the order
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
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

    def on_step_end(self, args, state, control, **kwargs):
        ends = state.global_step >= state.max_steps or control.should_training_stop
        if ends and args.logging_strategy == IntervalStrategy.STEPS:
            control.should_log = True


class SamplerEpoch(TrainerCallback):
    """Tells the sampler the epoch where Trainer does not reach it: after the skipped batches of a resumed run."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler = getattr(sampler, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch))


class TimeLimit(TrainerCallback):
    """Ends training after a number of minutes, as if the last step had been reached.

    Where the steps will not all fit, time counts instead of them: the schedules of the learning rate and of the
    weights move on with the share of the time that has passed, and come to their end with it. A machine that is fast
    enough never meets this, so that a seed gives one result there.
    """

    # Of the time, before the speed is judged: the first steps are slow.
    WARM_UP = 0.2

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.start, self.before = time.monotonic(), progress(state, lr_scheduler)

    def extend(self, seconds: float) -> None:
        """Leaves time out that was not spent on training."""
        self.start += seconds

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        spent = (time.monotonic() - self.start) / self.seconds if self.seconds else math.inf
        spent = torch.tensor(spent, device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(spent, 0)
        spent = spent.item()
        if spent >= 1:
            control.should_training_stop = True
        elif spent > self.WARM_UP and isinstance(lr_scheduler, LambdaLR):
            reached = self.before + (1 - self.before) * spent
            lr_scheduler.last_epoch = max(lr_scheduler.last_epoch, int(reached * state.max_steps))


def progress(state, lr_scheduler=None) -> float:
    """The share of the training that lies behind: of its steps, or of its time, see `TimeLimit`."""
    # The scheduler is what a checkpoint keeps of the time.
    reached = lr_scheduler.last_epoch if isinstance(lr_scheduler, LambdaLR) else 0
    return max(state.global_step, reached) / max(state.max_steps, 1)
