"""What training costs: tokens of text, floating-point operations, memory."""

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .modeling_simmim import SimMIMForPreTraining
from .trainer import SimMIMTrainer

SAMPLED_BATCHES = 32


def training_flops(model: SimMIMForPreTraining, batch: dict[str, torch.Tensor]) -> float:
    """The floating-point operations that one training step on a batch needs, forward and backward:

        sum over the readings r of  6 * P * T_r + 12 * L * H * S_r     and     6 * P_head * C

    P are the parameters of the encoder without its embedding tables and P_head those of the language-model head, which
    each token goes through once (2 operations a parameter forward, 4 backward: Kaplan et al. 2020, section 2.1). T_r
    are the real tokens of a reading and S_r the sum of their squared sequence lengths, for attention scores and their
    use over L layers of width H. C are the positions where a token is predicted. The readings are those that the
    objective has: the original, the masked copy, another copy, hard negatives, and once from left to right; a term
    whose weight is 0 reads nothing. Left-to-right and windowed attention count like full attention. Not counted are
    pooling, projection and similarities, far below a percent, and what is computed twice to save memory.

    Args:
        model: with the weights of the loss at this moment in its configuration
        batch: what `DataCollatorForSimMIM` makes, `attention_mask` and `labels` (batch, length)
    """
    config, mask = model.config, batch["attention_mask"]
    siamese = [mask] if config.contrastive_weight else []
    if config.mlm_weight or (config.contrastive_weight and config.positive_view == "masked"):
        siamese.append(mask)
    if config.contrastive_weight and config.positive_view != "masked":
        siamese.append(batch.get("positive_attention_mask", mask))
    if config.contrastive_weight and "negative_attention_mask" in batch:
        siamese.append(batch["negative_attention_mask"])
    readings = siamese + ([mask] if config.clm_weight else [])
    lengths = torch.cat([mask.new_zeros(1), *(reading.sum(1) for reading in readings)]).double()
    predicted = (batch["labels"] != -100).sum().item() if config.mlm_weight else 0
    if config.clm_weight:
        predicted += (mask.sum(1) - 1).clamp(min=0).sum().item()
    text_config, encoder = config.text_config, model.simmim.encoder
    tables = {id(p) for module in encoder.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    parameters = sum(p.numel() for p in encoder.parameters() if id(p) not in tables)
    attention = 12 * text_config.num_hidden_layers * text_config.hidden_size * lengths.square().sum().item()
    head = sum(p.numel() for p in model.lm_head.parameters())
    return 6 * parameters * lengths.sum().item() + attention + 6 * head * predicted


def flops_of_step(trainer: SimMIMTrainer, batch: dict[str, torch.Tensor]) -> float:
    """`training_flops` with the weights that the trainer's schedule has at this step."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.scheduled_weights(model.config):
        return training_flops(model, batch)


def tokens_of_steps(trainer: SimMIMTrainer) -> Iterator[int]:
    """The tokens of text of each optimizer step, over all processes, in the order of the training to come."""
    lengths = np.asarray(trainer.train_dataset["length"][:])
    for batches in epochs(trainer):
        size = trainer.args.gradient_accumulation_steps
        steps = [batches[start : start + size] for start in range(0, len(batches), size)]
        counts = torch.tensor([sum(int(lengths[batch].sum()) for batch in step) for step in steps])
        yield from trainer.accelerator.reduce(counts.to(trainer.args.device)).tolist()


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


def flops_per_token(trainer: SimMIMTrainer) -> float:
    """Operations for each token of text, from batches of all over the first epoch; weights follow their schedule."""
    batches = next(epochs(trainer))
    sampled = [batches[i] for i in np.linspace(0, len(batches) - 1, min(SAMPLED_BATCHES, len(batches))).astype(int)]
    trainer.state.max_steps, flops, tokens = len(sampled), 0.0, 0
    for step, rows in enumerate(sampled):
        features = [trainer.train_dataset[row] for row in rows]
        trainer.state.global_step = step
        flops += flops_of_step(trainer, trainer.data_collator(features))
        tokens += sum(feature["length"] for feature in features)
    sums = torch.tensor([flops, tokens], dtype=torch.float64, device=trainer.args.device)
    flops, tokens = trainer.accelerator.reduce(sums).tolist()
    return flops / tokens


def reset_peak_memory(device: torch.device) -> None:
    """Begins a new measurement of `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError, AttributeError):  # only Linux has them
            ctypes.CDLL(None).malloc_trim(0)  # what earlier runs have freed counts no more
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes since `reset_peak_memory`: allocated on a GPU; else of the whole process, None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else None
    return None
