"""A padded batch as one sequence without padding, and the attention that keeps its sequences apart.

The real tokens of all rows are laid end to end, longest row first, and go through the encoder as a batch of one. Only
attention needs to know where a row ends: the function registered here as `"simmim_sdpa"` cuts queries, keys and values
back into rows and calls PyTorch's scaled dot-product attention on all of them, on a CPU on those of similar length at
a time. On CUDA, in half precision and without attention dropout, it hands the whole sequence to PyTorch's
variable-length flash attention instead. The same function remembers keys and values for an encoder that is read from
left to right (`Past`). Without either it is transformers' own `"sdpa"`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "simmim_sdpa"

# Rows whose length is at least this part of the longest are padded to it and attend in one call: fewer calls against
# more padding. Equal rows, such as the two views of a sequence, cost neither. On a GPU a call costs more than padding
# does inside attention alone: all rows attend in one.
SIMILAR_LENGTH = {"cpu": 0.8}


class CannotPack(Exception):
    """The backbone's attention does something that a packed sequence cannot express."""


@dataclass
class Group:
    """Consecutive rows of a packed sequence that attend together.

    `tokens` is their slice of the packed sequence and `real` the (tokens,) positions of these tokens in the flattened
    (rows, length) grid of the group, or None where all rows are equally long and the grid has no padding.
    """

    tokens: slice
    rows: int
    length: int
    real: torch.Tensor | None
    masks: dict = field(default_factory=dict)

    def grid(self, x: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, dim) of the whole packing -> (rows, heads, length, dim) of this group."""
        x = x[0, :, self.tokens].transpose(0, 1)
        if self.real is not None:
            grid = x.new_zeros(self.rows * self.length, *x.shape[1:])
            x = grid.index_copy(0, self.real, x)
        return x.reshape(self.rows, self.length, *x.shape[1:]).transpose(1, 2)

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, heads, length, dim) of this group -> (tokens, heads, dim)."""
        x = x.transpose(1, 2).flatten(0, 1)
        return x if self.real is None else x.index_select(0, self.real)

    def visible(self, device: torch.device, is_causal: bool, sliding_window: int | None) -> torch.Tensor | None:
        """Which keys a query sees, (rows or 1, 1, 1 or length, length), or None where SDPA needs no mask.

        Every layer asks again, hence the cache.
        """
        if sliding_window is not None and sliding_window >= self.length:
            sliding_window = None
        if (is_causal, sliding_window) not in self.masks:
            mask = None
            # Under a causal mask padding needs none: it stands right of the real tokens, where no real query looks.
            if self.real is not None and not is_causal:
                mask = torch.zeros(self.rows * self.length, dtype=torch.bool, device=device)
                mask = mask.index_fill(0, self.real, True).view(self.rows, 1, 1, self.length)
            if sliding_window is not None:
                place = torch.arange(self.length, device=device)
                distance = place[:, None] - place
                near = (distance.abs() < sliding_window) & (distance >= 0 if is_causal else True)
                # A padded query sees itself at least: softmax over nothing is NaN, and NaN spreads in backward.
                mask = near[None, None] if mask is None else near & (mask | (distance == 0))
            self.masks[is_causal, sliding_window] = mask
        return self.masks[is_causal, sliding_window]


