"""The families of transformers: the names in their language-model heads, how they count positions, how they are built.

Every backbone and every head is that of transformers; this file holds what differs between families.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)


@dataclass(frozen=True)
class NativeHead:
    """The modules of a family's own language-model head: decoder(norm(activation(dense(hidden)))).

    A head without `dense` is the decoder alone.
    """

    decoder: str
    dense: str | None = None
    norm: str | None = None
    activation: Callable[[PreTrainedConfig], str] = lambda config: "gelu"
    eps: Callable[[PreTrainedConfig], float] = lambda config: config.layer_norm_eps
    bias: Callable[[PreTrainedConfig], bool] = lambda config: True

    def parts(self) -> dict[str, str]:
        """The family's names of the modules that it has, by ours."""
        parts = {"dense": self.dense, "norm": self.norm, "decoder": self.decoder}
        return {ours: theirs for ours, theirs in parts.items() if theirs is not None}


# Heads that several families share.
BERT_HEAD = NativeHead(
    dense="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    decoder="cls.predictions.decoder",
    activation=lambda config: config.hidden_act,
)
ROBERTA_HEAD = NativeHead(dense="lm_head.dense", norm="lm_head.layer_norm", decoder="lm_head.decoder")
DECODER_HEAD = NativeHead(decoder="lm_head", bias=lambda config: False)
NEW_HEAD = NativeHead("decoder", dense="dense", norm="norm", eps=lambda config: 1e-12)


# A new family is one row here; an encoder without a row gets `NEW_HEAD`, a decoder a bare projection.
NATIVE_HEADS = {
    "bert": BERT_HEAD,
    "roberta": ROBERTA_HEAD,
    "xlm-roberta": ROBERTA_HEAD,
    "camembert": ROBERTA_HEAD,
    "mpnet": ROBERTA_HEAD,
    "nomic_bert": replace(BERT_HEAD, norm="cls.predictions.transform.layer_norm"),
    "distilbert": NativeHead(
        dense="vocab_transform",
        norm="vocab_layer_norm",
        decoder="vocab_projector",
        activation=lambda config: config.activation,
        eps=lambda config: 1e-12,
    ),
    "electra": NativeHead(
        dense="generator_predictions.dense", norm="generator_predictions.LayerNorm", decoder="generator_lm_head"
    ),
    "modernbert": NativeHead(
        dense="head.dense",
        norm="head.norm",
        decoder="decoder",
        activation=lambda config: config.classifier_activation,
        eps=lambda config: config.norm_eps,
        bias=lambda config: config.decoder_bias,
    ),
    "eurobert": NativeHead(decoder="lm_head", bias=lambda config: config.mlp_bias),
}


def native_head(text_config: PreTrainedConfig) -> NativeHead | None:
    """The row of `NATIVE_HEADS` for a backbone, or None for an encoder that has none."""
    family = text_config.model_type
    if family in NATIVE_HEADS:
        return NATIVE_HEADS[family]
    return DECODER_HEAD if is_decoder_family(family) else None


def is_decoder_family(family: str) -> bool:
    """Whether transformers has the family as a decoder only."""
    return can_be_decoder(family) and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def can_be_decoder(family: str) -> bool:
    """Whether transformers has a class of the family that reads from left to right."""
    return family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def class_with_head(text_config: PreTrainedConfig) -> type | None:
    """The Auto class of a backbone with its language-model head, None for a family that has none."""
    family = text_config.model_type
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text_config, "is_decoder", False):
        return AutoModelForMaskedLM
    return AutoModelForCausalLM if can_be_decoder(family) else None


def without_pooler(model_class: type[PreTrainedModel]) -> dict[str, bool]:
    """The option that leaves out BERT's own pooler, which would stay without a gradient; {} for other families."""
    has_option = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if has_option else {}


def build_encoder(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder of a backbone with random weights, without a pooler.

    Raises:
        ValueError: a model that does not read text.
    """
    encoder_class = MODEL_MAPPING.get(type(text_config), None)
    if encoder_class is None:  # with code of its own, from the Hub
        return AutoModel.from_config(text_config)
    if encoder_class.main_input_name != "input_ids":
        raise ValueError(
            f"`text_config` is a `{text_config.model_type}`, which reads `{encoder_class.main_input_name}` and not "
            "text. Give a text encoder such as `bert`."
        )
    return AutoModel.from_config(text_config, **without_pooler(encoder_class))


def first_position(encoder: nn.Module) -> int:
    """The position id of a sequence's first token: RoBERTa and its kin count from padding_idx + 1, others from 0."""
    # None with rotary positions, which have no table.
    embedding = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding_idx = getattr(embedding, "padding_idx", None)
    if padding_idx is None:
        return 0
    return padding_idx + 1


def dropouts(text_config: PreTrainedConfig) -> dict[str, float]:
    """The dropout probabilities inside a backbone, by the names that its family has for them."""
    # A dropout on top of the encoder is not its own, and layerdrop leaves out whole layers.
    of_heads = ("classifier", "summary", "qa", "seq_classif", "pooler")
    return {
        name: value
        for name, value in vars(text_config).items()
        if "drop" in name and "layerdrop" not in name and not name.startswith(of_heads) and value is not None
    }


def adjust_backbone(text_config: PreTrainedConfig, num_hidden_layers: int | None, dropout: float | None) -> None:
    """Changes the configuration of a backbone, where a value is not None.

    Args:
        num_hidden_layers: keep the first so many of its layers
        dropout: one probability for all of its dropouts

    Raises:
        ValueError: it has fewer layers or no dropout, or a number that is no probability below 1.
    """
    if num_hidden_layers is not None:
        _keep_first_layers(text_config, num_hidden_layers)
    if dropout is not None:
        _set_dropout(text_config, dropout)


def _keep_first_layers(text_config: PreTrainedConfig, num_hidden_layers: int) -> None:
    is_number = isinstance(num_hidden_layers, int)
    if not (is_number and 0 <= num_hidden_layers <= text_config.num_hidden_layers):
        raise ValueError(
            f"num_hidden_layers={num_hidden_layers!r}: give a number from 0 to {text_config.num_hidden_layers}, "
            "which there are."
        )
    text_config.num_hidden_layers = num_hidden_layers
    if getattr(text_config, "layer_types", None):  # the kind of attention of each
        text_config.layer_types = text_config.layer_types[:num_hidden_layers]
    # Some families cannot even be initialised without layers: found here, with a remedy.
    if num_hidden_layers == 0:
        try:
            AutoModel.from_config(text_config)
        except ZeroDivisionError as error:  # its weights are drawn by the number of its layers
            raise ValueError(
                f"num_hidden_layers=0: transformers cannot make a `{text_config.model_type}` without layers. Take "
                "another backbone for a bag of words: `--text_config bert`."
            ) from error


def _set_dropout(text_config: PreTrainedConfig, dropout: float) -> None:
    if not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
        raise ValueError(f"dropout={dropout!r}: give a number from 0 to below 1.")
    names = dropouts(text_config)
    if not names:
        raise ValueError(f"dropout={dropout}: the backbone `{text_config.model_type}` has no dropout.")
    for name in names:
        setattr(text_config, name, dropout)


def as_decoder(text_config: PreTrainedConfig) -> PreTrainedConfig:
    """The backbone's configuration for reading from left to right, with a cache where transformers has one for it."""
    text_config = copy.deepcopy(text_config)  # the model's own keeps both directions
    if can_be_decoder(text_config.model_type):
        text_config.is_decoder = True
    return text_config
