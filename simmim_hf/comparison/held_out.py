"""Held-out text on which every model is asked the same, whatever its objective, also while it trains."""

import dataclasses
import math
import time
from collections import defaultdict

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from ..data.collator import DataCollatorForSimMIM
from ..model.modeling_simmim import SimMIMForPreTraining

CURVE_POINTS = 8


class HeldOut:
    """Held-out text with masks that never change: every arm is asked the same, at every moment.

    Args:
        dataset: rows with `input_ids` and `length`
        collator: how the text is masked
    """

    def __init__(self, dataset: Dataset, collator: DataCollatorForSimMIM, batch_size: int) -> None:
        collator = dataclasses.replace(collator, positive_view="masked", corrupted_views="copy")
        order = np.argsort(dataset["length"][:], kind="stable")  # (rows,): batches of similar length
        self.batches = []
        for start in range(0, len(order), batch_size):
            rows = dataset.select(order[start : start + batch_size])
            self.batches.append(collator(rows.to_list()))

    @torch.no_grad()
    def measure(self, model: SimMIMForPreTraining) -> dict[str, float]:
        """`mlm_loss` and `mlm_accuracy`, also of a model that never trained its head; `contrastive_accuracy`, how
        often the masked copy nearest to a text is its own among those of its batch, all of similar length; and
        `perplexity` of an objective that has the causal term."""
        objective = dataclasses.replace(
            model.config.objective,
            mlm_weight=1.0,
            contrastive_weight=1.0,
            positive_view="masked",
            corrupted_views="copy",
        )
        was_training = model.training
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        model.eval()
        for masked in self.batches:
            batch = {name: column.to(model.device) for name, column in masked.items()}  # (batch, length) each
            outputs = model(**batch, objective=objective)
            for name, count in outputs.counts.items():  # a mean -> its sum
                sums[name] += outputs[name].item() * count.item()
                counts[name] += count.item()
        model.train(was_training)
        means = {name: total / max(counts[name], 1) for name, total in sums.items()}
        del means["contrastive_loss"]  # arms differ in the temperature and form of theirs
        if "clm_loss" in means:
            means["perplexity"] = math.exp(min(means.pop("clm_loss"), 700.0))
        return means


class Recorder(TrainerCallback):
    """Measures an arm on its way, and notes in the log how long it has trained, without the time of measuring."""

    def __init__(self, trainer: Trainer, held_out: HeldOut | None, tokens: list[int], title: str) -> None:
        self.trainer = trainer
        self.held_out = held_out
        self.tokens = tokens
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        before = [entry["training_seconds"] for entry in state.log_history if "training_seconds" in entry]
        trained = before[-1] if before else 0
        self.started = time.monotonic() - trained
        steps = np.linspace(0, state.max_steps, CURVE_POINTS + 1).round().astype(int)  # (points,)
        self.due = {int(step) for step in steps if step >= state.global_step}
        self.bar = tqdm(
            desc=self.title,
            total=self.tokens[-1],
            initial=self.tokens[state.global_step],
            unit="tok",
            unit_scale=True,
            disable=not state.is_world_process_zero or args.disable_tqdm,
        )
        if state.global_step == 0:
            self._measure(state, control)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update(self.tokens[state.global_step] - self.bar.n)
        self._measure(state, control)

    def on_log(self, args, state, control, **kwargs) -> None:
        state.log_history[-1]["training_seconds"] = time.monotonic() - self.started

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()

    def _measure(self, state, control) -> None:
        if state.global_step not in self.due or self.held_out is None:
            return
        begun = time.monotonic()
        metrics = self.held_out.measure(self.trainer.accelerator.unwrap_model(self.trainer.model))
        self.started += time.monotonic() - begun
        log_is_due = control.should_log
        self.trainer.log({f"held_out_{name}": value for name, value in metrics.items()})
        control.should_log = log_is_due
