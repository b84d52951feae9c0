"""Negatives beyond the batch: the vectors of the batches before (cross-batch memory, Wang et al. 2020)."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ..model.losses import gather

FILE = "queue.safetensors"


class VectorQueue:
    """The vectors of the last sequences, of all processes and the same in all (arXiv 1912.06798, section 3.2).

    Args:
        size: how many sequences; 0 keeps none

    Attributes:
        pairs: (queue, 2, dim), both views of each sequence, the oldest first; None as long as there are none
    """

    def __init__(self, size: int):
        self.size, self.pairs = size, None

    def add(self, originals: torch.Tensor, positives: torch.Tensor) -> None:
        """Adds the vectors of a batch, (batch, dim) each; in all processes, whose batches may differ in size."""
        if not self.size:
            return
        pairs = torch.stack([originals, positives], dim=1).detach()  # (batch, 2, dim)
        pairs = gather(pairs.flatten(1))[0].unflatten(1, pairs.shape[1:])  # (batch of all processes, 2, dim)
        pairs = pairs[pairs.isfinite().flatten(1).all(1)]  # one step is skipped for what is not, and not all after it
        self.pairs = torch.cat([pairs[:0] if self.pairs is None else self.pairs, pairs])[-self.size :]

    def save(self, folder: Path) -> None:
        if self.pairs is not None:
            (folder / FILE).write_bytes(save({"pairs": self.pairs}))  # save_file lets no other user read it

    def load(self, folder: Path, device: torch.device) -> None:
        """Takes what `save` wrote into a checkpoint; nothing where it had no queue."""
        if self.size and (folder / FILE).is_file():
            self.pairs = load_file(folder / FILE)["pairs"][-self.size :].to(device)
