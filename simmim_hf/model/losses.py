"""The terms of the SimMIM objective and its diagnostics: functions of tensors, on one process or on many.

Every loss is a sum with the number of its summands, so that the caller can take the mean over the whole batch, over
all processes, or over several micro-batches.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

IGNORE_INDEX = -100  # as a target: nothing is predicted


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float32 for half-precision tensors; float32 and float64 stay as they are."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor


def token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy -sum_i log P(target_i), for the masked and the causal term alike.

    Args:
        logits: (tokens, vocab)
        targets: (tokens,) token ids

    Returns:
        A scalar, 0 where there are no tokens.
    """
    return F.cross_entropy(at_least_float32(logits), targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """See `linear_cross_entropy`. The loss is a sum, so its gradient is known as soon as the logits are."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, tokens_at_once):
        device = hidden.device.type
        # Autocast ends at a custom function: cast by hand to the type in which it would multiply.
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # The gradients are filled in part by part, each where it is needed.
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.zeros_like(hidden) if needs_hidden else None  # (tokens, hidden)
        weight_grad = torch.zeros_like(weight) if needs_weight else None  # (vocab, hidden)
        bias_grad = torch.zeros_like(bias) if needs_bias else None  # (vocab,)
        # Sums are scalars in float32 at least: half precision cannot count beyond 2,048.
        loss_sum = at_least_float32(hidden.new_zeros(()))
        num_correct = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            cast_weight = weight.to(dtype)  # (vocab, hidden)
            cast_bias = None if bias is None else bias.to(dtype)  # (vocab,)
            for start in range(0, len(hidden), tokens_at_once):
                part = slice(start, start + tokens_at_once)
                states = hidden[part].to(dtype)  # (part, hidden)
                answers = targets[part, None]  # (part, 1)
                # The one large tensor, which is why the tokens come in parts: (part, vocab).
                logits = at_least_float32(F.linear(states, cast_weight, cast_bias))
                highest, likeliest = logits.max(-1, keepdim=True)  # (part, 1) each
                num_correct += (likeliest == answers).sum()
                # From here on everything happens in the memory of the logits, which turn into their own gradient.
                logits -= highest  # softmax is the same, and the exponential stays in range
                answer_logits = logits.gather(-1, answers)  # (part, 1)
                norm = logits.exp_().sum(-1, keepdim=True)  # (part, 1)
                loss_sum += (norm.log() - answer_logits).sum()
                logits /= norm  # now the probabilities
                logits.scatter_add_(-1, answers, torch.full_like(norm, -1))  # now d loss / d logits
                # The chain rule through logits = states @ weight.T + bias.
                if bias_grad is not None:
                    bias_grad += logits.sum(0)  # (part, vocab) -> (vocab,)
                logits = logits.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = logits @ cast_weight  # (part, vocab) @ (vocab, hidden)
                if weight_grad is not None and dtype == weight.dtype:
                    weight_grad.addmm_(logits.T, states)  # (vocab, part) @ (part, hidden)
                elif weight_grad is not None:
                    weight_grad += logits.T @ states  # summed over the parts in the precision of the weights
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(num_correct)
        return loss_sum, num_correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale, _):
        # `scale` is the gradient of the sum, a scalar: 1 / count for a mean.
        gradients = [None if gradient is None else gradient * scale for gradient in ctx.saved_tensors]
        return *gradients, None, None  # none of the targets and of the size of a part


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, tokens_at_once: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_cross_entropy` of the logits `hidden @ weight.T + bias`, which exist for a few tokens at a time only.

    Args:
        hidden: (tokens, hidden)
        weight, bias: (vocab, hidden) and (vocab,) of the output projection
        targets: (tokens,) token ids
        tokens_at_once: how many tokens have their logits in memory together

    Returns:
        The loss, a scalar, 0 where there are no tokens; and how many targets have the highest logit.
    """
    # torch has a function of this name from 2.13 on, but this package also runs on 2.11, and that one does not count
    # the right answers. Compared with this one it takes, with chunks of the same size, 1.07 times the time and 0.95
    # times the memory; with those that it chooses, about 10 and 0.8 times; without chunks, 0.86 and 1.85 times (600
    # tokens of width 384, vocabulary of 30,522, forward and backward in float32 on 2 CPU cores, torch 2.13).
    if not torch.is_grad_enabled():
        # `needs_input_grad` is true for parameters all the same, and gradients would be computed for nothing.
        hidden = hidden.detach()
        weight = weight.detach()
        bias = None if bias is None else bias.detach()
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, tokens_at_once)


def similarity_matrix(rows: torch.Tensor, candidates: torch.Tensor, similarity: str = "cosine") -> torch.Tensor:
    """All pairwise similarities, in float32 at least.

    Args:
        rows: (rows, dim)
        candidates: (candidates, dim)
        similarity: `"cosine"` or `"dot"`

    Returns:
        (rows, candidates)
    """
    # Autocast would do the product in half precision, too coarse once it is divided by a small temperature.
    with torch.autocast(rows.device.type, enabled=False):
        rows = at_least_float32(rows)
        candidates = at_least_float32(candidates)
        if similarity == "cosine":
            # Unit length, then one matrix product; a broadcast cosine would hold (rows, candidates, dim) in memory.
            rows = F.normalize(rows, dim=-1)
            candidates = F.normalize(candidates, dim=-1)
        return rows @ candidates.T  # (rows, dim) @ (dim, candidates) -> (rows, candidates)


