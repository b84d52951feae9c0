"""The families of transformers: how each spells its language-model head, counts positions, and is built and loaded."""

import contextlib
import copy
import inspect
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)
from transformers.utils import cached_file

from .configuration_simmim import SimMIMConfig


@dataclass(frozen=True)
class NativeHead:
    """How a family of transformers spells its own language-model head: decoder(norm(activation(dense(hidden)))).

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
    return NATIVE_HEADS.get(family, DECODER_HEAD if is_decoder_family(family) else None)


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
    accepts = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if accepts else {}


def build_encoder(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder of a backbone with random weights, without a pooler.

    Raises:
        ValueError: a model that does not read text.
    """
    encoder_class = MODEL_MAPPING.get(type(text_config), None)
    if encoder_class is None:
        return AutoModel.from_config(text_config)
    if encoder_class.main_input_name != "input_ids":
        raise ValueError(
            f"`text_config` is a `{text_config.model_type}`, which reads `{encoder_class.main_input_name}` and not "
            "text. Give a text encoder such as `bert`."
        )
    return AutoModel.from_config(text_config, **without_pooler(encoder_class))


def first_position(encoder: nn.Module) -> int:
    """The position id of a sequence's first token: RoBERTa and its kin count from padding_idx + 1, others from 0."""
    embedding = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding_idx = getattr(embedding, "padding_idx", None)
    return 0 if padding_idx is None else padding_idx + 1


def dropouts(text_config: PreTrainedConfig) -> dict[str, float]:
    """The dropout probabilities inside a backbone, by the names that its family has for them."""
    of_heads = ("classifier", "summary", "qa", "seq_classif", "pooler")
    return {
        name: value
        for name, value in vars(text_config).items()
        if "drop" in name and "layerdrop" not in name and not name.startswith(of_heads) and value is not None
    }


def adjust_backbone(text_config: PreTrainedConfig, num_hidden_layers: int | None, dropout: float | None) -> None:
    """Changes the configuration of a backbone, where a value is given.

    Args:
        num_hidden_layers: keep the first so many of its layers
        dropout: one probability for all of its dropouts

    Raises:
        ValueError: it has fewer layers or no dropout, or a number that is no probability below 1.
    """
    if num_hidden_layers is not None:
        if not (isinstance(num_hidden_layers, int) and 0 <= num_hidden_layers <= text_config.num_hidden_layers):
            raise ValueError(
                f"num_hidden_layers={num_hidden_layers!r}: give a number from 0 to {text_config.num_hidden_layers}, "
                "which there are."
            )
        text_config.num_hidden_layers = num_hidden_layers
        if getattr(text_config, "layer_types", None):  # the kind of attention of each
            text_config.layer_types = text_config.layer_types[:num_hidden_layers]
        if num_hidden_layers == 0:
            try:
                AutoModel.from_config(text_config)
            except ZeroDivisionError as error:  # its weights are drawn by the number of its layers
                raise ValueError(
                    f"num_hidden_layers=0: transformers cannot make a `{text_config.model_type}` without layers. Take "
                    "another backbone for a bag of words: `--text_config bert`."
                ) from error
    if dropout is not None:
        if not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
            raise ValueError(f"dropout={dropout!r}: give a number from 0 to below 1.")
        names = dropouts(text_config)
        if not names:
            raise ValueError(f"dropout={dropout}: the backbone `{text_config.model_type}` has no dropout.")
        for name in names:
            setattr(text_config, name, dropout)


def as_decoder(text_config: PreTrainedConfig) -> PreTrainedConfig:
    """The backbone's configuration for reading from left to right, with a cache where transformers has one for it."""
    text_config = copy.deepcopy(text_config)
    if can_be_decoder(text_config.model_type):
        text_config.is_decoder = True
    return text_config


