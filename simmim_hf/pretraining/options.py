"""The options of `simmim pretrain`, their defaults and their ranges."""

import json
import os
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin

import torch
from transformers import AutoConfig

from ..data import corpora, tokenization
from ..data.collator import DataCollatorForSimMIM
from ..model.backbones import adjust_backbone
from ..model.configuration_simmim import (
    OBJECTIVES,
    VECTOR_OPTIONS,
    SimMIMConfig,
    options_of_objective,
    with_vocabulary,
)
from ..options import Parser, is_number, option, options_of, reason
from ..training import sharding
from ..training.arguments import SimMIMTrainingArguments

# The best of the measured ones where training begins from random weights, see examples/comparisons.
DEFAULT_OBJECTIVE = "snippets"
BY_OBJECTIVE = dict.fromkeys(options_of_objective(DEFAULT_OBJECTIVE), "by --objective")
ObjectiveOptions: Any = options_of(SimMIMConfig, leave_out=["text_config", "tie_word_embeddings"], unset=BY_OBJECTIVE)
CorruptionOptions: Any = options_of(
    DataCollatorForSimMIM, leave_out=["max_length", "seed", "positive_view", "corrupted_views"]
)  # these have other names on the command line, or follow from other options
RANGES = [field_.name for field_ in fields(CorruptionOptions) if get_origin(field_.type) is list]  # one number, or two

# From scratch without `--text_config`: as large as the tiny BERT of Turc et al. 2019, which learns something on a CPU
# in minutes. Norms before the layers and rotary positions learn more from the same text, see examples/comparisons.
TINY_MODERNBERT = {
    "model_type": "modernbert",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 344,
}


@dataclass
class ModelArguments(ObjectiveOptions):
    """What is trained: a model to start from, or one to build, and the objective."""

    _argument_group_name = "model and objective"

    model_name_or_path: str | None = option(
        None, "Folder or Hub id of an encoder (or a SimMIM checkpoint) to start from; its masked-LM head is kept."
    )
    text_config: str | None = option(
        None,
        "From scratch: the backbone, as a JSON object, a JSON file, or a model type such as modernbert. "
        "Default: a ModernBERT of 2 layers, 128 wide.",
    )
    num_hidden_layers: int | None = option(
        None, "Use only so many of the backbone's first layers; 0 is a bag of words. Default: all."
    )
    dropout: float | None = option(
        None,
        "Dropout of the backbone, wherever it has one; simcse needs it. Default: that of the backbone; for simcse on "
        "the default one 0.1.",
    )
    tokenizer_name: str | None = option(
        None,
        "Folder or Hub id of a tokenizer, or a vocab.txt. Default: that of --model_name_or_path, else one is "
        "trained on the corpus.",
    )
    vocab_size: int | None = option(
        None, "Size of a tokenizer that is trained on the corpus. Default: 30522; 8192 for the built-in corpus."
    )
    objective: str = option(DEFAULT_OBJECTIVE, "Pre-training objective.", choices=list(OBJECTIVES))
    attn_implementation: str | None = option(
        None,
        "Attention of transformers, such as eager or flash_attention_2, which reads padding. Default: that of this "
        "package, which does not.",
    )

    def config_options(self) -> dict:
        """The options of `SimMIMConfig` that were given, over those of the objective."""
        preset = options_of_objective(self.objective)
        if self.model_name_or_path:  # whose vectors stay what they are
            preset = {name: value for name, value in preset.items() if name not in VECTOR_OPTIONS}
        options = {field_.name: getattr(self, field_.name) for field_ in fields(ObjectiveOptions)}
        return {**preset, **{name: value for name, value in options.items() if value is not None}}

    def new_config(self, vocab_size: int, token_ids: dict[str, int | None]) -> SimMIMConfig:
        """The configuration of a model from scratch.

        Args:
            vocab_size, token_ids: as in `with_vocabulary`
        """
        text_config = with_vocabulary(read_text_config(self.text_config), vocab_size, token_ids)
        options = {"attn_implementation": self.attn_implementation, **self.config_options()}
        config = SimMIMConfig(text_config=text_config, **options)
        if not self.model_name_or_path:
            adjust_backbone(config.text_config, self.num_hidden_layers, self.dropout)
        return config


