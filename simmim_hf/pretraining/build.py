"""What a run of training is made of, by its options: its text, its tokenizer, its model and its Trainer."""

import os
from typing import NamedTuple

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from .. import records
from ..data import corpora, docstrings, mixtures, tokenization
from ..data.collator import DataCollatorForSimMIM
from ..model.backbones import dropouts
from ..model.configuration_simmim import token_ids_of
from ..model.modeling_simmim import SimMIMForPreTraining
from ..options import error_prefix
from ..training.trainer import SimMIMTrainer
from .options import DataArguments, ModelArguments, PretrainingArguments


class TokenizedText(NamedTuple):
    """Training and held-out rows of token ids, and how much text is in them (of training None for a stream)."""

    train: Dataset | IterableDataset
    held_out: Dataset
    train_counts: tokenization.TokenCounts | None
    held_out_counts: tokenization.TokenCounts


def read_text(data_args: DataArguments, seed: int) -> corpora.Corpus:
    """The training and the held-out texts, and what they are."""
    if data_args.built_in:
        # Whole source files are held out, so that no docstring is judged by its neighbours in the file.
        docstring_rows = docstrings.built_in_corpus()
        train, held_out = corpora.split_held_out(docstring_rows, fraction=0.1, group_column="source", seed=seed)
        how = "whole source files, drawn at random, 2,000 texts at most"
        return corpora.Corpus(train, held_out, {"built_in": True, "held_out": how})
    units: dict[str, str] = {}
    with error_prefix(data_args.text_option):
        if data_args.train_file:
            units = corpora.text_units(data_args.train_file, data_args.text_unit)
        train = _read_training_text(data_args, units)
    if data_args.validation_file:
        with error_prefix("--validation_file"):
            held_out = corpora.load_text(
                data_args.validation_file, data_args.text_column, text_unit=data_args.text_unit
            )
        how = ", ".join(records.distinct_names(data_args.validation_file))
    elif data_args.streaming:
        first = list(train.take(1001))
        if len(first) <= 1000:
            raise ValueError(
                f"--streaming holds out the first 1,000 texts, and there are {len(first)}: give a --validation_file."
            )
        held_out = Dataset.from_list(first[:1000])
        train = train.skip(1000)
        how = "the first 1,000 texts"
    else:
        percentage = data_args.validation_split_percentage
        source = data_args.text_option
        if data_args.text_unit:
            source += f" by --text_unit {data_args.text_unit}"
        with error_prefix(f"nothing can be held out of {source}, give a --validation_file"):
            train, held_out = corpora.split_held_out(train, percentage / 100, seed=seed)
        how = f"{percentage:g} % of the texts, 2,000 at most, drawn at random"
    if data_args.shuffle_buffer_size:
        train = _shuffled(train, data_args.shuffle_buffer_size, seed)
    if data_args.mixture_weights:
        train = mixtures.mix(train, data_args.mixture_weights, seed)
    description = {**_origin(data_args), "held_out": how}
    return corpora.Corpus(train, held_out, description, corpora.describe_units(units))


def _read_training_text(
    data_args: DataArguments, units: dict[str, str]
) -> Dataset | IterableDataset | list[IterableDataset]:
    """All of it, or of a mixture that is streamed each source.

    Args:
        units: of the training files, see `corpora.text_units`
    """
    column = data_args.text_column
    streaming = data_args.streaming
    if data_args.dataset_name:
        return corpora.load_hub_text(
            data_args.dataset_name, data_args.dataset_config_name, text_column=column, streaming=streaming
        )
    if not data_args.mixture_weights:
        return corpora.load_files(units, column, streaming)
    sources = []
    for path in data_args.train_file:
        units_of_source = {file: units[file] for file in corpora.find_files(path)}
        sources.append(corpora.load_files(units_of_source, column, streaming))
    return sources if streaming else mixtures.numbered(sources)


def _shuffled(
    train: IterableDataset | list[IterableDataset], buffer_size: int, seed: int
) -> IterableDataset | list[IterableDataset]:
    """The stream, or those of all sources, shuffled within a buffer."""
    if isinstance(train, list):
        return [stream.shuffle(seed=seed, buffer_size=buffer_size) for stream in train]
    return train.shuffle(seed=seed, buffer_size=buffer_size)


