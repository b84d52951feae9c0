"""The options of a training: those of the method for every script, and those of `simmim pretrain`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta

from accelerate import PartialState
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_available

from ..model.configuration_simmim import (
    WEIGHTS,
    SimMIMConfig,
)
from ..options import check_number, is_number, option
from . import agreement


@dataclass
class SimMIMTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the options of the method, for `SimMIMTrainer`.

    Args:
        chunk_size: how many sequences go through the encoder at a time; a batch of any size needs the memory of one
            chunk, with the same gradients and a second forward. Default: the whole batch.
        weight_schedule: weights of the loss that change in training, by name: points (share of training, weight),
            between which the weight is interpolated. `{"contrastive_weight": [(0, 0), (0.3, 0), (0.3, 1)]}`, or the
            words `["contrastive_weight=0:0,0.3:0,0.3:1"]`, train the first 30 % without the contrastive term.
            Evaluation has the weights of the configuration.
        max_skipped_steps: a step whose loss or gradient is not finite changes neither weights nor optimizer; training
            stops when more than so many follow one another. float16 may begin with a few, until its scale fits.

    Raises:
        ValueError: a value that cannot work; the message names the remedy.
    """

    chunk_size: int | None = option(
        None, "Sequences that go through the encoder at a time: any batch size in the memory of one chunk."
    )
    weight_schedule: list[str] | None = option(
        None,
        "Weights that change in training, as points share_of_training:weight. An MLM-only phase: "
        "contrastive_weight=0:0,0.3:0,0.3:1.",
    )
    max_skipped_steps: int = option(
        20, "Steps in a row whose loss or gradient may be not finite; they are skipped, and one more stops the run."
    )

    def __post_init__(self) -> None:
        if self.deepspeed and not is_deepspeed_available():
            # transformers finds it out later, and leaves a half-made configuration for the next model to stumble on.
            raise ValueError("--deepspeed needs a package: pip install deepspeed, or leave it out.")
        refuse_compiling(self)
        agreement.leave_store_of_earlier_start()
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # transformers hands the timeout over for GPUs only, and takes the process group that it finds.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
        super().__post_init__()
        self.weight_schedule = read_weight_schedule(self.weight_schedule)  # type: ignore[assignment]  # was words


METHOD_OPTIONS = [field_.name for field_ in fields(SimMIMTrainingArguments)][len(fields(TrainingArguments)) :]


def refuse_compiling(args: TrainingArguments) -> None:
    """Refuses `torch.compile`, in whichever way it is asked for.

    Raises:
        ValueError: it is.
    """
    for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        if getattr(args, name) not in (None, False):
            raise ValueError(
                f"--{name}: batches without padding have new lengths at every step, and each would be compiled anew, "
                "which takes longer than training. Leave it out."
            )


def read_weight_schedule(schedule: dict | list[str] | None) -> dict[str, list[tuple[float, float]]] | None:
    """The points of each weight, also from words such as `contrastive_weight=0:0,0.3:1`."""
    if schedule is None or isinstance(schedule, dict):
        return schedule
    read: dict = {}
    for word in schedule:
        try:
            name, points = word.split("=")
            read[name] = [tuple(map(float, point.split(":", 1))) for point in points.split(",")]
        except ValueError as error:
            raise ValueError(
                f"--weight_schedule `{word}` is not a weight and its points, such as contrastive_weight=0:0,0.3:1."
            ) from error
    return read


def _is_point(point) -> bool:
    return isinstance(point, Sequence) and len(point) == 2 and all(map(is_number, point))


def check_method_options(args: TrainingArguments, config: SimMIMConfig) -> None:
    """Refuses options of the method that cannot work with this model.

    Raises:
        ValueError: a chunk of less than 1, a weight that does not exist or is 0 in the configuration, or points out of
            order or range.
    """
    if args.chunk_size is not None:
        check_number("chunk_size", args.chunk_size, least=1, kind=int)
    check_number("max_skipped_steps", args.max_skipped_steps, least=0, kind=int)
    for name, points in (args.weight_schedule or {}).items():
        if name not in WEIGHTS:
            raise ValueError(f"weight_schedule: there is no weight `{name}`. There are: {', '.join(WEIGHTS)}.")
        if not getattr(config, name):
            raise ValueError(
                f"weight_schedule: `{name}` is 0 in the configuration, so its term has no evaluation. "
                "Set it to the weight that training ends with."
            )
        if not (isinstance(points, Sequence) and all(map(_is_point, points))):
            raise ValueError(f"weight_schedule: `{name}` has {points!r}: give points (share of training, weight).")
        shares = [share for share, _ in points]
        if not points or shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1 or min(w for _, w in points) < 0:
            raise ValueError(
                f"weight_schedule: `{name}` has the points {points}; they must be (share of training, weight) with "
                "ascending shares from 0 to 1 and weights of 0 or above, such as [(0, 0), (0.3, 0), (0.3, 1)]."
            )


# The command `simmim pretrain`
