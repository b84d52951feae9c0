"""Unpadding: a padded batch as one sequence without padding, and the attention that keeps its texts apart.

The real tokens of all rows are laid end to end, the longest row first, and go through the encoder as a batch of one
(as `unpad_input` of flash-attention and ModernBERT does). Of all layers only attention has to know where a row ends.
The function that is registered here as `"simmim_sdpa"` knows three ways:

- in groups: queries, keys and values are cut back into padded rows, and scaled dot-product attention runs on all rows,
  on a CPU on those of similar length at a time;
- by the variable-length kernel of PyTorch, on CUDA in half precision and without attention dropout;
- with a cache of keys and values (`Past`), for an encoder that is read from left to right.

Without any of these it is the `"sdpa"` of transformers.
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

# Rows of at least this share of the longest one are padded to it and attend in one call: fewer calls against more
# padding. Equal rows, such as the two views of a text, cost neither. On a GPU a call costs more than padding does in
# attention alone: all rows attend in one.
SIMILAR_LENGTH = {"cpu": 0.8}

# The variable-length kernel takes heads of a multiple of 8 dimensions, and up to this one has gradients everywhere.
KERNEL_HEAD_DIM = 192


class CannotUnpad(Exception):
    """The attention of the backbone does something that a sequence without padding cannot express."""


@dataclass
class Group:
    """Consecutive rows of an unpadded batch that attend together.

    Attributes:
        tokens: their slice of the unpadded sequence
        rows, length: the size of their padded grid
        indices: (tokens,) place of each token in the flattened (rows, length) grid; None where all rows are equally
            long, so that the grid has no padding
        masks: attention masks by (is_causal, sliding_window), which all layers share
    """

    tokens: slice
    rows: int
    length: int
    indices: torch.Tensor | None
    masks: dict[tuple[bool, int | None], torch.Tensor | None] = field(default_factory=dict)

    def grid(self, x: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, dim) of the whole unpadded batch -> (rows, heads, length, dim) of this group."""
        # (1, heads, tokens, dim) -> (tokens of the group, heads, dim)
        x = x[0, :, self.tokens].transpose(0, 1)
        if self.indices is not None:
            # (tokens, heads, dim) -> (rows * length, heads, dim), zeros at padding
            grid = x.new_zeros(self.rows * self.length, *x.shape[1:])
            x = grid.index_copy(0, self.indices, x)
        # (rows * length, heads, dim) -> (rows, heads, length, dim), as attention takes it
        x = x.reshape(self.rows, self.length, *x.shape[1:])
        return x.transpose(1, 2)

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, heads, length, dim) of this group -> (tokens, heads, dim)."""
        # (rows, heads, length, dim) -> (rows * length, heads, dim)
        x = x.transpose(1, 2).flatten(0, 1)
        if self.indices is not None:
            # Padding falls away: (rows * length, heads, dim) -> (tokens, heads, dim).
            x = x.index_select(0, self.indices)
        return x

    def visible(self, device: torch.device, is_causal: bool, sliding_window: int | None) -> torch.Tensor | None:
        """Which keys a query sees, (rows or 1, 1, 1 or length, length), or None where SDPA needs no mask."""
        if sliding_window is not None and sliding_window >= self.length:
            sliding_window = None  # every key is near enough
        kind = is_causal, sliding_window
        if kind not in self.masks:
            self.masks[kind] = self._make_mask(device, is_causal, sliding_window)
        return self.masks[kind]

    def _make_mask(self, device: torch.device, is_causal: bool, sliding_window: int | None) -> torch.Tensor | None:
        is_real = None
        # A causal mask hides padding by itself: it is right of the real tokens, where no real query looks.
        if self.indices is not None and not is_causal:
            # (rows * length,), true where the grid has a token
            is_real = torch.zeros(self.rows * self.length, dtype=torch.bool, device=device)
            is_real = is_real.index_fill(0, self.indices, True)
            is_real = is_real.view(self.rows, 1, 1, self.length)  # (rows, 1, 1, keys)
        if sliding_window is None:
            return is_real
        place = torch.arange(self.length, device=device)
        distance = place[:, None] - place  # (queries, keys), above 0 for keys on the left
        is_near = distance.abs() < sliding_window  # (queries, keys)
        if is_causal:
            is_near = is_near & (distance >= 0)  # keys on the left only
        if is_real is None:
            return is_near[None, None]  # (1, 1, queries, keys)
        # A padded query sees itself at least: softmax over nothing is NaN, and NaN spreads in backward.
        return is_near & (is_real | (distance == 0))  # (rows, 1, queries, keys)


@dataclass
class Unpadding:
    """How the real tokens of a padded (rows, length) batch are laid end to end, the longest row first.

    Attributes:
        shape: (rows, length) of the padded batch
        indices: (tokens,) place of each token in the flattened padded batch
        positions: (tokens,) position of each token within its own row, from 0
        groups: the rows that attend together
        cu_seqlens: (rows + 1,) int32, cumulative lengths: where each row begins, and where the last one ends
        max_seqlen: tokens of the longest row
        calls: how often attention has used it
    """

    shape: tuple[int, int]
    indices: torch.Tensor
    positions: torch.Tensor
    groups: list[Group]
    cu_seqlens: torch.Tensor
    max_seqlen: int
    calls: int = 0

    @classmethod
    def from_mask(cls, attention_mask: torch.Tensor) -> "Unpadding":
        """From the (rows, length) mask of a padded batch; padding may be on either side."""
        is_real = attention_mask.bool()
        rows, length = is_real.shape
        # Longest row first, so that rows of similar length are neighbours: (rows,) each.
        lengths, order = is_real.sum(1).sort(descending=True, stable=True)
        # Row and column of each real token, in that order of the rows: (tokens,) each.
        sorted_row, column = is_real[order].nonzero(as_tuple=True)
        starts = lengths.cumsum(0) - lengths  # (rows,), tokens before each row
        end = lengths.sum()[None]
        cu_seqlens = torch.cat([starts, end]).to(torch.int32)  # (rows + 1,)
        place = torch.arange(len(sorted_row), device=is_real.device)  # (tokens,)
        positions = place - starts[sorted_row]  # (tokens,)
        indices = order[sorted_row] * length + column  # (tokens,)
        sizes = lengths.tolist()  # waits for a GPU
        groups = _group_similar_lengths(sizes, sorted_row, positions)
        return cls((rows, length), indices, positions, groups, cu_seqlens, max_seqlen=sizes[0])

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, length, ...) -> (tokens, ...)"""
        # (rows, length, ...) -> (rows * length, ...) -> (tokens, ...)
        return x.flatten(0, 1).index_select(0, self.indices)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) -> (rows, length, ...), zeros at padding"""
        rows, length = self.shape
        # (tokens, ...) -> (rows * length, ...) -> (rows, length, ...)
        grid = x.new_zeros(rows * length, *x.shape[1:])
        return grid.index_copy(0, self.indices, x).unflatten(0, (rows, length))

    @property
    def row(self) -> torch.Tensor:
        """(tokens,) the row of each token"""
        return self.indices // self.shape[1]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, dim) -> (rows, dim) in float32 at least, over the tokens of each row, without a padded batch"""
        # Half precision cannot hold the sum of a long row.
        dtype = torch.promote_types(x.dtype, torch.float32)
        sums = torch.zeros(self.shape[0], x.shape[1], dtype=dtype, device=x.device)  # (rows, dim)
        return sums.index_add(0, self.row, x.to(dtype))

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, dim) -> (rows, dim), the mean over the tokens of each row"""
        lengths = self.row.bincount(minlength=self.shape[0])  # (rows,)
        lengths = lengths.clamp(min=1)[:, None]  # (rows, 1); the mean of an empty row is 0
        return (self.sum(x) / lengths).to(x.dtype)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """(tokens,) -> (tokens,), over the tokens of each row"""
        # Softmax is the same for any shift of a row; the row's maximum keeps the exponential in range.
        highest = scores.new_full((self.shape[0],), -torch.inf)
        highest = highest.scatter_reduce(0, self.row, scores.detach(), "amax")  # (rows,)
        weights = (scores - highest[self.row]).exp()[:, None]  # (tokens, 1)
        # The sum of each row, once for each of its tokens: (rows, 1) -> (tokens, 1).
        norm = self.sum(weights)[self.row]
        return (weights / norm)[:, 0]  # (tokens, 1) -> (tokens,)

    def select(self, x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) -> (selected, ...), the real tokens at `where`, places in the flattened padded batch"""
        rows, length = self.shape
        # The inverse of `indices`: (rows * length,), the place of each token in the unpadded sequence.
        place = torch.zeros(rows * length, dtype=torch.long, device=x.device)
        place[self.indices] = torch.arange(len(self.indices), device=x.device)
        selected = place.index_select(0, where)  # (selected,)
        return x.index_select(0, selected)


