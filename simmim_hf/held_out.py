"""The same questions about held-out text to every model, whatever its objective is."""

import contextlib
import dataclasses
import math

import numpy as np
import torch
from datasets import Dataset

from .data_collator import DataCollatorForSimMIM
from .modeling_simmim import SimMIMForPreTraining


class HeldOut:
    """Held-out text with masks that never change: every arm is asked the same, at every moment.

    Args:
        dataset: rows with `input_ids` and `length`
        collator: how the text is masked; of a schedule its end
    """

    def __init__(self, dataset: Dataset, collator: DataCollatorForSimMIM, batch_size: int):
        ratio = collator.mlm_probability
        collator = dataclasses.replace(
            collator, positive_view="masked", mlm_probability=ratio[1] if isinstance(ratio, tuple) else ratio
        )
        order = np.argsort(dataset["length"][:], kind="stable")
        starts = range(0, len(order), batch_size)
        self.batches = [collator(dataset.select(order[start : start + batch_size]).to_list()) for start in starts]

    @torch.no_grad()
    def measure(self, model: SimMIMForPreTraining) -> dict[str, float]:
        """`mlm_loss` and `mlm_accuracy`, also of a model that never trained its head; `contrastive_accuracy`, how
        often the masked copy nearest to a text is its own among those of its batch, all of similar length; and
        `perplexity` of an objective that has the causal term."""
        sums = {}
        with _all_terms(model):
            for batch in self.batches:
                outputs = model(**{name: column.to(model.device) for name, column in batch.items()})
                counts = {
                    "mlm_loss": (batch["labels"] != -100).sum().item(),
                    "clm_loss": (batch["attention_mask"].sum(1) - 1).clamp(min=0).sum().item(),
                    "contrastive_accuracy": len(batch["labels"]),
                }
                counts["mlm_accuracy"] = counts["mlm_loss"]
                for name, count in counts.items():
                    if outputs.get(name) is not None:
                        total, things = sums.get(name, (0.0, 0))
                        sums[name] = total + outputs[name].item() * count, things + count
        means = {name: total / max(things, 1) for name, (total, things) in sums.items()}
        if "clm_loss" in means:
            means["perplexity"] = math.exp(min(means.pop("clm_loss"), 700.0))
        return means


@contextlib.contextmanager
def _all_terms(model: SimMIMForPreTraining):
    """The model in evaluation mode, computing the masked and the contrastive term whatever its objective is."""
    config, training, uncertainty = model.config, model.training, model.uncertainty
    asked = {"mlm_weight": 1.0, "contrastive_weight": 1.0, "positive_view": "masked"}
    configured = {name: getattr(config, name) for name in asked}
    model.eval()
    model.uncertainty = None
    for name, value in asked.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in configured.items():
            setattr(config, name, value)
        model.uncertainty = uncertainty
        model.train(training)
