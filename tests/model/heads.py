"""The heads of downstream tasks, on tiny encoders with random weights."""

import torch
from helpers import LENGTHS, NO_DROPOUT, ragged_batch, randomize, text_config

from simmim_hf import (
    SimMIMConfig,
    SimMIMForMultipleChoice,
    SimMIMForQuestionAnswering,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
)

HEADS = {
    SimMIMForSequenceClassification: "classifier",
    SimMIMForTokenClassification: "classifier",
    SimMIMForQuestionAnswering: "qa_outputs",
    SimMIMForMultipleChoice: "classifier",
}
CLASSES = 3
SAME_DROPOUT = {"bert": NO_DROPOUT, "roberta": NO_DROPOUT, "modernbert": {}, "llama": {}}


def named(value):
    return value.__name__.removeprefix("SimMIMFor") if isinstance(value, type) else str(value)


def tiny_head(head, family="bert", attn_implementation=None, backbone=None, **options):
    """A head on random weights without dropout; its own weights are random too."""
    config = SimMIMConfig(
        text_config=text_config(family, **{**SAME_DROPOUT[family], **(backbone or {})}),
        **{"num_labels": CLASSES, **options},
    )
    if attn_implementation:
        config._attn_implementation = attn_implementation
    torch.manual_seed(0)
    return randomize(head(config))


def inputs_of(head, side="right", seed=0):
    """input_ids and attention_mask; two choices a text for multiple choice."""
    batch = {k: v for k, v in ragged_batch(LENGTHS, side, seed=seed).items() if k in ("input_ids", "attention_mask")}
    if head is SimMIMForMultipleChoice:
        return {name: torch.stack([column, column.roll(1, 0)], 1) for name, column in batch.items()}
    return batch


def labels_of(head):
    ids = ragged_batch(LENGTHS)["input_ids"]
    return {
        SimMIMForSequenceClassification: {"labels": torch.tensor([0, 2, 1, 2])},
        SimMIMForTokenClassification: {"labels": (ids % CLASSES).masked_fill(ids == 0, -100)},
        SimMIMForQuestionAnswering: {
            "start_positions": torch.tensor([2, 0, 4, 1]),
            "end_positions": torch.tensor([3, 1, 9, 1]),
        },
        SimMIMForMultipleChoice: {"labels": torch.tensor([0, 1, 1, 0])},
    }[head]