def contrastive_cross_entropy(
    scores: torch.Tensor, positives: torch.Tensor, form: str = "info_nce", left_out: torch.Tensor | None = None
) -> torch.Tensor:
    """Summed contrastive loss; every other candidate than the row's positive is a negative.

    - `info_nce` (van den Oord et al. 2018): -log exp(s+) / (exp(s+) + sum_n exp(s_n))
    - `decoupled` (Yeh et al. 2022, arXiv 2110.06848): -log exp(s+) / sum_n exp(s_n)

    Args:
        scores: (rows, candidates) similarities divided by the temperature
        positives: (rows,) index of each row's positive among the candidates
        form: `"info_nce"` or `"decoupled"`
        left_out: (rows,) index of a candidate that is no negative: the row itself, where the rows are candidates too

    Returns:
        A scalar; 0 where there is no negative at all, for nothing can be contrasted.
    """
    # Candidates that are no negatives: the positive and, among `both_views`, the row itself.
    not_negative = 1
    if left_out is not None:
        not_negative = 2
    if scores.shape[1] <= not_negative:
        return scores.sum() * 0.0  # keeps the gradient, which DistributedDataParallel waits for
    if left_out is not None:
        # exp(-inf) = 0 in every sum below.
        scores = scores.scatter(1, left_out[:, None], float("-inf"))
    if form == "info_nce":
        # A classification of each row, with its positive as the class.
        return F.cross_entropy(scores, positives, reduction="sum")
    # Decoupled: the denominator has the negatives only.
    positive_scores = scores.gather(1, positives[:, None])[:, 0]  # (rows,)
    negative_scores = scores.scatter(1, positives[:, None], float("-inf"))  # (rows, candidates)
    denominator = negative_scores.logsumexp(1)  # (rows,)
    return (denominator - positive_scores).sum()


class ContrastiveSums(NamedTuple):
    """The contrastive loss of the anchors of this process.

    Attributes:
        loss_sum: the summed loss, a scalar
        num_correct: anchors with their own positive as the nearest of positives and hard negatives, a scalar
        num_anchors: how many there are
    """

    loss_sum: torch.Tensor
    num_correct: torch.Tensor
    num_anchors: int


def contrastive_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    hard_negatives: torch.Tensor | None = None,
    *,
    temperature: float = 0.05,
    similarity: str = "cosine",
    form: str = "info_nce",
    symmetric: bool = False,
    negatives: str = "other_view",
    gather: bool = True,
) -> ContrastiveSums:
    """Each anchor against its positive, with the other vectors of the batch as negatives.

    Args:
        anchors, positives: (batch, dim); row i of one belongs to row i of the other
        hard_negatives: (negatives, dim), which every anchor is compared with
        temperature: divides the similarities
        similarity: `"cosine"` or `"dot"`
        form: `"info_nce"` or `"decoupled"`, see `contrastive_cross_entropy`
        symmetric: average with the loss of the positives as anchors, without the hard negatives
        negatives: `"other_view"`, the other positives; or `"both_views"`, these and the other anchors (NT-Xent, Chen
            et al. 2020, where `symmetric`)
        gather: under torch.distributed, take the negatives of all processes, with gradient

    Returns:
        Sums over the anchors of this process; the loss is 0 where there is no negative at all.
    """
    if hard_negatives is None:
        hard_negatives = anchors[:0]
    contrast = functools.partial(
        _contrast, temperature=temperature, similarity=similarity, form=form, negatives=negatives, gather=gather
    )
    loss_sum, num_correct = contrast(anchors, positives, hard_negatives)
    if symmetric:
        backward_sum, _ = contrast(positives, anchors, hard_negatives[:0])
        loss_sum = (loss_sum + backward_sum) / 2
    return ContrastiveSums(loss_sum, num_correct, len(anchors))


