"""A pass of sequences through the encoder, and how it is made of the columns of a batch."""

from typing import NamedTuple

import torch
from torch import nn

from .losses import IGNORE_INDEX


class Reading(NamedTuple):
    """One pass of sequences through the encoder, and what is predicted in it.

    Attributes:
        name: `original`, `masked`, `positive`, `negatives`, or `causal` for one from left to right
        input_ids, attention_mask, token_type_ids: (rows, length)
        targets: (rows, length), the token to predict at each position, -100 for none
    """

    name: str
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    @classmethod
    def of(cls, name: str, batch: dict, prefix: str = "") -> "Reading":
        """The columns of a batch whose names begin with `prefix`."""
        input_ids, mask = batch[f"{prefix}input_ids"], batch.get(f"{prefix}attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        return cls(name, input_ids, mask, batch.get(f"{prefix}token_type_ids"))

    def columns(self) -> dict[str, torch.Tensor | None]:
        return {name: column for name, column in self._asdict().items() if name != "name"}

    @property
    def is_predicted(self) -> torch.Tensor:
        """(rows, length), bool"""
        return (self.filled("targets", IGNORE_INDEX) != IGNORE_INDEX) & self.attention_mask.bool()

    def filled(self, name: str, fill: int) -> torch.Tensor:
        """(rows, length), a column, or `fill` everywhere where there is none"""
        column = getattr(self, name)
        return torch.full_like(self.input_ids, fill) if column is None else column


# The columns of a batch that have one shape, behind the ids that they belong to.
ALIKE = {
    "input_ids": ("attention_mask", "masked_input_ids", "labels", "token_type_ids"),
    "positive_input_ids": ("positive_attention_mask", "positive_labels"),
    "negative_input_ids": ("negative_attention_mask",),
}


def check_batch(batch: dict[str, torch.Tensor | None]) -> None:
    """Refuses columns of other shapes or types than those of one batch: they would be read, and mean something else.

    Raises:
        ValueError: the message names the column.
    """
    given = {name: column for name, column in batch.items() if column is not None}
    for name, others in ALIKE.items():
        for column in (column for column in (name, *others) if {name, column} <= given.keys()):
            check_integers(column, given[column])
            check_shape(column, given[column], given[name].shape, reason=f"as `{name}` has")
    if "positive_input_ids" in given and len(given["positive_input_ids"]) != len(given["input_ids"]):
        raise ValueError(
            f"`positive_input_ids` has {len(given['positive_input_ids'])} rows: give as many as `input_ids` has, "
            f"{len(given['input_ids'])}."
        )


def check_shape(name: str, column: torch.Tensor, *shapes: tuple[int, ...], reason: str) -> None:
    if column.shape not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"`{name}` has the shape {tuple(column.shape)}: it must be {expected}, {reason}.")


def check_integers(name: str, column: torch.Tensor) -> None:
    """Refuses ids that are no whole numbers. A mask may be of any type."""
    is_mask = name.endswith("attention_mask")
    if not is_mask and (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool):
        raise ValueError(f"`{name}` is {column.dtype}: it must hold integers, such as torch.int64.")


def needed(batch: dict, name: str, reason: str, options: str = "") -> torch.Tensor:
    if batch.get(name) is None:
        raise ValueError(
            f"`{name}` is missing, and the objective {reason}: make the batches with `DataCollatorForSimMIM{options}`."
        )
    return batch[name]


def next_tokens(reading: Reading) -> torch.Tensor:
    """(rows, length): the token that follows each, -100 where there is none."""
    ids, real = reading.input_ids, reading.attention_mask.bool()
    targets = torch.full_like(ids, IGNORE_INDEX)
    targets[:, :-1] = torch.where(real[:, :-1] & real[:, 1:], ids[:, 1:], IGNORE_INDEX)
    return targets


def stack(tensors: list[torch.Tensor], fill: int = 0) -> torch.Tensor:
    """Rows of several (rows, length) tensors under each other, padded on the right to one length."""
    length = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=fill) for tensor in tensors])
