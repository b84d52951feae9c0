"""The configuration of SimMIM: a text backbone of transformers plus the options of the joint objective."""

import difflib
import functools
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

PositiveView = Literal["masked", "dropout", "deleted", "cropped", "span", "snippet"]
CorruptedViews = Literal["copy", "both"]
Negatives = Literal["other_view", "both_views"]
Pooling = Literal["mean", "cls", "max", "attention"]
PooledLayers = Literal["last", "first_last", "table_and_last"]
Similarity = Literal["cosine", "dot"]
ContrastiveLoss = Literal["info_nce", "decoupled"]
StopGradient = Literal["original", "positive"]
ContrastiveGradient = Literal["encoder", "pooler"]

# The view that a sequence is pulled towards. "masked" and "dropout" need nothing but the batch; the collator makes
# every other view in its method `_make_VIEW`. "cropped" is random cropping, as for images (SimCLR, Chen et al. 2020)
# and in Contriever (Izacard et al. 2022); "span" is coCondenser's (Gao & Callan 2022), with one cut; "snippet" is the
# inverse cloze task (Lee, Chang & Toutanova 2019) on tokens: the stretch is the query, and the text, with or without
# it, the document.
POSITIVE_VIEWS: dict[PositiveView, str] = {
    "masked": "its masked copy",
    "dropout": "itself under another dropout mask",
    "deleted": "a copy with tokens deleted",
    "cropped": "another stretch of the same text",
    "span": "the text on the other side of a cut",
    "snippet": "a short stretch of the same text, which may be taken out of it",
}
PASSAGES = {"span": 2}  # passages of a text in a row, for a view that needs more than one

JOINT = {"mlm_weight": 1.0, "contrastive_weight": 1.0, "clm_weight": 0.0}
# Two views, both corrupted and both predicted, whose vectors can weigh their words.
TWO_VIEWS = {"corrupted_views": "both", "symmetric": True, "negatives": "both_views", "pooling": "attention"}
# Weights of the loss and views that it compares, by the name of the pre-training objective.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clm": {"mlm_weight": 0.0, "contrastive_weight": 0.0, "clm_weight": 1.0},
    "mlm": {"mlm_weight": 1.0, "contrastive_weight": 0.0, "clm_weight": 0.0},
    "simcse": {"mlm_weight": 0.0, "contrastive_weight": 1.0, "clm_weight": 0.0, "positive_view": "dropout"},
    "simmim": JOINT,
    "fused": {**JOINT, "clm_weight": 1.0},
    "spans": {**JOINT, **TWO_VIEWS, "positive_view": "span"},
    "snippets": {
        **JOINT,
        **TWO_VIEWS,
        "positive_view": "snippet",
        # At temperature 0.05 the contrastive gradient norm is 10 times the masked one, and both are clipped together:
        # at weight 1 clipping would shrink the masked gradient.
        "contrastive_weight": 0.1,
        # The contrastive gradient ends at the pooling, where a token table learns from it.
        "pooled_layers": "table_and_last",
        "contrastive_gradient": "pooler",
    },
}

WEIGHTS = tuple(JOINT)
# Options of the vectors; a checkpoint that is continued keeps its own.
VECTOR_OPTIONS = ("pooling", "pooled_layers", "token_table_dim", "contrastive_gradient")

# Every checkpoint opens in every class, also where this package is not installed: it has the files of this folder, for
# `trust_remote_code=True`. The files import each other, torch and transformers only.
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


def remote_files() -> list[str]:
    """The names of the files that travel with a checkpoint: all modules of this folder.

    Fewer for a configuration that was itself loaded as remote code, without its models.
    """
    names = {path.name for path in Path(__file__).parent.glob("*.py")}
    return sorted(names - {"__init__.py"})


