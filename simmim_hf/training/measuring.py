"""What a run of training measures beside its loss."""

from collections import defaultdict

import torch


class Meter:
    """Weighted means of named metrics since they were last read, over all processes.

    They are summed in float64, so that a mean is the same however many processes share the sum.
    """

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor | float] = defaultdict(float)
        self.weights: dict[str, torch.Tensor | float] = defaultdict(float)

    def add(
        self, values: dict[str, torch.Tensor], weight: torch.Tensor | int, counts: torch.Tensor | None = None
    ) -> None:
        """Adds values, which count for nothing where `counts` is false or `weight` is 0, but are named all the same:
        all processes have to read the same names."""
        if counts is not None:
            weight = weight * counts
        for name, value in values.items():
            weighted = _precise(value.detach()) * weight
            if isinstance(weight, torch.Tensor):
                weighted = weighted.where(weight != 0, 0.0)
            elif weight == 0:  # a number stays one: a tensor of it would make a GPU wait
                weighted = torch.zeros_like(weighted)
            self.sums[name] = self.sums[name] + weighted
            self.weights[name] = self.weights[name] + weight

    def read(self, accelerator) -> dict[str, float]:
        if not self.sums:
            return {}
        names = list(self.sums)
        parts = [part[name] for name in names for part in (self.sums, self.weights)]
        local = [_precise(torch.as_tensor(part, device=accelerator.device)) for part in parts]
        total = accelerator.reduce(torch.stack(local), reduction="sum").view(-1, 2).tolist()
        self.sums.clear()
        self.weights.clear()
        return {name: sum / weight for name, (sum, weight) in zip(names, total, strict=True) if weight}


def _precise(value: torch.Tensor) -> torch.Tensor:
    """float64, where the device has it."""
    if value.device.type == "mps":
        return value.float()
    return value.double()