@dataclass
class Packing:
    """How the real tokens of a padded (rows, length) batch are laid end to end, longest row first.

    Attributes:
        shape: (rows, length) of the padded batch
        indices: (tokens,) position of each token in the flattened padded batch
        positions: (tokens,) position of each token within its own sequence, from 0
        groups: the rows that attend together
        boundaries: (rows + 1,) int32, where each row begins and the last one ends, and `longest`, the longest row
        calls: how often attention has used this packing
    """

    shape: tuple[int, int]
    indices: torch.Tensor
    positions: torch.Tensor
    groups: list[Group]
    boundaries: torch.Tensor
    longest: int
    calls: int = 0

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> "Packing":
        """The packing of a padded batch, from its (rows, length) mask; padding may stand on either side."""
        real = attention_mask.bool()
        lengths, order = real.sum(1).sort(descending=True, stable=True)
        sorted_row, column = real[order].nonzero(as_tuple=True)
        starts = lengths.cumsum(0) - lengths
        positions = torch.arange(len(sorted_row), device=real.device) - starts[sorted_row]
        boundaries = torch.cat([starts, lengths.sum()[None]]).to(torch.int32)
        indices = order[sorted_row] * real.shape[1] + column
        lengths = lengths.tolist()
        groups = _similar_lengths(lengths, sorted_row, positions)
        return cls(tuple(real.shape), indices, positions, groups, boundaries, lengths[0])

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, length, ...) -> (tokens, ...)"""
        return x.flatten(0, 1).index_select(0, self.indices)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) -> (rows, length, ...), zeros at padding"""
        rows, length = self.shape
        return x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, self.indices, x).unflatten(0, (rows, length))

    @property
    def row(self) -> torch.Tensor:
        """(tokens,) the row of each token"""
        return self.indices // self.shape[1]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, dim) -> (rows, dim) in float32 at least, over the tokens of each row, without a padded batch"""
        dtype = torch.promote_types(x.dtype, torch.float32)
        sums = torch.zeros(self.shape[0], x.shape[1], dtype=dtype, device=x.device)
        return sums.index_add(0, self.row, x.to(dtype))

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, dim) -> (rows, dim), the mean over the tokens of each row"""
        counts = self.row.bincount(minlength=self.shape[0])
        return (self.sum(x) / counts.clamp(min=1)[:, None]).to(x.dtype)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """(tokens,) -> (tokens,), over the tokens of each row"""
        # Any shift of a row's scores gives the same weights; its largest keeps the exponential in range.
        largest = scores.new_full((self.shape[0],), -torch.inf)
        largest = largest.scatter_reduce(0, self.row, scores.detach(), "amax")
        weights = (scores - largest[self.row]).exp()[:, None]  # (tokens, 1)
        return (weights / self.sum(weights)[self.row])[:, 0]

    def select(self, x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) -> the real tokens at `where`, positions in the flattened padded batch"""
        rows, length = self.shape
        place = torch.zeros(rows * length, dtype=torch.long, device=x.device)
        place[self.indices] = torch.arange(len(self.indices), device=x.device)
        return x.index_select(0, place.index_select(0, where))


def _similar_lengths(lengths: list[int], sorted_row: torch.Tensor, positions: torch.Tensor) -> list[Group]:
    share = SIMILAR_LENGTH.get(positions.device.type, 0.0)
    groups, first, start = [], 0, 0
    while first < len(lengths) and lengths[first] > 0:
        length, last, tokens = lengths[first], first, 0
        while last < len(lengths) and lengths[last] >= max(1, share * length):
            tokens += lengths[last]
            last += 1
        part, rows = slice(start, start + tokens), last - first
        real = None if tokens == rows * length else (sorted_row[part] - first) * length + positions[part]
        groups.append(Group(part, rows, length, real))
        first, start = last, start + tokens
    return groups


