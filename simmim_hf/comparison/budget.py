"""What training may use, and what it costs: tokens, floating-point operations, memory."""

import contextlib
import ctypes
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from ..model.configuration_simmim import Objective
from ..model.modeling_simmim import SimMIMForPreTraining
from ..training.trainer import SimMIMTrainer

SAMPLED_BATCHES = 32
MOST_PASSES = 1000  # each is planned batch by batch


@dataclass(frozen=True)
class Budget:
    """What each run may use: an amount of `tokens` that the encoder reads, of `text` (its tokens counted once, however
    often the encoder reads them) or of `flops`."""

    unit: str
    amount: float

    @classmethod
    def of(cls, **amounts: float | None) -> "Budget | None":
        """The one that is given, or None. Raises a ValueError for two, or for one that is not above 0."""
        given = {unit: amount for unit, amount in amounts.items() if amount is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(f'--budget_{unit}' for unit in given)}: give one budget.")
        for unit, amount in given.items():
            if not 0 < amount < math.inf:
                raise ValueError(f"--budget_{unit} is {amount:g}: it must be above 0.")
            return cls(unit, amount)
        return None

    def plan(self, trainer: SimMIMTrainer, rate: "Rate") -> list[int]:
        """The tokens that are read before each step that the budget pays for, and after the last.

        Raises:
            ValueError: it pays for more than `MOST_PASSES` over the text.
        """
        passes = self.amount / (rate.cost * sum(trainer.train_dataset["length"][:]))
        if passes > MOST_PASSES:
            raise ValueError(
                f"--budget_{self.unit} {self.amount:g} is enough for {passes:.2g} passes over the text, and "
                f"{MOST_PASSES:,} are the most: give less, or more text."
            )
        counts = tokens_of_steps(trainer)
        text = [0]  # tokens of text before each step
        while text[-1] * rate.cost < self.amount:
            text.append(text[-1] + next(counts))
        return [round(tokens * rate.readings) for tokens in text]


@dataclass(frozen=True)
class Rate:
    """What an arm does with a token of text: how many tokens its encoder reads for it (`readings`), and its
    `cost` in the unit of the budget."""

    readings: float
    cost: float


class MeasuredTrainer(SimMIMTrainer):
    """A Trainer that counts its operations by `training_flops`."""

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> float:
        return training_flops(self.accelerator.unwrap_model(self.model), inputs, self.current_objective())


def training_flops(
    model: SimMIMForPreTraining, batch: dict[str, torch.Tensor], objective: Objective | None = None
) -> float:
    """The floating-point operations that one training step on a batch needs, forward and backward:

        sum over the views r of  6 * P * T_r + 12 * L * H * S_r     and     6 * P_head * C

    P are the parameters of the encoder without its embedding tables and P_head those of the language-model head, which
    each token goes through once (2 operations a parameter forward, 4 backward: Kaplan et al. 2020, section 2.1). T_r
    are the real tokens of a view and S_r the sum of their squared sequence lengths, for attention scores and their
    use over L layers of width H. C are the positions where a token is predicted. The views are those of the
    objective (`SimMIMForPreTraining.views`). Left-to-right and windowed attention count like full attention. Not
    counted are pooling, projection and similarities, far below a percent, and what is computed twice to save memory.

    Args:
        batch: what `DataCollatorForSimMIM` makes
        objective: default: that of the model's configuration
    """
    views = model.views(**batch, objective=objective)
    lengths = torch.cat([view.attention_mask.sum(1) for view in views]).double()  # (rows of all views,)
    predicted = sum(view.is_predicted.sum().item() for view in views)
    text_config: PreTrainedConfig = model.config.text_config
    products = 6 * _size_without_tables(model.simmim.encoder) * lengths.sum().item()
    attention = 12 * text_config.num_hidden_layers * text_config.hidden_size * lengths.square().sum().item()
    head = 6 * sum(_size(parameter) for parameter in model.lm_head.parameters()) * predicted
    return products + attention + head


def _size_without_tables(encoder: nn.Module) -> int:
    """The numbers in an encoder, but for its embedding tables: to look up a row takes no product."""
    embeddings = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    tables = {id(parameter) for module in embeddings for parameter in module.parameters()}
    return sum(_size(parameter) for parameter in encoder.parameters() if id(parameter) not in tables)


def _size(parameter: nn.Parameter) -> int:
    """Numbers in a parameter, also in one of which DeepSpeed holds a shard here."""
    return getattr(parameter, "ds_numel", parameter.numel())


def tokens_of_steps(trainer: SimMIMTrainer) -> Iterator[int]:
    """The tokens of text of each optimizer step, over all processes, in the order of the training to come."""
    lengths = np.asarray(trainer.train_dataset["length"][:])  # (rows of the text,)
    for batches in epochs(trainer):
        size = trainer.args.gradient_accumulation_steps
        of_batches = [int(lengths[rows].sum()) if rows else 0 for rows in batches]
        of_steps = [sum(of_batches[start : start + size]) for start in range(0, len(batches), size)]
        counts = torch.tensor(of_steps, device=trainer.args.device)  # (steps of the epoch,), of this process
        yield from trainer.accelerator.reduce(counts).tolist()  # the sum over all processes


def epochs(trainer: SimMIMTrainer) -> Iterator[list[list[int]]]:
    """For each epoch the rows of each batch of this process, in the order of the training to come."""
    epoch = 0
    while True:
        sampler = loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        while hasattr(sampler, "batch_sampler") or hasattr(sampler, "sampler"):
            sampler = getattr(sampler, "batch_sampler", None) or sampler.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        yield [list(batch) for batch in loader.batch_sampler]
        epoch += 1


def sampled_rates(trainer: SimMIMTrainer) -> dict[str, float]:
    """The cost of a token of text in each unit, over batches from all of the first epoch; weights follow their
    schedule."""
    batches = next(epochs(trainer))
    places = np.linspace(0, len(batches) - 1, min(SAMPLED_BATCHES, len(batches))).astype(int)
    model = trainer.accelerator.unwrap_model(trainer.model)
    flops = 0.0
    read = 0
    text = 0
    for step, place in enumerate(places):
        features = [trainer.train_dataset[row] for row in batches[place]]
        batch = trainer.data_collator(features)
        objective = trainer.objective_at(step / len(places))
        flops += training_flops(model, batch, objective)
        read += sum(view.attention_mask.sum().item() for view in model.views(**batch, objective=objective))
        text += sum(feature["length"] for feature in features)
    sums = torch.tensor([flops, read, text], dtype=torch.float64, device=trainer.args.device)  # (3,)
    all_flops, all_read, all_text = trainer.accelerator.reduce(sums).tolist()  # over all processes
    return {"flops": all_flops / all_text, "tokens": all_read / all_text, "text": 1.0}


def reset_peak_memory(device: torch.device) -> None:
    """Begins a new measurement of `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError, AttributeError):  # only Linux has them
            ctypes.CDLL(None).malloc_trim(0)  # memory that earlier runs have freed no longer counts
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes since `reset_peak_memory`: allocated on a GPU; else of the whole process, None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else None
    return None
