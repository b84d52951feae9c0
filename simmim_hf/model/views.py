"""Views: the sequences of a batch that the encoder reads, made of the columns of the collator."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .losses import IGNORE_INDEX

Batch = Mapping[str, torch.Tensor | None]  # columns by the names of `SimMIMForPreTraining.forward`


class View(NamedTuple):
    """Sequences that go through the encoder together, and the tokens that are predicted in them.

    Attributes:
        name: `original`, `masked`, `positive`, `negatives`, or `causal` for a pass from left to right
        input_ids, attention_mask, token_type_ids: (rows, length)
        targets: (rows, length), the token to predict at each position, -100 for none
    """

    name: str
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    @classmethod
    def from_batch(cls, name: str, batch: Batch, prefix: str = "") -> "View":
        """The columns of a batch whose names begin with `prefix`."""
        input_ids = required_column(batch, f"{prefix}input_ids", "reads it")
        attention_mask = batch.get(f"{prefix}attention_mask")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return cls(name, input_ids, attention_mask, batch.get(f"{prefix}token_type_ids"))

    def rows(self, start: int, stop: int) -> "View":
        """Some of the rows, (stop - start, length)."""
        return self._map(lambda column: column[start:stop])  # (rows, length) -> (stop - start, length)

    def with_empty_row(self) -> "View":
        """One more row, which is real and not predicted."""
        added = self._map(lambda column: F.pad(column, (0, 0, 0, 1)))  # (rows + 1, length)
        added.attention_mask[-1] = 1  # a row of padding would have no states, and no gradient
        if added.targets is not None:
            added.targets[-1] = IGNORE_INDEX
        return added

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "View":
        """The view with a function applied to every column that it has."""
        changed = {}
        for name, column in self._asdict().items():
            if isinstance(column, torch.Tensor):  # neither the name nor a column that is not there
                changed[name] = function(column)
        return self._replace(**changed)

    @property
    def num_tokens(self) -> torch.Tensor:
        """Real tokens, a scalar."""
        return self.attention_mask.sum()

    @property
    def is_predicted(self) -> torch.Tensor:
        """(rows, length), bool"""
        has_target = self.filled("targets", IGNORE_INDEX) != IGNORE_INDEX
        return has_target & self.attention_mask.bool()

    def filled(self, name: str, fill: int) -> torch.Tensor:
        """(rows, length), a column, or `fill` everywhere where there is none"""
        column = getattr(self, name)
        if column is None:
            column = torch.full_like(self.input_ids, fill)
        return column


# Columns of one shape, by the ids that they belong to.
ALIKE = {
    "input_ids": ("attention_mask", "masked_input_ids", "labels", "token_type_ids"),
    "positive_input_ids": ("positive_attention_mask", "positive_labels"),
    "negative_input_ids": ("negative_attention_mask",),
}


def check_batch(batch: Batch) -> None:
    """Refuses columns whose shapes or types do not fit together.

    Raises:
        ValueError: the message names the column.
    """
    given = {name: column for name, column in batch.items() if column is not None}
    for ids_name, others in ALIKE.items():
        if ids_name not in given:
            continue
        # The ids themselves have to be integers too.
        for name in (ids_name, *others):
            if name in given:
                check_integers(name, given[name])
                check_shape(name, given[name], given[ids_name].shape, reason=f"as `{ids_name}` has")
    # A positive may be of another length, and hard negatives of another number too.
    if {"input_ids", "positive_input_ids"} <= given.keys():
        num_rows = len(given["input_ids"])
        num_positives = len(given["positive_input_ids"])
        if num_positives != num_rows:
            raise ValueError(
                f"`positive_input_ids` has {num_positives} rows: give as many as `input_ids` has, {num_rows}."
            )


def check_shape(name: str, column: torch.Tensor, *shapes: tuple[int, ...], reason: str) -> None:
    """Refuses a column of none of the shapes.

    Raises:
        ValueError: the message names the column, its shape and the shapes.
    """
    if column.shape not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes))  # each once
        raise ValueError(f"`{name}` has the shape {tuple(column.shape)}: it must be {expected}, {reason}.")


def check_integers(name: str, column: torch.Tensor) -> None:
    """Refuses ids that are no whole numbers. A mask may be of any type.

    Raises:
        ValueError: the message names the column and its type.
    """
    if name.endswith("attention_mask"):
        return
    # A bool is a mask in a wrong place.
    if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool:
        raise ValueError(f"`{name}` is {column.dtype}: it must hold integers, such as torch.int64.")


def required_column(batch: Batch, name: str, reason: str, options: str = "") -> torch.Tensor:
    """A column of a batch.

    Args:
        reason, options: why the objective needs it, and the options of the collator that makes it

    Raises:
        ValueError: it is missing.
    """
    column = batch.get(name)
    if column is None:
        raise ValueError(
            f"`{name}` is missing, and the objective {reason}: make the batches with `DataCollatorForSimMIM{options}`."
        )
    return column


def next_tokens(view: View) -> torch.Tensor:
    """(rows, length): the token that follows each, -100 where there is none."""
    ids = view.input_ids
    is_real = view.attention_mask.bool()
    targets = torch.full_like(ids, IGNORE_INDEX)  # (rows, length)
    # Shifted by one to the left; nothing follows the last token, and padding is neither read nor predicted.
    is_followed = is_real[:, :-1] & is_real[:, 1:]  # (rows, length - 1)
    targets[:, :-1] = torch.where(is_followed, ids[:, 1:], IGNORE_INDEX)
    return targets


def stack(tensors: list[torch.Tensor], fill: int = 0) -> torch.Tensor:
    """Several (rows, length) tensors below each other, padded on the right to one length: (all rows, longest)."""
    longest = max(tensor.shape[1] for tensor in tensors)
    # (rows, length) -> (rows, longest) each
    padded = []
    for tensor in tensors:
        padded.append(F.pad(tensor, (0, longest - tensor.shape[1]), value=fill))
    return torch.cat(padded)


def stack_views(views: list[View]) -> View:
    """Views below each other as one, in their order: (rows of all views, longest length)."""
    token_type_ids = None
    if views[0].token_type_ids is not None:  # then a view without types, such as the negatives, has type 0
        token_type_ids = stack([view.filled("token_type_ids", 0) for view in views])
    return View(
        name=" + ".join(view.name for view in views),
        input_ids=stack([view.input_ids for view in views]),
        attention_mask=stack([view.attention_mask for view in views]),
        token_type_ids=token_type_ids,
        targets=stack([view.filled("targets", IGNORE_INDEX) for view in views], IGNORE_INDEX),
    )
