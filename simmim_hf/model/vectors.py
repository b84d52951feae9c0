"""Vectors of sequences: from token vectors, from texts, and what tells sentence-transformers how they are made."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .configuration_simmim import SimMIMConfig
from .packing import Packing


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
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), attention_mask.long().argmax(1)]
    real = attention_mask.bool()[..., None]
    if pooling == "max":
        return hidden.masked_fill(~real, torch.finfo(hidden.dtype).min).amax(1)
    # As `Packing.mean` in training: half precision cannot hold the sum of a long sequence.
    total = (hidden * real).sum(1, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return (total / real.sum(1).clamp(min=1)).to(hidden.dtype)


class TokenStates(NamedTuple):
    """What an encoder knows of each token, and what of it is pooled.

    Attributes:
        last: (..., hidden), of the last layer
        first: (..., hidden), what the first layer is given, or None where it is not pooled
        input_ids: (...), or None where the pooling looks no token up
    """

    last: torch.Tensor
    first: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "TokenStates":
        """The results of a function of each."""
        return TokenStates(*(None if x is None else function(x) for x in self))


class SimMIMLexicon(nn.Module):
    """Token vectors that serve sequence vectors alone: what a table of their own says of a token, beside its state.

    Side by side neither is lost: what tells texts apart by their words outweighs by far, in a contrastive loss, what
    only the layers know of a token, and in a sum would be learned at its cost.
    """

    STATE_SCALE = 0.3  # at first: states of random weights say little, and almost the same of every text

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.lexicon_size)
        self.norm = nn.LayerNorm(config.lexicon_size)
        self.state_scale = nn.Parameter(torch.full((config.hidden_size,), self.STATE_SCALE))
        self.state_bias = nn.Parameter(torch.zeros(config.hidden_size))
        # Beside the query of the pooling, which is that of the states.
        self.query = nn.Parameter(torch.zeros(config.lexicon_size)) if config.pooling == "attention" else None

    def forward(self, input_ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """(...), (..., hidden) -> (..., lexicon + hidden)"""
        states = nn.functional.layer_norm(states, self.state_scale.shape, self.state_scale, self.state_bias)
        return torch.cat([self.norm(self.table(input_ids)), states], dim=-1)


class SimMIMPooling(nn.Module):
    """Sequence vectors from token vectors, in the configured way.

    `attention` is a mean in which each token counts by the exponential of a learned score of its vector (the word
    attention of Yang et al. 2016, equation 6, with one query). Behind a layer norm all token vectors are equally long,
    so that a plain mean cannot give a rare word more weight than a common one. The query begins at zero, where this is
    the plain mean.
    """

    def __init__(self, config: SimMIMConfig):
        super().__init__()
        self.pooling = config.pooling
        self.query = nn.Parameter(torch.zeros(config.hidden_size)) if config.pooling == "attention" else None
        self.lexicon = SimMIMLexicon(config) if config.pooled_layers == "lexical_last" else None

    def tokens(self, states: TokenStates) -> torch.Tensor:
        """What is pooled: (..., dim)

        Raises:
            ValueError: tokens are looked up, and there are none.
        """
        if self.lexicon is None:
            return states.last if states.first is None else (states.first + states.last) / 2
        if states.input_ids is None:
            raise ValueError(
                "`pooled_layers` is 'lexical_last', which looks every token up: give `input_ids`, not `inputs_embeds`."
            )
        return self.lexicon(states.input_ids, states.last)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """How much each token of (..., dim) counts in `attention`: (...)"""
        queries = [self.query] if self.lexicon is None else [self.lexicon.query, self.query]
        return (hidden @ torch.cat(queries)).float()

    def forward(self, states: TokenStates, attention_mask: torch.Tensor) -> torch.Tensor:
        """States (batch, length, hidden), (batch, length) -> (batch, dim)"""
        hidden = self.tokens(states)
        if self.query is None:
            return pool(hidden, attention_mask, self.pooling)
        real = attention_mask.bool()
        scores = self.scores(hidden).masked_fill(~real, torch.finfo(torch.float32).min)
        weights = scores.softmax(1) * real  # (batch, length)
        return (weights[..., None] * hidden).sum(1).to(hidden.dtype)

    def packed(self, states: TokenStates, packing: Packing, attention_mask: torch.Tensor) -> torch.Tensor:
        """States (tokens, hidden) of a packed batch with this (rows, length) mask -> (rows, dim)"""
        hidden = self.tokens(states)
        if self.pooling == "mean":
            return packing.mean(hidden)
        if self.query is None:
            return pool(packing.unpack(hidden), attention_mask, self.pooling)
        weights = packing.softmax(self.scores(hidden))  # (tokens,)
        return packing.sum(weights[:, None] * hidden).to(hidden.dtype)


@torch.no_grad()
def encode(
    model: nn.Module,
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
        max_length: longer texts are truncated to so many tokens. Default: what the tokenizer says, which for a
            checkpoint of this package is the length it was trained on; never more than the model has positions for
        batch_size: texts that are read at a time
        normalize: put the vectors on the unit sphere
        show_progress: show a progress bar

    Returns:
        (texts, dim), float32; (dim,) for one text that is not in a list.

    Raises:
        ValueError: no tokenizer is given, and the model was not loaded from anywhere.
    """
    encoder, was_training = model.base_model, model.training
    if tokenizer is None:
        if not encoder.config.name_or_path:
            raise ValueError("Give `tokenizer`: the model was not loaded from a folder or the Hub, which has one.")
        tokenizer = AutoTokenizer.from_pretrained(encoder.config.name_or_path, config=encoder.config)
    if max_length is None:
        max_length = min(tokenizer.model_max_length, encoder.max_length)
    rows = [texts] if isinstance(texts, str) else list(texts)
    ids = tokenizer(rows, truncation=True, max_length=max_length)["input_ids"] if rows else []
    order = sorted(range(len(rows)), key=lambda row: -len(ids[row]))  # similar lengths together, so little padding
    vectors = torch.empty(len(rows), getattr(encoder.config, "vector_size", encoder.config.hidden_size))
    encoder.eval()
    for start in logging.tqdm(range(0, len(rows), batch_size), desc="Encoding", disable=not show_progress):
        read = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in read]}, return_tensors="pt").to(encoder.device)
        pooled = encoder(**batch).pooler_output.float()  # (batch, dim)
        vectors[read] = (nn.functional.normalize(pooled, dim=-1) if normalize else pooled).cpu()
    model.train(was_training)
    return (vectors[0] if isinstance(texts, str) else vectors).numpy()