@dataclass
class Past:
    """What lets an encoder without a decoder in transformers read from left to right, a few tokens at a time.

    Attributes:
        attention_mask: (batch, cached length + length), 1 for real tokens; padding may stand on either side
        cache: the keys and values of earlier tokens, or None to keep none
        calls: how many layers have used it
    """

    attention_mask: torch.Tensor
    cache: Cache | None = None
    calls: int = 0
    masks: dict = field(default_factory=dict)

    def update(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, heads, length, dim) of a layer -> (batch, heads, cached length + length, dim)"""
        self.calls += 1  # layers come in their order, also where one is used several times, as in ALBERT
        return (key, value) if self.cache is None else self.cache.update(key, value, self.calls - 1)

    def visible(self, length: int, sliding_window: int | None) -> torch.Tensor:
        """Which keys each of the last `length` tokens sees, (batch, 1, length, cached length + length)."""
        if sliding_window not in self.masks:
            real = self.attention_mask.bool()
            place = real.long().cumsum(1)  # counted over the real tokens, as in a packed sequence
            distance = place[:, -length:, None] - place[:, None]  # (batch, length, cached length + length)
            column = torch.arange(real.shape[1], device=real.device)
            ahead = column[-length:, None] < column  # (length, cached length + length)
            near = ~ahead & real[:, None]
            if sliding_window is not None:
                near &= distance < sliding_window
            # A padded query sees itself at least, see `Group.visible`.
            self.masks[sliding_window] = (near | (column[-length:, None] == column))[:, None]
        return self.masks[sliding_window]


# Variable-length attention takes heads of a multiple of 8 dimensions; up to this one it has gradients on every device.
KERNEL_HEAD_DIM = 192


def packed_sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    past: Past | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention within each sequence of a packed batch, or of new tokens to those of the past.

    Args:
        query: (1, heads, tokens, dim); (batch, heads, length, dim) without `packing`
        key, value: (1, key/value heads, tokens, dim); (batch, key/value heads, length, dim) without `packing`
        sliding_window: a query sees keys nearer than this

    Returns:
        (1, tokens, heads, dim) or (batch, length, heads, dim), and None, for there are no attention weights to show.

    Raises:
        CannotPack: the backbone adds a bias, a cap or sinks to its scores.
    """
    if past is not None:
        key, value = _for_each_head(query, *past.update(key, value))
        mask = past.visible(query.shape[2], sliding_window)
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scaling)
        return attended.transpose(1, 2), None
    if packing is None:
        kwargs |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    exotic = [name for name in ("softcap", "position_bias", "s_aux") if kwargs.get(name) is not None]
    if exotic:
        raise CannotPack(f"its attention uses {', '.join(exotic)}")
    packing.calls += 1
    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    # transformers leaves a key at exactly the window's distance out in causal, but not in bidirectional masks. A
    # decoder hands over the causal window whichever way it reads.
    if sliding_window is not None and not is_causal and getattr(module, "is_causal", False):
        sliding_window += 1
    # Rotary position embeddings make float32 of what autocast computed; scaled_dot_product_attention casts it back.
    autocast = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if autocast else query.dtype
    fits = query.shape[-1] == value.shape[-1] <= KERNEL_HEAD_DIM and query.shape[-1] % 8 == 0
    kernel = varlen_kernel(query.device, dtype) if fits and not dropout else None
    if kernel is not None:
        reach = -1 if sliding_window is None else sliding_window - 1
        query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))  # (tokens, heads, dim) each
        attended = kernel(
            query,
            key,
            value,
            cu_seq_q=packing.boundaries,
            cu_seq_k=packing.boundaries,
            max_q=packing.longest,
            max_k=packing.longest,
            scale=scaling,
            window_size=(reach, 0 if is_causal else reach),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended[None], None  # (1, tokens, heads, dim)
    key, value = _for_each_head(query, key, value)  # (1, heads, tokens, dim) each
    outputs = []
    for group in packing.groups:
        mask = group.visible(query.device, is_causal, sliding_window)
        attended = F.scaled_dot_product_attention(
            query=group.grid(query),  # (rows, heads, length, dim), as key and value
            key=group.grid(key),
            value=group.grid(value),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=is_causal and mask is None,
        )
        outputs.append(group.flat(attended))  # (tokens of the group, heads, dim)
    return torch.cat(outputs)[None], None  # (1, tokens, heads, dim)


def _for_each_head(query: torch.Tensor, *shared: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values that several heads of the query share, once for each: (batch, heads, length, dim)."""
    return [repeat_kv(x, query.shape[1] // x.shape[1]) for x in shared]  # by 1 nothing is copied


@functools.cache
def varlen_kernel(device: torch.device, dtype: torch.dtype) -> Callable | None:
    """PyTorch's variable-length attention, where this device has it and a trial shows that it is right."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn

        # No random numbers: dropout that is replayed in backward must find the generator where it left it.
        query = torch.linspace(-2, 2, 5 * 2 * 64, device=device, dtype=dtype).view(5, 2, 64)
        boundaries = torch.tensor([0, 3, 5], device=device, dtype=torch.int32)
        sizes = {"cu_seq_q": boundaries, "cu_seq_k": boundaries, "max_q": 3, "max_k": 3}
        tried = varlen_attn(query, query, query, **sizes, scale=0.1, window_size=(-1, 0), enable_gqa=False)
        rows = [query[:3].transpose(0, 1), query[3:].transpose(0, 1)]
        rows = [F.scaled_dot_product_attention(row, row, row, is_causal=True, scale=0.1) for row in rows]
        expected = torch.cat([row.transpose(0, 1) for row in rows])
        return varlen_attn if torch.allclose(tried, expected, atol=3e-2) else None
    except (ImportError, TypeError, ValueError, RuntimeError):
        return None


AttentionInterface.register(ATTENTION, packed_sdpa_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
