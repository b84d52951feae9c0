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


def gradient_conflict(model, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How much the masked and the contrastive term want different things of the encoder.

    Args:
        model: the `SimMIMForPreTraining` that computed the terms
        terms: with `mlm_loss` and `contrastive_loss`, unweighted; their graph is kept

    Returns:
        `gradient_cosine` of their gradients over all encoder parameters, `mlm_gradient_norm` and
        `contrastive_gradient_norm`.
    """
    parameters = [parameter for parameter in model.base_model.parameters() if parameter.requires_grad]
    gradients = []
    for name in ("mlm_loss", "contrastive_loss"):
        parts = torch.autograd.grad(terms[name], parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
        gradient = torch.cat([part.flatten().float() for part in parts])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient, torch.distributed.ReduceOp.SUM)
            gradient /= torch.distributed.get_world_size()
        gradients.append(gradient)
    mlm, contrastive = gradients
    return {
        "gradient_cosine": torch.nn.functional.cosine_similarity(mlm, contrastive, dim=0),
        "mlm_gradient_norm": mlm.norm(),
        "contrastive_gradient_norm": contrastive.norm(),
    }
