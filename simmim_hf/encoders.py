"""Any text encoder of transformers as something that `evaluation.encode` reads: with pooled vectors."""

import sys

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .configuration_simmim import SimMIMConfig, _as_text_config
from .modeling_simmim import _explaining_weights, pool


class PooledEncoder(torch.nn.Module):
    """An encoder of transformers that is not SimMIM, with the pooling of this package: a model for `encode`.

    Args:
        encoder: gives `last_hidden_state` (batch, length, hidden)
        pooling: `"mean"`, `"cls"` or `"max"`
    """

    def __init__(self, encoder: PreTrainedModel, pooling: str = "mean"):
        super().__init__()
        self.encoder, self.config, self.pooling = encoder, encoder.config, pooling

    @property
    def base_model(self) -> "PooledEncoder":
        return self

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens, that the encoder has positions for."""
        embedding = getattr(getattr(self.encoder, "embeddings", None), "position_embeddings", None)
        padding_idx = getattr(embedding, "padding_idx", None)  # RoBERTa and its kin count from padding_idx + 1
        taken = 0 if padding_idx is None else padding_idx + 1
        return getattr(self.config, "max_position_embeddings", sys.maxsize) - taken

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> BaseModelOutputWithPooling:
        """input_ids, attention_mask: (batch, length)"""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutputWithPooling(hidden, pool(hidden, attention_mask, self.pooling))


def load_encoder(name_or_path: str, pooling: str | None = None) -> torch.nn.Module:
    """A SimMIM checkpoint, or any other text encoder or decoder of transformers, as a model for `encode`.

    Args:
        pooling: default: that of the checkpoint, `"mean"` for one that is not SimMIM

    Raises:
        ValueError: not a text encoder, or a checkpoint without its weights.
        OSError: there is no such model.
    """
    config = text_encoder_config(name_or_path)
    model, missing = load_with_missing(AutoModel, name_or_path)
    missing = {key for key in missing if not key.startswith("pooler.")}  # BERT's own pooler is not used
    if missing:
        raise ValueError(
            f"the checkpoint `{name_or_path}` lacks weights of a `{config.model_type}`, which would be random: "
            f"{', '.join(sorted(missing)[:3])}."
        )
    if config.model_type != SimMIMConfig.model_type:
        return PooledEncoder(model, pooling or "mean")
    model.config.pooling = pooling or model.config.pooling
    return model


def text_encoder_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a checkpoint; raises a ValueError where it is not a text model."""
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if config.model_type != SimMIMConfig.model_type:
        try:
            _as_text_config(config)
        except ValueError as error:
            raise ValueError(
                f"the model `{name_or_path}` is a `{config.model_type}`, which is no encoder of text such as `bert`, "
                "`roberta` or `modernbert`."
            ) from error
    return config


def load_with_missing(auto_class, name_or_path: str) -> tuple[PreTrainedModel, set[str]]:
    """A model in float32, and the names of the weights that its checkpoint does not have."""
    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the caller tells what is missing; that a head is left over is no news
    try:
        with _explaining_weights(name_or_path):
            model, info = auto_class.from_pretrained(name_or_path, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    return model.eval(), set(info["missing_keys"])