def _origin(data_args: DataArguments) -> dict:
    """The names of the training files, or the dataset of the Hub."""
    if data_args.train_file:
        return {"files": records.distinct_names(data_args.train_file)}
    if os.path.exists(data_args.dataset_name):
        return {"files": records.distinct_names([data_args.dataset_name])}
    origin: dict = {"datasets": [data_args.dataset_name]}
    if data_args.dataset_config_name:
        origin["dataset_config"] = data_args.dataset_config_name
    return origin


def get_tokenizer(
    model_args: ModelArguments,
    train: Dataset | IterableDataset,
    checkpoint: str | None = None,
    show_progress: bool = True,
) -> PreTrainedTokenizerBase:
    """The tokenizer that the options name, that of a checkpoint to resume, or one that is trained on the text."""
    sources = {
        "--tokenizer_name": model_args.tokenizer_name,
        "--model_name_or_path": model_args.model_name_or_path,
        "--resume_from_checkpoint": checkpoint,
    }
    for option, name in sources.items():
        if name:
            with error_prefix(option):
                return tokenization.load_tokenizer(name)
    texts = train if isinstance(train, Dataset) else train.take(100_000)
    return tokenization.train_tokenizer(
        (row["text"] for row in texts), model_args.vocab_size, show_progress=show_progress
    )


def build_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> SimMIMForPreTraining:
    """The model to start from, or one with random weights, with room for all tokens.

    Raises:
        ValueError: two readings under different dropout are to be compared, and the backbone has no dropout.
    """
    if model_args.model_name_or_path:
        changed = {name: getattr(model_args, name) for name in ("num_hidden_layers", "dropout", "attn_implementation")}
        with error_prefix(f"--model_name_or_path `{model_args.model_name_or_path}`"):
            model = SimMIMForPreTraining.from_backbone(
                model_args.model_name_or_path, dtype="float32", **changed, **model_args.config_options()
            )
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
    else:
        config = model_args.new_config(len(tokenizer), token_ids_of(tokenizer))
        model = SimMIMForPreTraining(config)
    objective = model.config.objective
    compares_dropout = objective.contrastive_weight and objective.positive_view == "dropout"
    if compares_dropout and not any(dropouts(model.config.text_config).values()):
        raise ValueError(
            "--positive_view dropout (simcse) compares a text with itself under another dropout, and the backbone "
            f"`{model.config.text_config.model_type}` has none: give --dropout 0.1."
        )
    return model


def tokenize_text(
    train: Dataset | IterableDataset,
    held_out: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    max_length: int,
    passages: int = 1,
) -> TokenizedText:
    """The texts as token ids.

    Args:
        max_length: of what the encoder reads at once
        passages: how many of them a row has room for, see `SimMIMConfig.passages_per_row`
    """
    options = {
        "max_length": max_length,
        "num_proc": data_args.preprocessing_num_workers,
        "long_texts": data_args.long_texts,
        "passages": passages,
    }
    with error_prefix(f"the training text ({data_args.text_option})"):
        train, train_counts = tokenization.tokenize(train, tokenizer, **options)
    if train_counts is None:
        # Without an end: Trainer counts all steps of a stream as one epoch, and skips within it when it resumes.
        # The number of a row in the stream tells its readings apart, and is the same in all processes.
        train = train.repeat(None).map(lambda row, number: {"draw": number}, with_indices=True)
    held_out_option = data_args.text_option
    if data_args.validation_file:
        held_out_option = "--validation_file"
    with error_prefix(f"the held-out text ({held_out_option})"):
        held_out, held_out_counts = tokenization.tokenize(held_out, tokenizer, **options)
    return TokenizedText(train, held_out, train_counts, held_out_counts)


def build_trainer(
    model: SimMIMForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    text: TokenizedText,
    data_args: DataArguments,
    args: PretrainingArguments,
    trainer_class: type[SimMIMTrainer] = SimMIMTrainer,
    **options,
) -> SimMIMTrainer:
    """A Trainer with the collator that the options and the model's positive view ask for.

    Args:
        options: further arguments of the Trainer

    Raises:
        ValueError: the backbone cannot read text as the objective asks.
    """
    options_of_collator = data_args.collator_options()
    collator = DataCollatorForSimMIM.for_config(
        tokenizer, model.config, seed=args.seed, max_length=tokenizer.model_max_length, **options_of_collator
    )
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=text.train,
        eval_dataset=text.held_out,
        data_collator=collator,
        processing_class=tokenizer,
        **options,
    )
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # which need all processes to read
        with error_prefix("--text_config or --model_name_or_path"):
            for is_causal in model.config.objective.directions:
                model.simmim.prove_direction(is_causal, args.device)
    return trainer
