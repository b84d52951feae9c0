"""Sentence vectors of any text encoder of transformers."""

import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from ..data.tokenization import load_tokenizer
from ..model import pooling as model_pooling
from ..model.backbones import first_position
from ..model.configuration_simmim import Pooling, SimMIMConfig, as_text_config
from ..model.loading import explaining_weights
from ..model.pooling import pool
from ..model.st_format import source_pooling
from ..options import error_prefix


class PooledEncoder(torch.nn.Module):
    """An encoder of transformers that is not SimMIM, with the pooling of this package: a model for `encode`.

    Args:
        encoder: gives `last_hidden_state` (batch, length, hidden)
        pooling: how its token vectors become a sentence vector
    """

    def __init__(self, encoder: PreTrainedModel, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.pooling = pooling

    encode = model_pooling.encode

    @property
    def base_model(self) -> "PooledEncoder":
        return self

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens, that the encoder has positions for."""
        positions = getattr(self.config, "max_position_embeddings", sys.maxsize)
        return positions - first_position(self.encoder)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> BaseModelOutputWithPooling:
        """input_ids, attention_mask: (batch, length)"""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = pool(hidden, attention_mask, self.pooling)  # (batch, length, hidden) -> (batch, hidden)
        return BaseModelOutputWithPooling(hidden, pooled)


def load_encoder(name_or_path: str, pooling: Pooling | None = None) -> torch.nn.Module:
    """A SimMIM checkpoint, or any other text encoder or decoder of transformers, as a model for `encode`.

    Args:
        name_or_path: a folder or a Hub id
        pooling: by default that of a SimMIM or sentence-transformers model, and `"mean"` for others

    Raises:
        ValueError: not a text encoder, a checkpoint without its weights, or a sentence-transformers model whose
            vectors cannot be made here.
        OSError: there is no such model.
    """
    config = text_encoder_config(name_or_path)
    is_simmim = config.model_type == SimMIMConfig.model_type
    if pooling == "attention" and not (is_simmim and config.pooling == "attention"):
        raise ValueError(
            f"pooling is 'attention', and `{name_or_path}` has not learned what counts: choose mean, cls or max."
        )
    model, missing = load_with_missing(AutoModel, name_or_path)
    if missing:
        raise ValueError(
            f"the checkpoint `{name_or_path}` lacks weights of a `{config.model_type}`, which would be random: "
            f"{', '.join(missing[:3])}."
        )
    if not is_simmim:
        if pooling is None:
            pooling = source_pooling(name_or_path) or "mean"
        return PooledEncoder(model, pooling)
    if pooling is not None and pooling != model.config.pooling:
        model.config.pooling = pooling
        model.pooler.pooling = pooling
        model.pooler.query = None  # the weights of `attention`, the only pooling that is learned
    return model


def text_encoder_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError: it is not a text model, or there is no such model.
    """
    with error_prefix(f"there is no model in `{name_or_path}`, or its configuration is damaged"):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if config.model_type != SimMIMConfig.model_type:
        try:
            as_text_config(config)
        except ValueError as error:
            raise ValueError(
                f"the model `{name_or_path}` is a `{config.model_type}`, which is no encoder of text such as `bert`, "
                "`roberta` or `modernbert`."
            ) from error
    return config


def load_with_missing(auto_class, name_or_path: str) -> tuple[PreTrainedModel, list[str]]:
    """A model in float32, and the names of the weights that it needs and its checkpoint does not have."""
    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # callers refuse missing weights, and an unused head needs no warning
    try:
        with error_prefix(f"the model `{name_or_path}` cannot be loaded"), explaining_weights(name_or_path):
            model, info = auto_class.from_pretrained(name_or_path, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    is_simmim = model.config.model_type == SimMIMConfig.model_type
    # The pooler of another model, such as BERT's, is never used, so that a checkpoint may lack its weights.
    missing = [key for key in info["missing_keys"] if is_simmim or "pooler." not in key]
    return model.eval(), sorted(missing)


def encode(
    model: torch.nn.Module | str | os.PathLike,
    texts: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    batch_size: int = 128,
    normalize: bool = True,
    show_progress: bool = False,
) -> np.ndarray:
    """Vectors of texts by the pooling of the model.

    Args:
        model: a SimMIM model, or a `PooledEncoder`; or a folder or a Hub id, which may also be that of a
            sentence-transformers model or of any other encoder (mean), and is loaded for this call, to the GPU where
            there is one
        texts, tokenizer, max_length, batch_size, normalize, show_progress: as in `SimMIMModel.encode`

    Returns:
        (texts, dim), float32; (dim,) for one text that is not in a list.

    Raises:
        ValueError: a model that is not a text encoder, or no tokenizer.
        OSError: there is no such model.
    """
    if isinstance(model, (str, os.PathLike)):
        name = str(model)
        if tokenizer is None:
            tokenizer = load_tokenizer(name)
        model = load_encoder(name)
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
    return model_pooling.encode(model, texts, tokenizer, max_length, batch_size, normalize, show_progress)