def _group_similar_lengths(lengths: list[int], sorted_row: torch.Tensor, positions: torch.Tensor) -> list[Group]:
    """Groups of rows, from the lengths of all rows in descending order, and the row and position of each token."""
    share = SIMILAR_LENGTH.get(positions.device.type, 0.0)
    groups = []
    first = 0  # row of the group
    start = 0  # token of the group
    while first < len(lengths) and lengths[first] > 0:  # empty rows come last, and attend to nothing
        longest = lengths[first]
        last = first
        end = start
        while last < len(lengths) and lengths[last] >= max(1, share * longest):
            end += lengths[last]
            last += 1
        tokens = slice(start, end)
        rows = last - first
        # Token t of row r has the place r * longest + t in the grid; without padding that is the identity.
        indices = None
        if end - start < rows * longest:
            indices = (sorted_row[tokens] - first) * longest + positions[tokens]
        groups.append(Group(tokens, rows, longest, indices))
        first = last
        start = end
    return groups


@dataclass
class Past:
    """Lets an encoder without a decoder in transformers read from left to right, a few tokens at a time.

    Attributes:
        attention_mask: (batch, cached length + length), 1 for real tokens; padding may be on either side
        cache: the keys and values of earlier tokens, or None to keep none
        calls: how many layers have used it
        masks: attention masks by sliding window, which all layers share
    """

    attention_mask: torch.Tensor
    cache: Cache | None = None
    calls: int = 0
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def update(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, heads, length, dim) of a layer -> (batch, heads, cached length + length, dim)"""
        layer = self.calls  # layers come in their order, also where one is used several times, as in ALBERT
        self.calls += 1
        if self.cache is None:  # a whole text at once, in training
            return key, value
        return self.cache.update(key, value, layer)

    def visible(self, length: int, sliding_window: int | None) -> torch.Tensor:
        """Which keys each of the last `length` tokens sees, (batch, 1, length, cached length + length)."""
        if sliding_window not in self.masks:
            self.masks[sliding_window] = self._make_mask(length, sliding_window)
        return self.masks[sliding_window]

    def _make_mask(self, length: int, sliding_window: int | None) -> torch.Tensor:
        is_real = self.attention_mask.bool()  # (batch, keys)
        column = torch.arange(is_real.shape[1], device=is_real.device)
        is_past = column[-length:, None] >= column  # (queries, keys)
        is_visible = is_past & is_real[:, None]  # (batch, queries, keys)
        if sliding_window is not None:
            place = is_real.long().cumsum(1)  # counted over the real tokens, as in an unpadded sequence
            distance = place[:, -length:, None] - place[:, None]  # (batch, queries, keys)
            is_visible &= distance < sliding_window
        # A padded query sees itself at least, see `Group._make_mask`.
        is_itself = column[-length:, None] == column  # (queries, keys)
        return (is_visible | is_itself)[:, None]


def unpadded_sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    unpadding: Unpadding | None = None,
    past: Past | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention within each text of an unpadded batch, or of new tokens to those of the past.

    Args:
        query: (1, heads, tokens, dim); (batch, heads, length, dim) without `unpadding`
        key, value: (1, key/value heads, tokens, dim); (batch, key/value heads, length, dim) without `unpadding`
        sliding_window: a query sees keys nearer than this

    Returns:
        (1, tokens, heads, dim) or (batch, length, heads, dim), and None in place of the attention weights.

    Raises:
        CannotUnpad: the backbone adds a bias, a cap or sinks to its scores.
    """
    # From left to right, token by token.
    if past is not None:
        return _attend_with_cache(query, key, value, past, dropout, scaling, sliding_window), None
    # A padded batch: transformers' own function.
    if unpadding is None:
        kwargs |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    unsupported = [name for name in ("softcap", "position_bias", "s_aux") if kwargs.get(name) is not None]
    if unsupported:
        raise CannotUnpad(f"its attention uses {', '.join(unsupported)}")
    unpadding.calls += 1
    causal_module = bool(getattr(module, "is_causal", False))
    if is_causal is None:
        is_causal = causal_module
    # transformers leaves a key at exactly the window's distance out in causal, but not in bidirectional masks. A
    # decoder hands over the causal window in both directions.
    if sliding_window is not None and causal_module and not is_causal:
        sliding_window += 1
    # Without padding: by the kernel where there is one, which has no dropout.
    kernel = None
    if not dropout:
        kernel = _fitting_kernel(query, value)
    if kernel is not None:
        return _attend_varlen(kernel, query, key, value, unpadding, scaling, is_causal, sliding_window), None
    return _attend_in_groups(query, key, value, unpadding, dropout, scaling, is_causal, sliding_window), None


