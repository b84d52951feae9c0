"""Vectors of texts: from the hidden states of their tokens by pooling, and from strings by `encode`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .configuration_simmim import SimMIMConfig
from .unpadding import Unpadding


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Sequence vectors from token vectors; padding never counts.

    Args:
        hidden: (batch, length, hidden)
        attention_mask: (batch, length)
        pooling: `"mean"`, `"cls"` (the first real token) or `"max"`

    Returns:
        (batch, hidden)
    """
    if pooling == "cls":
        # (batch, length, hidden) -> (batch, hidden), by one place in each row
        row = torch.arange(hidden.shape[0], device=hidden.device)
        first = attention_mask.long().argmax(1)  # (batch,), not 0 where padding is on the left
        return hidden[row, first]
    is_real = attention_mask.bool()[..., None]  # (batch, length, 1)
    if pooling == "max":
        # The lowest number at padding, which is the maximum of nothing else.
        return hidden.masked_fill(~is_real, torch.finfo(hidden.dtype).min).amax(1)
    # In float32 as `Unpadding.mean` in training: half precision cannot hold the sum of a long sequence.
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = (hidden * is_real).sum(1, dtype=dtype)  # (batch, hidden)
    num_tokens = is_real.sum(1).clamp(min=1)  # (batch, 1)
    return (total / num_tokens).to(hidden.dtype)


class TokenStates(NamedTuple):
    """What pooling takes of each token.

    Attributes:
        last: (..., hidden), the hidden state of the last layer
        first: (..., hidden), the input of the first layer, or None where it is not pooled
        input_ids: (...), or None where there is no token table
    """

    last: torch.Tensor
    first: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "TokenStates":
        """The results of a function of each."""
        return TokenStates(*(None if x is None else function(x) for x in self))


