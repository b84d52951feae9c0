"""Held-out text on which every model is asked the same, whatever its objective, also while it trains."""

import dataclasses
import math
import time

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import TrainerCallback

from ..data.collator import DataCollatorForSimMIM
from ..model.modeling_simmim import SimMIMForPreTraining

CURVE_POINTS = 8


class HeldOut:
    """Held-out text with masks that never change: every arm is asked the same, at every moment.

    Args:
        dataset: rows with `input_ids` and `length`
        collator: how the text is masked
    """

    def __init__(self, dataset: Dataset, collator: DataCollatorForSimMIM, batch_size: int):
        collator = dataclasses.replace(collator, positive_view="masked", corrupted_views="copy")
        order = np.argsort(dataset["length"][:], kind="stable")
        starts = range(0, len(order), batch_size)
        self.batches = [collator(dataset.select(order[start : start + batch_size]).to_list()) for start in starts]

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
        was_training, sums, counts = model.training, {}, {}
        model.eval()
        for batch in self.batches:
            batch = {name: column.to(model.device) for name, column in batch.items()}
            outputs = model(**batch, objective=objective)
            for name, count in model.counts(objective, **batch).items():
                sums[name] = sums.get(name, 0.0) + outputs[name].item() * count.item()
                counts[name] = counts.get(name, 0) + count.item()
        model.train(was_training)
        means = {name: total / max(counts[name], 1) for name, total in sums.items() if name != "contrastive_loss"}
        if "clm_loss" in means:
            means["perplexity"] = math.exp(min(means.pop("clm_loss"), 700.0))
        return means


class Recorder(TrainerCallback):
    """Measures an arm on its way, and notes in the log how long it has trained, without the time of measuring."""

    def __init__(self, trainer, held_out: HeldOut | None, tokens: list[int], title: str):
        self.trainer, self.held_out, self.tokens, self.title = trainer, held_out, tokens, title

    def on_train_begin(self, args, state, control, **kwargs):
        before = [entry["training_seconds"] for entry in state.log_history if "training_seconds" in entry]
        self.started = time.monotonic() - (before[-1] if before else 0)
        steps = np.linspace(0, state.max_steps, CURVE_POINTS + 1).round().astype(int)
        self.due = {int(step) for step in steps if step >= state.global_step}
        place = {"total": self.tokens[-1], "initial": self.tokens[state.global_step]}
        hidden = not state.is_world_process_zero or args.disable_tqdm
        self.bar = tqdm(desc=self.title, **place, unit="tok", unit_scale=True, disable=hidden)
        if state.global_step == 0:
            self._measure(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(self.tokens[state.global_step] - self.bar.n)
        self._measure(state, control)

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["training_seconds"] = time.monotonic() - self.started

    def on_train_end(self, args, state, control, **kwargs):
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