def _attend_with_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past: Past,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Of (batch, heads, length, dim) new tokens to these and the cached ones: (batch, length, heads, dim)."""
    key, value = past.update(key, value)  # (batch, key/value heads, cached length + length, dim)
    key = _for_each_head(key, query)  # (batch, heads, cached length + length, dim)
    value = _for_each_head(value, query)
    mask = past.visible(query.shape[2], sliding_window)  # (batch, 1, length, cached length + length)
    # (batch, heads, length, dim)
    attended = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scaling)
    return attended.transpose(1, 2)


def _attend_varlen(
    kernel: Callable,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    unpadding: Unpadding,
    scaling: float | None,
    is_causal: bool,
    sliding_window: int | None,
) -> torch.Tensor:
    """Of (1, heads, tokens, dim) by the variable-length kernel, without any padding: (1, tokens, heads, dim)."""
    dtype = _dtype_of_products(query)
    # Keys that a query sees on its left and on its right; -1 is all of them.
    left = -1 if sliding_window is None else sliding_window - 1
    right = 0 if is_causal else left
    # (1, heads, tokens, dim) -> (tokens, heads, dim), as the kernel takes it
    query = query[0].transpose(0, 1).to(dtype)
    key = key[0].transpose(0, 1).to(dtype)
    value = value[0].transpose(0, 1).to(dtype)
    attended = kernel(
        query,
        key,
        value,
        cu_seq_q=unpadding.cu_seqlens,
        cu_seq_k=unpadding.cu_seqlens,
        max_q=unpadding.max_seqlen,
        max_k=unpadding.max_seqlen,
        scale=scaling,
        window_size=(left, right),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[None]  # (tokens, heads, dim) -> (1, tokens, heads, dim)


def _attend_in_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    unpadding: Unpadding,
    dropout: float,
    scaling: float | None,
    is_causal: bool,
    sliding_window: int | None,
) -> torch.Tensor:
    """Of (1, heads, tokens, dim), on padded rows of similar length at a time: (1, tokens, heads, dim)."""
    key = _for_each_head(key, query)  # (1, heads, tokens, dim)
    value = _for_each_head(value, query)
    outputs = []
    for group in unpadding.groups:
        # Which keys a query of the group sees; None for all, or for those that `is_causal` leaves.
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
    # Groups are consecutive, so that their tokens come in the order of the unpadded sequence.
    return torch.cat(outputs)[None]


def _for_each_head(shared: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values that several heads of the query share, once for each: (batch, heads, length, dim)."""
    return repeat_kv(shared, query.shape[1] // shared.shape[1])  # by 1 nothing is copied


def _dtype_of_products(query: torch.Tensor) -> torch.dtype:
    """The type in which `scaled_dot_product_attention` computes. Under autocast that is not the type of the query,
    which rotary position embeddings have turned into float32."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return query.dtype


def _fitting_kernel(query: torch.Tensor, value: torch.Tensor) -> Callable | None:
    """The variable-length kernel, where this device has one and it takes heads of these sizes."""
    dim = query.shape[-1]
    if dim != value.shape[-1] or dim > KERNEL_HEAD_DIM or dim % 8:
        return None
    return varlen_kernel(query.device, _dtype_of_products(query))


@functools.cache
def varlen_kernel(device: torch.device, dtype: torch.dtype) -> Callable | None:
    """PyTorch's variable-length attention, where this device has it and a trial shows that it is right."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn

        # Two rows of 3 and 2 tokens, causal, against the padded function. No random numbers: dropout that is replayed
        # in backward must find the generator where it left it.
        query = torch.linspace(-2, 2, 5 * 2 * 64, device=device, dtype=dtype)
        query = query.view(5, 2, 64)  # (tokens, heads, dim)
        cu_seqlens = torch.tensor([0, 3, 5], device=device, dtype=torch.int32)
        sizes = {"cu_seq_q": cu_seqlens, "cu_seq_k": cu_seqlens, "max_q": 3, "max_k": 3}
        actual = varlen_attn(query, query, query, **sizes, scale=0.1, window_size=(-1, 0), enable_gqa=False)
        expected = []
        for part in (query[:3], query[3:]):
            row = part.transpose(0, 1)  # (heads, length, dim)
            attended = F.scaled_dot_product_attention(row, row, row, is_causal=True, scale=0.1)
            expected.append(attended.transpose(0, 1))
        is_right = torch.allclose(actual, torch.cat(expected), atol=3e-2)  # (tokens, heads, dim), half precision
        return varlen_attn if is_right else None
    except (ImportError, TypeError, ValueError, RuntimeError):  # another torch, or another device
        return None


AttentionInterface.register(ATTENTION, unpadded_sdpa_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