def load_native(name_or_path: str, text_config: PreTrainedConfig, **loading) -> tuple[PreTrainedModel, dict]:
    """The backbone in its own class with a language-model head, and what was missing in the checkpoint.

    That a head is missing is for the caller to say: transformers' own words, of a checkpoint that seems corrupted, are
    kept back where nothing of the encoder is missing.
    """
    has_masked_lm = text_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    auto_class = AutoModelForMaskedLM if has_masked_lm else class_with_head(text_config)
    loader, said = logging.getLogger("transformers.modeling_utils"), []

    def keep_back(record: logging.LogRecord) -> bool:
        said.append(record)
        return False

    loader.addFilter(keep_back)
    try:
        with explaining_weights(name_or_path):
            model, info = (auto_class or AutoModel).from_pretrained(
                name_or_path, config=text_config, output_loading_info=True, use_safetensors=True, **loading
            )
        if auto_class and not any(key.startswith(f"{model.base_model_prefix}.") for key in info["missing_keys"]):
            said.clear()
    finally:
        loader.removeFilter(keep_back)
        for record in said:
            loader.handle(record)
    return model, info


# Of sentence-transformers: the modules that make a vector as it can be made here, and the poolings among theirs.
MODULES, POOLINGS = ("Transformer", "Pooling", "Normalize"), ("mean", "cls", "max")


def source_pooling(name_or_path: str, **finding) -> str | None:
    """How a sentence-transformers model pools: mean, cls or max; None for a checkpoint that does not say it, or of
    SimMIM, whose configuration says it.

    Args:
        finding: options of `from_pretrained` that say where the files are, such as `revision`

    Raises:
        ValueError: it makes its vectors in a way that is not known here, such as by a Dense module.
    """
    if (_read_json(name_or_path, "config.json", finding) or {}).get("model_type") == SimMIMConfig.model_type:
        return None
    modules = _read_json(name_or_path, "modules.json", finding)
    folders = {module["type"].rpartition(".")[2]: module["path"] for module in modules or ()}
    remedy = "`pooling` mean, cls or max takes its encoder alone."
    for kind in folders:
        if kind not in MODULES:
            raise ValueError(
                f"`{name_or_path}` makes its vectors by a module `{kind}`, which is unknown here. {remedy}"
            )
    if "Pooling" not in folders:
        return None
    options = _read_json(name_or_path, f"{folders['Pooling']}/config.json", finding) or {}
    # Before version 5.4 there was a switch for each of them, such as `pooling_mode_cls_token`.
    switched_on = [name for name, value in options.items() if name.startswith("pooling_mode_") and value is True]
    before = [re.sub(r"^pooling_mode_|_tokens?$", "", name) for name in switched_on] or ["mean"]
    modes = options.get("pooling_mode", before)
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ValueError(f"`{name_or_path}` has the pooling {' + '.join(modes)}, which is unknown here. {remedy}")
    return modes[0]


def _read_json(name_or_path: str, file: str, finding: dict):
    """What a file of a checkpoint holds, None where it is not there."""
    with contextlib.suppress(OSError):
        return json.loads(Path(cached_file(name_or_path, file, **finding)).read_text(encoding="utf-8"))


@contextlib.contextmanager
def explaining_weights(name_or_path):
    """Explains why the weights of a checkpoint are not read.

    Raises:
        OSError: there are no weights in safetensors, or the file is damaged.
    """
    try:
        yield
    except (SafetensorError, json.JSONDecodeError) as error:  # the latter: the index of the shards
        raise OSError(
            f"The weights in `{name_or_path}` are damaged, as after an interrupted download or a full disk ({error}). "
            "Fetch or save them again."
        ) from error
    except OSError as error:
        # The name of a folder, or of a file that does not arrive, may hold the word as well.
        if not re.search(r"file named model[\w.]*\.safetensors", str(error)):
            raise
        raise OSError(
            f"`{name_or_path}` has no weights in safetensors. Weights in `.bin` files are pickles, which can execute "
            f"code when they are opened, and are refused; convert them to safetensors where you trust them. ({error})"
        ) from error