@dataclass
class DataArguments(CorruptionOptions):
    """The text, and how it is corrupted."""

    _argument_group_name = "text, and how it is corrupted"

    train_file: list[str] | None = option(
        None,
        f"Files, globs or folders: {corpora.SUPPORTED}. Default: the documentation inside Python, torch and "
        "transformers.",
    )
    validation_file: list[str] | None = option(None, "Held-out text. Default: a part of the training text.")
    mixture_weights: list[float] | None = option(
        None,
        "How often a document is drawn from each of --train_file; a source that ends early is read again. Default: "
        "every document once.",
    )
    dataset_name: str | None = option(None, "A Hub dataset instead of files.")
    dataset_config_name: str | None = option(None, "The configuration of --dataset_name.")
    text_column: str | None = option(None, "The column with the text. Default: `text`, or the only column of strings.")
    text_unit: str | None = option(
        None,
        "What a document is in a .txt or .md file: line, paragraph (a block between blank lines) or file. Default: "
        "paragraph where blank lines stand between blocks, else line. Of other formats it is a row.",
        choices=list(get_args(corpora.TextUnit)),
    )
    long_texts: str = option(
        "split",
        "A document longer than --max_seq_length is split into passages, or is truncated to its first.",
        choices=list(get_args(tokenization.LongTexts)),
    )
    streaming: bool = option(False, "Read while training instead of first; needs --max_steps.")
    shuffle_buffer_size: int | None = option(
        None, "With --streaming: draw from so many documents at a time, such as 10000. Default: in the files' order."
    )
    validation_split_percentage: float = option(5, "Part of the training text that is held out, 2,000 rows at most.")
    max_seq_length: int = option(128, "Tokens that the encoder reads at once, see --long_texts.")
    preprocessing_num_workers: int | None = option(None, "Processes for tokenising.")
    first_sentence_probability: float | None = option(
        None,
        "With positive_view span or snippet: how often one view is the first sentence of the text, often a title or a "
        "summary, and the other the rest. Default: 0; 0.5 for the built-in text.",
    )
    similarity_file: str | None = option(
        None, "Scored pairs (sentence1, sentence2, score): Spearman before and after training goes to the table."
    )

    def __post_init__(self) -> None:
        for name in ("train_file", "validation_file"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        for name in RANGES:
            value = getattr(self, name)
            setattr(self, name, list(value) if isinstance(value, (list, tuple)) else [value])

    def collator_options(self) -> dict:
        """The options of `DataCollatorForSimMIM`."""
        options = {field_.name: getattr(self, field_.name) for field_ in fields(CorruptionOptions)}
        for name in RANGES:
            values = options[name]
            options[name] = tuple(values) if len(values) > 1 else values[0]
        return options

    @property
    def built_in(self) -> bool:
        """Whether the corpus is the documentation that every installation has."""
        return not self.train_file and not self.dataset_name

    @property
    def text_option(self) -> str:
        """The option that names the training text, for messages."""
        return "--dataset_name" if self.dataset_name else "--train_file"


@dataclass
class PretrainingArguments(SimMIMTrainingArguments):
    """`SimMIMTrainingArguments` with defaults for pre-training."""

    _argument_group_name = "training"

    output_dir: str = option("simmim-pretrained", "Folder for the checkpoint, the metrics and the plot.")
    overwrite_output_dir: bool = option(False, "Write into --output_dir though it is not empty.")
    allow_changed: bool = option(
        False, "Resume though options or text are others than those of the checkpoint; says which."
    )
    num_train_epochs: float | None = option(
        None, "Passes over the training text. Default: 1; 2 for the built-in corpus."
    )
    per_device_train_batch_size: int = option(64, "Sequences a step and device; the others are the negatives.")
    per_device_eval_batch_size: int = option(64, "Sequences an evaluation step and device.")
    learning_rate: float | None = option(
        None, "Default: 5e-4 from scratch (2e-3 on the built-in corpus), 5e-5 from a model."
    )
    warmup_steps: float = option(0.05, "Steps of linear warm-up; below 1: share of all steps.")
    weight_decay: float = option(0.01, "Weight decay.")
    train_sampling_strategy: str = option(
        "group_by_length",
        "How batches are drawn; group_by_length saves padding and keeps length from telling the pairs apart.",
        choices=["random", "sequential", "group_by_length", "batch_rebalance"],
    )
    include_num_input_tokens_seen: str = option(
        "non_padding", "Count the tokens that are read: non_padding, all or no.", choices=["all", "non_padding", "no"]
    )
    length_column_name: str = option("length", "Column with precomputed lengths.")
    logging_steps: float = option(50, "Log every so many steps; below 1: share of all steps.")
    save_steps: float = option(500, "Save every so many steps; below 1: share of all steps.")
    save_total_limit: int | None = option(2, "Keep this many checkpoints.")
    # HfArgumentParser reads this union only with None first, as TrainingArguments has it.
    report_to: None | str | list[str] = option("tensorboard", "Where to log: tensorboard, wandb, ..., all or none.")  # noqa: RUF036

    def __post_init__(self) -> None:
        check_ranges(self)
        # transformers takes bfloat16 on a CPU only where the CPU was asked for.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        try:
            super().__post_init__()
        except Exception as error:
            raise ValueError(f"the options of the training: {reason(error)}") from error
        sharding.keep_models_whole()


# The least and the most of options that are numbers, where nothing else refuses what cannot work.
TINY = 1e-9
HUGE = 1e300
RANGES_OF_OPTIONS = {
    **dict.fromkeys(["per_device_train_batch_size", "per_device_eval_batch_size"], (1, 1e6)),
    **dict.fromkeys(["gradient_accumulation_steps", "max_steps", "eval_accumulation_steps", "ddp_timeout"], (1, 1e9)),
    **dict.fromkeys(["preprocessing_num_workers", "dataloader_prefetch_factor"], (1, 1e4)),
    "dataloader_num_workers": (0, 1e4),
    **dict.fromkeys(["seed", "data_seed"], (0, 4e9)),
    **dict.fromkeys(["learning_rate", "weight_decay", "max_grad_norm"], (0, HUGE)),
    **dict.fromkeys(["warmup_steps", "eval_delay", "neftune_noise_alpha"], (0, HUGE)),
    **dict.fromkeys(["adam_beta1", "adam_beta2"], (0, 0.999999)),
    "adam_epsilon": (HUGE**-1, 1),
    **dict.fromkeys(["num_train_epochs", "logging_steps", "save_steps", "eval_steps"], (TINY, HUGE)),
    "vocab_size": (10, 1e9),
    "projection_dim": (1, 1e9),
    "max_seq_length": (3, 1e9),
}
NOT_GIVEN = {"max_steps": -1}  # what transformers has in place of None


def check_ranges(options) -> None:
    """Refuses numbers with which nothing can be trained; `options` is a dataclass of this module.

    Raises:
        ValueError: the message names the option, its value and the range.
    """
    for name, (least, most) in RANGES_OF_OPTIONS.items():
        value = getattr(options, name, None)
        if value is None or value == NOT_GIVEN.get(name):
            continue
        if not is_number(value, least, most):
            start = "above 0" if 0 < least <= TINY else f"from {least:g}"
            raise ValueError(f"--{name} is {value!r}: give a number {start} to {most:g}.")


def read_text_config(text_config: str | dict | None) -> dict:
    """The backbone's options from a JSON object, a JSON file, or a model type; by default `TINY_MODERNBERT`."""
    if text_config is None:
        return dict(TINY_MODERNBERT)
    if isinstance(text_config, dict):
        return text_config
    try:
        if text_config.lstrip().startswith("{"):
            return json.loads(text_config)
        if os.path.isfile(text_config):
            with open(text_config, encoding="utf-8") as file:
                return dict(json.load(file))
        return AutoConfig.for_model(text_config).to_dict()
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(
            f"--text_config `{text_config}` is neither a JSON object, nor a JSON file, nor a model type of "
            f"transformers: {reason(error)}"
        ) from error


# The built-in corpus is small: the 800 steps of a newcomer's first command take three minutes on two idle cores. The
# first sentence of a docstring sums it up.
BUILT_IN_DEFAULTS = {
    "vocab_size": 8192,
    "num_train_epochs": 2.0,
    "learning_rate": 2e-3,
    "first_sentence_probability": 0.5,
}
DEFAULTS = {
    "vocab_size": 30522,
    "num_train_epochs": 1.0,
    "learning_rate": 5e-4,
    "first_sentence_probability": 0.0,
}

# Of the default backbone; a wider table tells more words apart, and is cheap beside a vocabulary of 8,192.
BUILT_IN_TOKEN_TABLE_DIM = 512


def default_dropout(options: dict) -> float | None:
    """That of the default backbone, which has none of its own, for these options of `SimMIMConfig`."""
    return 0.1 if options["positive_view"] == "dropout" else None


def fill_defaults(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments) -> None:
    """Sets the options that were not given and whose default depends on the others."""
    if args.learning_rate is None and model_args.model_name_or_path:
        args.learning_rate = 5e-5
    for name, default in (BUILT_IN_DEFAULTS if data_args.built_in else DEFAULTS).items():
        owner = next(each for each in (model_args, data_args, args) if hasattr(each, name))
        if getattr(owner, name) is None:
            setattr(owner, name, default)
    if model_args.model_name_or_path or model_args.text_config is not None:
        return
    options = model_args.config_options()
    if model_args.dropout is None:
        model_args.dropout = default_dropout(options)
    if model_args.token_table_dim is None and data_args.built_in and options.get("pooled_layers") == "table_and_last":
        model_args.token_table_dim = BUILT_IN_TOKEN_TABLE_DIM


PRETRAINING = (ModelArguments, DataArguments, PretrainingArguments)

# What a newcomer needs, in the order of the questions: which text, which model, how it is trained.
PRETRAINING_HELP = {
    "text": [
        *("train_file", "validation_file", "dataset_name", "text_column", "text_unit", "max_seq_length"),
        "whole_word_mask",
    ],
    "model": ["model_name_or_path", "objective", "text_config", "tokenizer_name", "vocab_size"],
    "training": [
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "num_train_epochs", "max_steps"),
        *("per_device_train_batch_size", "chunk_size", "learning_rate", "bf16", "seed", "report_to", "push_to_hub"),
    ],
    "evaluation": ["similarity_file"],
}


def pretraining_parser() -> Parser:
    """The options of `simmim pretrain`."""
    return Parser(
        PRETRAINING,
        sections=PRETRAINING_HELP,
        prog="simmim pretrain",
        usage="simmim pretrain [settings.yaml | settings.json] [options]",
        description="Pre-train a SimMIM encoder. Without options: a small one on the documentation inside Python, "
        "torch and transformers, in a few minutes. Options may also stand in a YAML or JSON file.",
    )