def is_plain(config: SimMIMConfig) -> bool:
    """Whether the pooling is one that other libraries have."""
    return config.pooling != "attention" and config.pooled_layers == "last"


# What sentence-transformers calls its modules; its versions 2 to 6 read these names.
MODULES = "sentence_transformers.models"


def write_modules(config: SimMIMConfig, folder: str | os.PathLike) -> None:
    """Writes what makes `SentenceTransformer(folder)` give the vectors of the model: its pooling and, where they are
    compared by the cosine, unit length.

    A pooling that sentence-transformers has stands in `1_Pooling`; any other is left to the model's own forward, which
    needs its version 6.
    """
    pools = is_plain(config)
    kinds = ["Transformer", *(["Pooling"] if pools else []), *(["Normalize"] if config.similarity == "cosine" else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{MODULES}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    own_forward = {"method": "forward", "method_output_name": "pooler_output"}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {}
        if pools
        else {"modality_config": {"text": own_forward}, "module_output_name": "sentence_embedding"},
    }
    if pools:
        size, mode = config.vector_size, f"pooling_mode_{config.pooling}_token{'' if config.pooling == 'cls' else 's'}"
        files["1_Pooling/config.json"] = {"word_embedding_dimension": size, mode: True}
    settings = Path(folder, "config_sentence_transformers.json")
    # Of sentence-transformers itself, which is saving this model, and has prompts in it.
    if not (settings.is_file() and "__version__" in json.loads(settings.read_text(encoding="utf-8"))):
        files[settings.name] = {"similarity_fn_name": config.similarity}
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