TOKEN_IDS = [f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")]  # options of a backbone

# transformers passes these to any config, or stores them there, in addition to the fields of `PreTrainedConfig`.
COMMON_OPTIONS = [
    "model_type",
    "attn_implementation",
    "experts_implementation",
    "auto_map",
    "quantization_config",
    "tokenizer_class",
    "custom_pipelines",
    "is_decoder",
    "task_specific_params",
    "classifier_dropout",
    "use_cache",
]

# Options of earlier versions: the value that changed nothing, as None does, and why each is gone.
REMOVED_OPTIONS: dict[str, tuple[Any, str]] = {
    "queue_size": (None, "negatives of earlier batches made no better vectors; --chunk_size gives more negatives"),
    "uncertainty_weighting": (False, "learned weights gained nothing; mlm_weight and the others are chosen"),
    "conflict_steps": (None, "the gradients of the masked and the contrastive term were found nearly orthogonal"),
    "hard_negatives": ("none", "the following text as a negative gained nothing; a column `negative` has others"),
    "one_source_batches": (False, "batches of one source were neither better nor worse"),
    "max_minutes": (None, "a run that ends with the time is another on each machine; --max_steps ends it early"),
    "budget_seconds": (None, "its runs were others on each machine; --budget_tokens, _text or _flops plan them"),
}


# Options of earlier versions under their names of today, and the values that have another name.
RENAMED_OPTIONS = {
    "lexicon_size": "token_table_dim",
    "min_span_length": "min_view_length",
    "mean_span_length": "mean_mask_span",
    "snippet_removal": "context_removal_prob",
}
RENAMED_VALUES = {"pooled_layers": {"lexical_last": "table_and_last"}}


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as any version names them, by the names of this one, and without those of `REMOVED_OPTIONS`.

    Raises:
        ValueError: a removed option has a value that would change something, or an option has both its names.
    """
    current: dict[str, Any] = {}
    for name, value in options.items():
        if name in REMOVED_OPTIONS:
            _check_removed(name, value)
            continue
        new_name = RENAMED_OPTIONS.get(name, name)
        if new_name != name and new_name in options:
            raise ValueError(f"`{name}` is the old name of `{new_name}`, which is there too. Leave the old one out.")
        current[new_name] = current_value(new_name, value)
    ratio = current.get("mlm_probability")
    if isinstance(ratio, (list, tuple)):  # one number, or two for a schedule
        if len(ratio) > 1:
            raise ValueError(
                f"`mlm_probability` is {ratio}, and a schedule of it is gone, which was never shown to gain. Give one."
            )
        current["mlm_probability"] = ratio[0]
    return current


def current_value(name: str, value: Any) -> Any:
    """The value of an option as any version names it, by the name of this one."""
    if isinstance(value, str):
        return RENAMED_VALUES.get(name, {}).get(value, value)
    return value


def _check_removed(name: str, value: Any) -> None:
    unused, reason = REMOVED_OPTIONS[name]
    if value not in (None, unused):
        raise ValueError(f"`{name}` is {value!r}, and this option is gone: {reason}. Leave it out.")


def nearest(name: str, candidates: Iterable[str], spelling: str = "`{}`") -> str:
    """` Did you mean X?` for a misspelt or shortened option, or nothing where no candidate is near."""
    candidates = list(candidates)
    # First a name that was shortened to its end, such as `length` for `max_length`.
    near = [candidate for candidate in candidates if candidate.endswith(f"_{name}")]
    near += difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    if not near:
        return ""
    return f" Did you mean {spelling.format(near[0])}?"


def choices_of(option: Field) -> tuple:
    """The values that a dataclass field of a `Literal` type takes, None among them where it may be None, else ()."""
    # `Literal[...]` itself, or the parts of `Literal[...] | None`.
    kinds = [option.type]
    if get_origin(option.type) is not Literal:
        kinds = list(get_args(option.type))
    values: list[Any] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            values += get_args(kind)
    if values and type(None) in kinds:
        values.append(None)
    return tuple(values)


def described(cls):
    """A class decorator: lists the fields with their help in place of `{options}` in the docstring."""
    lines = []
    for option in fields(cls):
        if "help" in option.metadata:
            default = option.default
            if callable(option.default_factory):
                default = option.default_factory()
            lines.append(f"        {option.name} (default: {default!r}): {option.metadata['help']}")
    cls.__doc__ = cls.__doc__.replace("        {options}", "\n".join(lines))
    return cls


def takes_old_names(cls):
    """A class decorator: the constructor takes options under the names of earlier versions too."""
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self, *args, **options):
        construct(self, *args, **current_options(options))

    cls.__init__ = __init__
    return cls


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _of_text_config(name: str) -> property:
    """A property of the backbone that other parts of transformers look for on the model's own config."""
    return property(
        lambda self: getattr(self.text_config, name),
        lambda self, value: setattr(self.text_config, name, value),
        doc=f"`text_config.{name}`.",
    )


@dataclass(frozen=True)
class Objective:
    """The objective of one forward: the weights of its terms, and the views that the contrastive term compares.

    The default of the model is that of its configuration. A schedule or a measurement passes another one: it never
    changes a configuration that others read.
    """

    mlm_weight: float
    contrastive_weight: float
    clm_weight: float
    positive_view: PositiveView = "masked"
    corrupted_views: CorruptedViews = "copy"

    @property
    def corrupts_both(self) -> bool:
        """Whether both views that are compared are corrupted, and no uncorrupted text is read."""
        return bool(self.contrastive_weight) and self.corrupted_views == "both"

    @property
    def reads_masked(self) -> bool:
        """Whether the masked copy is read."""
        return bool(self.mlm_weight) or self.masked_is_positive or self.corrupts_both

    @property
    def masked_is_positive(self) -> bool:
        """Whether the contrastive term compares a text with its masked copy."""
        return bool(self.contrastive_weight) and self.positive_view == "masked" and not self.corrupts_both

    @property
    def directions(self) -> list[bool]:
        """The directions of the passes: True from left to right only, False both ways."""
        directions = []
        if self.clm_weight > 0:
            directions.append(True)
        if self.mlm_weight > 0 or self.contrastive_weight > 0:
            directions.append(False)
        return directions

    @property
    def is_causal(self) -> bool:
        """Whether everything is read from left to right only."""
        return self.clm_weight > 0 and self.mlm_weight == 0 and self.contrastive_weight == 0


@takes_old_names
@described
class SimMIMConfig(PreTrainedConfig):
    r"""
    Configuration of SimMIM, the Siamese Masked Language Model for text.

    The defaults are the form of the article, the objective `simmim`; `from_objective("snippets")` is the recommended
    one. The loss is `mlm_weight * L_MLM + contrastive_weight * L_contrast + clm_weight * L_CLM`; a term of weight 0 is
    not computed.

    Args:
        {options}

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
        "mlm_loss",
        "contrastive_loss",
        "clm_loss",
        "mlm_accuracy",
        "contrastive_accuracy",
        "original_embeds",
        "masked_embeds",
        "hidden_states",
        "attentions",
        "past_key_values",
        "counts",
        "num_tokens",
    ]

    # Given as a configuration, a dict, a model type or None; a `PreTrainedConfig` from `__post_init__` on.
    text_config: Any = _option(
        None,
        "Configuration of the backbone: any text encoder or decoder of transformers, its `model_type` alone for the "
        "default sizes, or a dict, without `model_type` of a BERT.",
    )
    # The vectors.
    pooling: Pooling = _option(
        "mean",
        "How token vectors become the sequence vector; `cls` is the first token, `attention` a mean weighted by a "
        "learned score of each token.",
    )
    pooled_layers: PooledLayers = _option(
        "last",
        "Whose token vectors are pooled: those of the last layer; `first_last`, the mean of them and of what the "
        "first layer reads (`avg_first_last` of Gao et al. 2021); or `table_and_last`: those of a token table that "
        "serves nothing but the sequence vector, and beside them those of the last layer, each dimension with a "
        "learned scale.",
    )
    token_table_dim: int = _option(
        256, "With `table_and_last`: the width of the token table, so that a sequence vector has so many more numbers."
    )
    similarity: Similarity = _option("cosine", "Of two sequence vectors.")
    temperature: float | int = _option(0.05, "Divides the similarities.")
    # The loss.
    contrastive_loss: ContrastiveLoss = _option(
        "info_nce", "`decoupled` leaves the positive out of the denominator (Yeh et al. 2022)."
    )
    mlm_weight: float | int = _option(1.0, "Weight of the masked-token loss.")
    contrastive_weight: float | int = _option(1.0, "Weight of the contrastive loss.")
    clm_weight: float | int = _option(0.0, "Weight of the next-token loss.")
    # The views, and the contrastive loss of them.
    positive_view: PositiveView = _option(
        "masked", f"What a sequence is pulled towards: {'; '.join(f'`{k}`, {v}' for k, v in POSITIVE_VIEWS.items())}."
    )
    corrupted_views: CorruptedViews = _option(
        "copy",
        "`copy`: an uncorrupted text and its positive are compared, and the masked copy of the text is predicted. "
        "`both`: the text and its positive are both corrupted and both predicted, and no uncorrupted text is read, so "
        "that the contrastive term costs nothing beside masked-token prediction.",
    )
    stop_gradient: StopGradient | None = _option(
        None, "Hold the vectors of one view fixed in the contrastive loss. None: neither."
    )
    contrastive_gradient: ContrastiveGradient = _option(
        "encoder",
        "What the contrastive loss teaches. `pooler`: only what makes the vectors out of token states, so that the "
        "encoder learns what it would without the contrastive loss.",
    )
    symmetric: bool = _option(
        False, "Average the contrastive loss with that of the positives as rows and the originals as candidates."
    )
    negatives: Negatives = _option(
        "other_view",
        "The negatives of a row: the positives of the other rows, or `both_views`, these and the other rows "
        "themselves (NT-Xent, Chen et al. 2020, where `symmetric`).",
    )
    gather_negatives: bool = _option(
        True, "Under torch.distributed, take the sequences of all processes as negatives."
    )
    # The modules on top.
    projection_dim: int | None = _option(
        None, "Width of an MLP between the pooled vector and the contrastive loss, used in training only."
    )
    tie_word_embeddings: bool = _option(
        True, "Tie the output projection of the language-model head to the input embeddings."
    )

    # Pass-through to the backbone, with setters: `resize_token_embeddings` and others write them.
    hidden_size = _of_text_config("hidden_size")
    vocab_size = _of_text_config("vocab_size")
    num_hidden_layers = _of_text_config("num_hidden_layers")
    num_attention_heads = _of_text_config("num_attention_heads")
    max_position_embeddings = _of_text_config("max_position_embeddings")
    pad_token_id = _of_text_config("pad_token_id")
    bos_token_id = _of_text_config("bos_token_id")
    eos_token_id = _of_text_config("eos_token_id")

    def __post_init__(self, **kwargs):
        self.text_config = as_text_config(self.text_config)
        for name in self._unknown(kwargs):
            if hasattr(self.text_config, name):  # a likely slip: it is a level too high
                raise ValueError(
                    f"`{name}` is an option of the backbone: give it in `text_config`, "
                    f"for example `text_config=dict(model_type='{self.text_config.model_type}', {name}=...)`."
                )
            near = nearest(name, [option.name for option in fields(self)])
            raise ValueError(f"SimMIMConfig has no option `{name}`.{near}")
        self._validate()
        super().__post_init__(**kwargs)

    @classmethod
    def from_objective(
        cls, objective: str, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs
    ) -> "SimMIMConfig":
        """The configuration of a pre-training objective by name.

        Args:
            objective: one of `OBJECTIVES`
            tokenizer: of a model from scratch, whose `text_config` gets its vocabulary and special tokens
            kwargs: the options of this class that are not as in the preset

        Raises:
            ValueError: an objective that does not exist.
        """
        if tokenizer is not None:
            token_ids = token_ids_of(tokenizer)
            kwargs["text_config"] = with_vocabulary(kwargs.get("text_config"), len(tokenizer), token_ids)
        return cls(**{**options_of_objective(objective), **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:  # transformers would go on with a new backbone of random weights
            raise ValueError(
                f"This is a checkpoint of `{kind}` and not of SimMIM. `SimMIMForPreTraining.from_backbone(...)` "
                "starts from its weights."
            )
        config_dict = current_options(config_dict)
        kwargs = current_options(kwargs)
        # A folder may come from a newer version of this package: unknown options must not stop the loading.
        unknown = cls._unknown(config_dict)
        if unknown:
            logger.warning_once(
                f"This configuration has options that this version of simmim_hf does not know: {', '.join(unknown)}. "
                "They are ignored; if the checkpoint was made by a newer version, upgrade with "
                "`pip install --upgrade simmim_hf`."
            )
        config_dict = {name: value for name, value in config_dict.items() if name not in unknown}
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded
        if isinstance(loaded, tuple):  # with `return_unused_kwargs`
            config = loaded[0]
        config._validate()  # again: `kwargs` are set after `__post_init__`
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Writes `config.json` and the files that open the checkpoint without this package.

        Every way of saving or pushing a model comes through here. transformers would name only the class that is
        saved, and `AutoModel` would then refuse a pre-training checkpoint.
        """
        # All classes, not only the one that is saved.
        self.auto_map = dict(AUTO_MAP)
        if os.path.exists(self.text_config._name_or_path):
            self.text_config._name_or_path = ""  # a folder of this machine, which is private
        super().save_pretrained(save_directory, **kwargs)
        for name in remote_files():
            source = Path(__file__).with_name(name)
            target = Path(save_directory, name)
            # A checkpoint that brought its own code may be saved into its own folder.
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)

    @property
    def passages_per_row(self) -> int:
        """How many passages of a text, one behind the other, a row of `positive_view` needs."""
        return PASSAGES.get(self.positive_view, 1)

    @property
    def embedding_dim(self) -> int:
        """The width of a sequence vector."""
        if self.pooled_layers == "table_and_last":  # concatenated
            return self.token_table_dim + self.hidden_size
        return self.hidden_size

    @property
    def teaches_encoder(self) -> bool:
        """Whether any term of the loss has a gradient in the encoder."""
        contrasts = self.contrastive_weight > 0 and self.contrastive_gradient == "encoder"
        return self.mlm_weight > 0 or self.clm_weight > 0 or contrasts

    @property
    def objective(self) -> Objective:
        """What a forward learns from by default."""
        return Objective(**{option.name: getattr(self, option.name) for option in fields(Objective)})

    @classmethod
    def _unknown(cls, names: Iterable[str]) -> list[str]:
        """Those of the names that are no option of this class or of every model of transformers."""
        known = {option.name for option in fields(cls)} | set(COMMON_OPTIONS)
        others = [name for name in names if name not in known and not name.startswith("_")]
        return [name for name in others if not isinstance(getattr(cls, name, None), property)]

    def _validate(self) -> None:
        for option in fields(self):
            self._validate_value(option)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` is {self.temperature}: it must be above 0; 0.05 is usual for cosine.")
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}: a weight must be 0 or above; 0 leaves it out.")
        if not any(getattr(self, name) for name in WEIGHTS):
            raise ValueError(
                f"All of {', '.join(WEIGHTS)} are 0: nothing would be learned. Give one a weight above 0."
            )
        if self.token_table_dim < 1:
            raise ValueError(f"`token_table_dim` is {self.token_table_dim}: give a width of 1 or more; 256 is usual.")
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"`projection_dim` is {self.projection_dim}: give a width of 1 or more, or None.")

    def _validate_value(self, option: Field) -> None:
        """Refuses a value that is none of the choices, or of another type."""
        value = getattr(self, option.name)
        choices = choices_of(option)
        if choices:
            if value not in choices:
                near = nearest(str(value), filter(None, choices))
                raise ValueError(f"`{option.name}` is {value!r}.{near} Choose from {choices}.")
            return
        kind: Any = option.type
        is_own = "help" in option.metadata  # transformers has looser types than values in its own fields
        if is_own and kind is not Any and not isinstance(value, kind):
            raise ValueError(f"`{option.name}` is {value!r}: it must be {getattr(kind, '__name__', kind)}.")


def options_of_objective(objective: str) -> dict[str, Any]:
    """Every option that one of `OBJECTIVES` names, as this one has it.

    Raises:
        ValueError: an objective that does not exist.
    """
    if objective not in OBJECTIVES:
        raise ValueError(
            f"Unknown objective `{objective}`.{nearest(objective, OBJECTIVES)} There are: {', '.join(OBJECTIVES)}."
        )
    named = [name for options in OBJECTIVES.values() for name in options]
    defaults = {name: getattr(SimMIMConfig, name) for name in named}
    return defaults | OBJECTIVES[objective]


def token_ids_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The special tokens of a tokenizer by the names `TOKEN_IDS`."""
    return {name: getattr(tokenizer, name) for name in TOKEN_IDS}


def with_vocabulary(
    text_config: dict | PreTrainedConfig | str | None, vocab_size: int, token_ids: dict[str, int | None]
) -> dict[str, Any]:
    """The options of a backbone with another vocabulary, which may be too small for the special tokens of its family.

    Args:
        text_config: as in `SimMIMConfig`
        token_ids: by the names `TOKEN_IDS`, of which the backbone takes those that it has
    """
    options = text_config
    if not isinstance(options, dict):
        options = as_text_config(options).to_dict()
    # Of its own special tokens a family has some, and passes the names of others on to any configuration.
    family = AutoConfig.for_model(options.get("model_type", "bert"))
    known = {name: token_id for name, token_id in token_ids.items() if hasattr(family, name)}
    return {**options, "vocab_size": vocab_size, **known}


def as_text_config(text_config: dict | PreTrainedConfig | str | None) -> PreTrainedConfig:
    """The configuration object of a backbone.

    Args:
        text_config: such an object, its `model_type`, or a dict of its options; None is a BERT

    Raises:
        ValueError: it is not a single text model.
    """
    if text_config is None:
        text_config = {}
    if isinstance(text_config, str):
        text_config = {"model_type": text_config}
    if isinstance(text_config, dict):
        options = dict(text_config)
        family = options.pop("model_type", "bert")
        config = AutoConfig.for_model(family, **options)
    else:
        config = text_config
    is_text = all(isinstance(getattr(config, name, None), int) for name in ("vocab_size", "hidden_size"))
    if not is_text or hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        raise ValueError(
            f"`text_config` is a `{config.model_type}`, which is not a text model with a vocabulary. "
            "Give a text encoder such as `bert`, `roberta` or `modernbert`, or a decoder such as `llama`."
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"`text_config` is a `{config.model_type}`, an encoder-decoder. "
            "SimMIM shares one encoder: give a text encoder such as `bert`, or a decoder such as `llama`."
        )
    return config


__all__ = ["SimMIMConfig"]
