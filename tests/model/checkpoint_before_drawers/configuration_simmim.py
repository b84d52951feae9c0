"""What a SimMIM checkpoint is: a text backbone of transformers plus the options of the joint objective."""

import difflib
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The weights of the loss and the view of the positive, by the name of the pre-training objective.
OBJECTIVES = {
    "clm": {"mlm_weight": 0.0, "contrastive_weight": 0.0, "clm_weight": 1.0},
    "mlm": {"mlm_weight": 1.0, "contrastive_weight": 0.0, "clm_weight": 0.0},
    "simcse": {"mlm_weight": 0.0, "contrastive_weight": 1.0, "clm_weight": 0.0, "positive_view": "dropout"},
    "simmim": {"mlm_weight": 1.0, "contrastive_weight": 1.0, "clm_weight": 0.0},
    "fused": {"mlm_weight": 1.0, "contrastive_weight": 1.0, "clm_weight": 1.0},
}

CHOICES = {
    "pooling": ("mean", "cls", "max"),
    "similarity": ("cosine", "dot"),
    "contrastive_loss": ("info_nce", "decoupled"),
    "positive_view": ("masked", "dropout", "deleted", "cropped"),
    "stop_gradient": (None, "original", "positive"),
}

WEIGHTS = ("mlm_weight", "contrastive_weight", "clm_weight")

# Every checkpoint opens in every class, also where this package is not installed: with these files beside its weights
# and `trust_remote_code=True`. The files import each other, torch and transformers only.
REMOTE_FILES = ("configuration_simmim.py", "modeling_simmim.py", "packing.py", "losses.py")
AUTO_MAP = {
    "AutoConfig": "configuration_simmim.SimMIMConfig",
    "AutoModel": "modeling_simmim.SimMIMModel",
    "AutoModelForPreTraining": "modeling_simmim.SimMIMForPreTraining",
    "AutoModelForMaskedLM": "modeling_simmim.SimMIMForMaskedLM",
    "AutoModelForCausalLM": "modeling_simmim.SimMIMForCausalLM",
    "AutoModelForSequenceClassification": "modeling_simmim.SimMIMForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_simmim.SimMIMForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_simmim.SimMIMForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_simmim.SimMIMForMultipleChoice",
}

# Options that transformers itself passes to or stores in any config, beside the fields of `PreTrainedConfig`.
COMMON_OPTIONS = {
    *("name_or_path", "torch_dtype", "num_labels", "attn_implementation", "experts_implementation"),
    *("output_attentions", "auto_map", "quantization_config", "tokenizer_class", "custom_pipelines", "is_decoder"),
    *("task_specific_params", "classifier_dropout", "per_layer_config", "use_cache"),
}


