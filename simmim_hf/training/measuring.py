"""What a run of training measures beside its loss."""

from collections import defaultdict

import torch


class Meter:
    """Weighted means of named quantities since they were last read, over all processes."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor | float] = defaultdict(float)
        self.weights: dict[str, torch.Tensor | float] = defaultdict(float)

    def add(
        self, values: dict[str, torch.Tensor], weight: torch.Tensor | int, counts: torch.Tensor | None = None
    ) -> None:
        """Adds values, which count for nothing where `counts` is false."""
        for name, value in values.items():
            value = value.detach().float() * weight
            if counts is not None:
                value, weight = value.where(counts, 0.0), weight * counts
            self.sums[name] = self.sums[name] + value
            self.weights[name] = self.weights[name] + weight

    def read(self, accelerator) -> dict[str, float]:
        if not self.sums:
            return {}
        names = list(self.sums)
        options = {"dtype": torch.float32, "device": accelerator.device}
        local = [torch.as_tensor(part[name], **options) for name in names for part in (self.sums, self.weights)]
        total = accelerator.reduce(torch.stack(local), reduction="sum").view(-1, 2).tolist()
        self.__init__()
        return {name: sum / weight for name, (sum, weight) in zip(names, total, strict=True) if weight}