class SimMIMTokenTable(nn.Module):
    """A token table that serves sequence vectors alone: a learned vector of each token, next to its hidden state.

    Concatenated, not summed: in a sum the contrastive loss learns which words there are at the expense of their
    context (TREC 68 against 75, examples/comparisons).
    """

    STATE_SCALE = 0.3  # at first: states of random weights say little, and almost the same of every text

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.token_table_dim)
        self.norm = nn.LayerNorm(config.token_table_dim)
        self.state_scale = nn.Parameter(torch.full((config.hidden_size,), self.STATE_SCALE))
        self.state_bias = nn.Parameter(torch.zeros(config.hidden_size))
        # Attention query of the table part; `SimMIMPooling.query` is that of the hidden states.
        self.query = None
        if config.pooling == "attention":
            self.query = nn.Parameter(torch.zeros(config.token_table_dim))

    def forward(self, input_ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """(...), (..., hidden) -> (..., table + hidden)"""
        # Both parts are normalised, so that neither outweighs the other by its length alone.
        words = self.norm(self.table(input_ids))  # (...) -> (..., table)
        states = F.layer_norm(states, self.state_scale.shape, self.state_scale, self.state_bias)  # (..., hidden)
        return torch.cat([words, states], dim=-1)


class SimMIMPooling(nn.Module):
    """Sequence vectors from token vectors, in the configured way.

    `attention` is a mean in which each token counts by the exponential of a learned score of its vector (the word
    attention of Yang et al. 2016, equation 6, with one query). Behind a layer norm all token vectors are equally long,
    so that a plain mean cannot give a rare word more weight than a common one. The query is zero at first, which is
    the plain mean.
    """

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.pooling = config.pooling
        self.query = None
        if config.pooling == "attention":
            self.query = nn.Parameter(torch.zeros(config.hidden_size))
        # The attribute has the name of the saved weights: `pooler.lexicon.*`.
        self.lexicon = None
        if config.pooled_layers == "table_and_last":
            self.lexicon = SimMIMTokenTable(config)

    def tokens(self, states: TokenStates) -> torch.Tensor:
        """The token vectors that are pooled: (..., dim)

        Raises:
            ValueError: there is a token table, and no `input_ids`.
        """
        if self.lexicon is not None:
            if states.input_ids is None:
                raise ValueError(
                    "`pooled_layers` is 'table_and_last', which looks every token up: give `input_ids`, not "
                    "`inputs_embeds`."
                )
            return self.lexicon(states.input_ids, states.last)  # (..., table + hidden)
        if states.first is not None:
            return (states.first + states.last) / 2  # (..., hidden)
        return states.last

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """How much each token of (..., dim) counts in `attention`, before the exponential: (...)"""
        # Of a concatenation, so that words and states have a score each, and these are added.
        query = self.query  # (hidden,)
        if self.lexicon is not None:
            query = torch.cat([self.lexicon.query, self.query])  # (table + hidden,)
        return (hidden @ query).float()  # (..., dim) @ (dim,) -> (...), in the precision of a softmax

    def forward(self, states: TokenStates, attention_mask: torch.Tensor) -> torch.Tensor:
        """States (batch, length, hidden), (batch, length) -> (batch, dim)"""
        hidden = self.tokens(states)  # (batch, length, dim)
        if self.query is None:
            return pool(hidden, attention_mask, self.pooling)
        is_real = attention_mask.bool()  # (batch, length)
        # No weight at padding.
        scores = self.scores(hidden).masked_fill(~is_real, torch.finfo(torch.float32).min)  # (batch, length)
        weights = scores.softmax(1) * is_real  # (batch, length); all zero in a row without real tokens
        # The weighted mean: (batch, length, 1) * (batch, length, dim) -> (batch, dim).
        return (weights[..., None] * hidden).sum(1).to(hidden.dtype)

    def unpadded(self, states: TokenStates, unpadding: Unpadding, attention_mask: torch.Tensor) -> torch.Tensor:
        """States (tokens, hidden) of an unpadded batch with this (rows, length) mask -> (rows, dim)"""
        hidden = self.tokens(states)  # (tokens, dim)
        if self.pooling == "mean":
            return unpadding.mean(hidden)
        if self.query is None:
            # The maximum and the first token need rows: (tokens, dim) -> (rows, length, dim).
            return pool(unpadding.pad(hidden), attention_mask, self.pooling)
        weights = unpadding.softmax(self.scores(hidden))  # (tokens,), sum 1 in each row
        return unpadding.sum(weights[:, None] * hidden).to(hidden.dtype)


@torch.no_grad()
def encode(
    model: Any,
    texts: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    batch_size: int = 128,
    normalize: bool = True,
    show_progress: bool = False,
):
    """Vectors of texts by the pooling of the model, as numpy.

    Args:
        texts: one, or several in any order; they are read in batches of similar length
        tokenizer: with a padding token. Default: that of the folder or Hub id that the model was loaded from
        max_length: longer texts are truncated to so many tokens. Default: that of the tokenizer, which for a
            checkpoint of this package is the length it was trained on; never more than the model has positions for
        batch_size: texts that are read at a time
        normalize: put the vectors on the unit sphere
        show_progress: show a progress bar

    Returns:
        (texts, dim), float32; (dim,) for one text that is not in a list.

    Raises:
        ValueError: no tokenizer, and the model was not loaded from a folder or the Hub.
    """
    encoder = model.base_model
    was_training = model.training
    if tokenizer is None:
        if not encoder.config.name_or_path:
            raise ValueError("Give `tokenizer`: the model was not loaded from a folder or the Hub, which has one.")
        tokenizer = AutoTokenizer.from_pretrained(encoder.config.name_or_path, config=encoder.config)
    if max_length is None:
        max_length = min(tokenizer.model_max_length, encoder.max_length)
    is_one = isinstance(texts, str)
    rows = [texts] if is_one else list(texts)
    ids = []
    if rows:  # a tokenizer takes no empty list
        ids = tokenizer(rows, truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(rows)), key=lambda row: -len(ids[row]))  # similar lengths together, so little padding
    embedding_dim = encoder.config.hidden_size
    if encoder.config.model_type == SimMIMConfig.model_type:
        embedding_dim = encoder.config.embedding_dim  # wider by the token table
    vectors = torch.empty(len(rows), embedding_dim)
    encoder.eval()
    starts = range(0, len(rows), batch_size)
    for start in logging.tqdm(starts, desc="Encoding", disable=not show_progress):
        in_batch = order[start : start + batch_size]
        # (batch, longest length in it)
        unpadded = {"input_ids": [ids[row] for row in in_batch]}
        batch = tokenizer.pad(unpadded, return_tensors="pt").to(encoder.device)
        pooled = encoder(**batch).pooler_output.float()  # (batch, dim)
        if normalize:
            pooled = F.normalize(pooled, dim=-1)
        vectors[in_batch] = pooled.cpu()  # back in the order of the texts
    model.train(was_training)
    if is_one:
        return vectors[0].numpy()
    return vectors.numpy()