def _nearest(name: str, candidates) -> str:
    """` Did you mean X?` for a misspelt option, or nothing where no candidate is near."""
    near = difflib.get_close_matches(name, candidates, n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def _of_text_config(name: str) -> property:
    """A property of the backbone that other parts of transformers look for on the model's own config."""

    def get(self):
        return getattr(self.text_config, name)

    def set(self, value):
        setattr(self.text_config, name, value)

    return property(get, set, doc=f"`text_config.{name}`.")


class SimMIMConfig(PreTrainedConfig):
    r"""
    Configuration of SimMIM, the Siamese Masked Language Model for text.

    The loss is `mlm_weight * L_MLM + contrastive_weight * L_contrast + clm_weight * L_CLM`; a term of weight 0 is not
    computed.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone: any text encoder or decoder of transformers. A `dict` without `model_type`
            is a BERT. Default: `BertConfig()`.
        pooling (`str`, defaults to `"mean"`):
            How token vectors become the sequence vector: `"mean"`, `"cls"` (first token) or `"max"`.
        similarity (`str`, defaults to `"cosine"`):
            Of two sequence vectors: `"cosine"` or `"dot"`.
        temperature (`float`, defaults to 0.05):
            Divides the similarities.
        contrastive_loss (`str`, defaults to `"info_nce"`):
            `"info_nce"`, or `"decoupled"`, which leaves the positive out of the denominator (Yeh et al. 2022).
        mlm_weight, contrastive_weight, clm_weight (`float`, default to 1, 1 and 0):
            The weights of the terms.
        positive_view (`str`, defaults to `"masked"`):
            What a sequence is pulled towards: its masked copy; itself under another dropout mask (`"dropout"`); or a
            copy of another length that the collator makes, with tokens `"deleted"` or both `"cropped"` differently.
        stop_gradient (`str`, *optional*):
            Hold the vectors of one view fixed in the contrastive loss: `"original"` or `"positive"`.
        symmetric (`bool`, defaults to `False`):
            Average the contrastive loss with that of the masked copies as rows and the originals as candidates.
        gather_negatives (`bool`, defaults to `True`):
            Under torch.distributed, take the sequences of all processes as negatives.
        projection_dim (`int`, *optional*):
            Width of an MLP projection between the pooled vector and the contrastive loss, used in training only.
        uncertainty_weighting (`bool`, defaults to `False`):
            Learn how much each term counts: `exp(-s) * L + s / 2` with a learned log-variance `s` takes the place of
            each loss `L` (Kendall, Gal & Cipolla 2018, equation 10).
        tie_word_embeddings (`bool`, defaults to `True`):
            Tie the output projection of the language-model head to the input embeddings.

    Raises:
        ValueError: an option that does not exist, or a value that cannot work; the message names the remedy.

    Example:

    ```python
    >>> from transformers import ModernBertConfig
    >>> from simmim_hf import SimMIMConfig
    >>> config = SimMIMConfig(text_config=ModernBertConfig(num_hidden_layers=6), temperature=0.1)
    >>> baseline = SimMIMConfig.from_objective("simcse", text_config=ModernBertConfig(num_hidden_layers=6))
    ```
    """

    model_type = "simmim"
    sub_configs = {"text_config": AutoConfig}
    # Trainer's evaluation gathers every output of the model that is not named here.
    keys_to_ignore_at_inference = [
        *("mlm_loss", "contrastive_loss", "clm_loss", "mlm_accuracy", "contrastive_accuracy"),
        *("original_embeds", "masked_embeds", "hidden_states", "attentions", "past_key_values"),
    ]

    text_config: dict | PreTrainedConfig | None = None
    pooling: str = "mean"
    similarity: str = "cosine"
    temperature: float | int = 0.05
    contrastive_loss: str = "info_nce"
    mlm_weight: float | int = 1.0
    contrastive_weight: float | int = 1.0
    clm_weight: float | int = 0.0
    positive_view: str = "masked"
    stop_gradient: str | None = None
    symmetric: bool = False
    gather_negatives: bool = True
    projection_dim: int | None = None
    uncertainty_weighting: bool = False
    tie_word_embeddings: bool = True

    hidden_size = _of_text_config("hidden_size")
    vocab_size = _of_text_config("vocab_size")
    num_hidden_layers = _of_text_config("num_hidden_layers")
    num_attention_heads = _of_text_config("num_attention_heads")
    max_position_embeddings = _of_text_config("max_position_embeddings")
    pad_token_id = _of_text_config("pad_token_id")
    bos_token_id = _of_text_config("bos_token_id")
    eos_token_id = _of_text_config("eos_token_id")

    def __post_init__(self, **kwargs):
        self.text_config = _as_text_config(self.text_config)
        self._reject_unknown(kwargs)
        self._validate()
        super().__post_init__(**kwargs)

    @classmethod
    def from_objective(cls, objective: str, **kwargs) -> "SimMIMConfig":
        """The configuration of a pre-training objective by name: `clm`, `mlm`, `simcse`, `simmim` or `fused`.

        Raises:
            ValueError: an objective that does not exist.
        """
        if objective not in OBJECTIVES:
            raise ValueError(
                f"Unknown objective `{objective}`.{_nearest(objective, OBJECTIVES)} "
                f"There are: {', '.join(OBJECTIVES)}."
            )
        return cls(**{**OBJECTIVES[objective], **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        # A folder may come from a newer version of this package: what it does not know must not stop the loading.
        unknown = [name for name in config_dict if not cls._is_option(name)]
        if unknown:
            logger.warning_once(
                f"This configuration has options that this version of simmim_hf does not know: {', '.join(unknown)}. "
                "They are ignored; if the checkpoint was made by a newer version, upgrade with "
                "`pip install --upgrade simmim_hf`."
            )
        loaded = super().from_dict({k: v for k, v in config_dict.items() if k not in unknown}, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._validate()  # `kwargs` are set behind `__post_init__`
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Writes `config.json` and the files that open the checkpoint without this package.

        Every way of saving or pushing a model comes through here. transformers would name only the class that is
        saved, and `AutoModel` would then refuse a pre-training checkpoint.
        """
        self.auto_map = dict(AUTO_MAP)
        if os.path.exists(self.text_config._name_or_path):
            self.text_config._name_or_path = ""  # a folder of this machine is nobody else's business
        super().save_pretrained(save_directory, **kwargs)
        for source in map(Path(__file__).with_name, REMOTE_FILES):
            target = Path(save_directory, source.name)
            # A configuration that was itself loaded from a Hub without its models has no files beside it.
            if source.is_file() and not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)

    @property
    def objective_is_causal(self) -> bool:
        """Whether the model is only ever trained to read from left to right (the `clm` preset)."""
        return self.clm_weight > 0 and self.mlm_weight == 0 and self.contrastive_weight == 0

    @classmethod
    def _is_option(cls, name: str) -> bool:
        known = {field.name for field in fields(cls)} | COMMON_OPTIONS | {"model_type"}
        return name in known or name.startswith("_") or isinstance(getattr(cls, name, None), property)

    def _reject_unknown(self, kwargs: dict[str, Any]) -> None:
        for name in kwargs:
            if self._is_option(name):
                continue
            if hasattr(self.text_config, name):
                raise ValueError(
                    f"`{name}` is an option of the backbone: give it in `text_config`, "
                    f"for example `text_config=dict(model_type='{self.text_config.model_type}', {name}=...)`."
                )
            options = [field.name for field in fields(self)]
            raise ValueError(f"SimMIMConfig has no option `{name}`.{_nearest(name, options)}")

    def _validate(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                near = _nearest(str(value), filter(None, choices))
                raise ValueError(f"`{name}` is {value!r}.{near} Choose from {choices}.")
        if not self.temperature > 0:
            raise ValueError(f"`temperature` is {self.temperature}: it must be above 0; 0.05 is usual for cosine.")
        for name in WEIGHTS:
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: a weight must be 0 or above; 0 leaves it out.")
        if not any(getattr(self, name) for name in WEIGHTS):
            raise ValueError(
                f"All of {', '.join(WEIGHTS)} are 0: nothing would be learned. Give one a weight above 0."
            )
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"`projection_dim` is {self.projection_dim}: give a width of 1 or more, or None.")


def _as_text_config(text_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """The backbone's config object; refuses what is not a single text model."""
    if text_config is None:
        text_config = {}
    if isinstance(text_config, dict):
        options = dict(text_config)
        text_config = AutoConfig.for_model(options.pop("model_type", "bert"), **options)
    is_text = all(isinstance(getattr(text_config, name, None), int) for name in ("vocab_size", "hidden_size"))
    if not is_text or hasattr(text_config, "vision_config") or hasattr(text_config, "audio_config"):
        raise ValueError(
            f"`text_config` is a `{text_config.model_type}`, which is not a text model with a vocabulary. "
            "Give a text encoder such as `bert`, `roberta` or `modernbert`, or a decoder such as `llama`."
        )
    if text_config.is_encoder_decoder:
        raise ValueError(
            f"`text_config` is a `{text_config.model_type}`, an encoder-decoder. "
            "SimMIM shares one encoder: give a text encoder such as `bert`, or a decoder such as `llama`."
        )
    return text_config


__all__ = ["SimMIMConfig"]