def _contrast(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    hard_negatives: torch.Tensor,
    *,
    temperature: float,
    similarity: str,
    form: str,
    negatives: str,
    gather: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One direction of `contrastive_loss`: the summed loss, and how many anchors find their positive."""
    # The positives come first, so that the candidate of anchor i has the number i.
    both_views = negatives == "both_views"
    candidates = [positives, hard_negatives]
    if both_views:
        candidates = [positives, anchors, hard_negatives]
    offset = 0  # of the first anchor of this process among those of all
    if gather:
        # Of all processes, with gradient; anchors stay those of this process.
        gathered = [gather_rows(vectors) for vectors in candidates]
        candidates = [vectors for vectors, _ in gathered]
        _, offset = gathered[0]
    num_positives = len(candidates[0])
    # (batch, candidates): the positives of all processes, with `both_views` their anchors, the hard negatives
    scores = similarity_matrix(anchors, torch.cat(candidates), similarity) / temperature
    own_positive = torch.arange(offset, offset + len(anchors), device=anchors.device)  # (batch,)
    own_anchor = None
    first_hard = num_positives
    if both_views:
        own_anchor = num_positives + own_positive  # (batch,), no negative of itself
        first_hard = 2 * num_positives
    loss_sum = contrastive_cross_entropy(scores, own_positive, form, left_out=own_anchor)
    # Accuracy over positives and hard negatives only, so that it compares across `negatives`.
    of_positives = scores[:, :num_positives]
    of_hard = scores[:, first_hard:]
    choices = torch.cat([of_positives, of_hard], dim=1)  # (batch, choices)
    return loss_sum, count_correct(choices, own_positive)


def count_correct(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How many rows of `scores` (rows, choices) have their highest value at `targets` (rows,), a scalar."""
    is_correct = scores.detach().argmax(-1) == targets  # (rows,)
    return is_correct.sum().float()


def alignment(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of pairs on the unit sphere (Wang & Isola 2020, alpha = 2). x, y: (pairs, dim)"""
    x = F.normalize(at_least_float32(x), dim=-1)
    y = F.normalize(at_least_float32(y), dim=-1)
    return (x - y).square().sum(-1).mean()  # (pairs, dim) -> (pairs,) -> ()


def uniformity(x: torch.Tensor) -> torch.Tensor:
    """log mean exp(-2 |x_i - x_j|^2), i < j, on the unit sphere (Wang & Isola 2020, t = 2). x: (batch, dim)"""
    pairs = torch.triu_indices(len(x), len(x), offset=1, device=x.device)  # (2, pairs), each pair once
    # |x - y|^2 = 2 - 2 x.y on the unit sphere.
    cosine = similarity_matrix(x, x)[pairs[0], pairs[1]]  # (batch, batch) -> (pairs,)
    squared_distance = 2 - 2 * cosine
    return squared_distance.mul(-2).exp().mean().log()


class _AllGather(torch.autograd.Function):
    """Concatenation over processes along dimension 0; the gradient of each part is summed over all of them."""

    # By hand: torch has no public collective with a gradient that is there to stay. `torch.distributed.nn.functional`
    # is deprecated in 2.13 in favour of the private `_functional_collectives`, and a DTensor needs a mesh of its own.

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # (rows, dim) -> (processes * rows, dim)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # reduced in place: autograd owns the other
        dist.all_reduce(gradient)
        # Every process has a loss that depends on these rows: (processes * rows, dim) -> (rows, dim).
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def is_distributed() -> bool:
    """Whether several processes train together and this is a step that they all take (a forward with gradients)."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return torch.is_grad_enabled() and dist.get_world_size() > 1


def gather_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all processes, with gradient, and the place of this process's first row among them.

    Processes may hold different numbers of rows.

    Args:
        x: (rows, dim) of this process

    Returns:
        (all rows, dim) and an offset.
    """
    if not is_distributed():
        return x, 0
    # How many rows each process has, which may differ in the last batch.
    num_rows = torch.tensor([len(x)], device=x.device)
    of_process = [torch.empty_like(num_rows) for _ in range(dist.get_world_size())]
    dist.all_gather(of_process, num_rows)
    counts = torch.cat(of_process).tolist()
    most = max(counts)
    if most == 0:
        return x, 0
    # A collective needs equal shapes: pad each part to the largest, gather, and cut the padding off again.
    padded = F.pad(x, (0, 0, 0, most - len(x)))  # (most, dim)
    parts = _AllGather.apply(padded).split(most)  # (most, dim) of each process
    real_parts = [part[:count] for part, count in zip(parts, counts, strict=True)]  # (rows, dim) of each process
    offset = sum(counts[: dist.get_rank()])
    return torch.cat(real_parts), offset


def global_means(sums: Mapping[str, tuple[torch.Tensor, int | torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Means over all processes, from each process's own sums and counts.

    The value is that of the whole batch in every process. The gradient is scaled so that the average which
    DistributedDataParallel takes over processes is the gradient of the whole batch, however unequal the counts.

    Args:
        sums: name -> (sum, count)

    Returns:
        name -> mean; 0 where the count is 0.
    """
    # One tensor of all terms, in the type of the first.
    names = list(sums)
    dtype = sums[names[0]][0].dtype
    local = torch.stack([sums[name][0].to(dtype) for name in names])  # (names,)
    counts = [torch.as_tensor(sums[name][1], device=local.device) for name in names]
    counts = torch.stack(counts).to(dtype)  # (names,)
    if not is_distributed():
        return dict(zip(names, local / counts.clamp(min=1), strict=True))
    both = torch.stack([local.detach(), counts])  # (2, names), so that one collective is enough
    dist.all_reduce(both)
    all_sums = both[0]
    all_counts = both[1].clamp(min=1)
    # The value of one expression and the gradient of the other: d scaled / d local = processes / all counts.
    scaled = local * dist.get_world_size() / all_counts
    means = scaled + (all_sums / all_counts - scaled).detach()
    return dict(zip(names, means, strict=True))
