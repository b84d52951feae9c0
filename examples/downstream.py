"""What the downstream scripts share: their common options, data from files or the Hub, the model, `results.json`."""

import csv
import glob
import itertools
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid
from transformers import AutoConfig, HfArgumentParser, PreTrainedModel, Trainer, TrainingArguments, set_seed

from simmim_hf import records  # importing the package registers SimMIM with the Auto classes
from simmim_hf.data import corpora

SPLITS = ("train", "validation", "test")


@dataclass
class DownstreamArguments:
    model_name_or_path: str = field(metadata={"help": "A SimMIM checkpoint or any encoder: a folder or a Hub id."})
    train_file: str | None = field(
        default=None, metadata={"help": "A jsonl, csv, tsv, txt or parquet file; text formats also .gz, .xz, .zst."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Evaluated after training, if given."})
    test_file: str | None = field(default=None, metadata={"help": "Evaluated after training, if given."})
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Which of its configurations."})
    test_size: float = field(
        default=0.1,
        metadata={
            "help": "Share of the training rows to test on where there is no validation or test data. The same "
            "rows for every seed."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many rows only, drawn by --seed."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this number of tokens."})
    random_weights: bool = field(
        default=False, metadata={"help": "The same model without its pre-trained weights: what these are worth."}
    )


class CpuOrGpuArguments(TrainingArguments):
    """`TrainingArguments` that take bfloat16 on a CPU too; transformers does where the CPU was asked for."""

    def __post_init__(self):
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


def parse(arguments_class: type) -> tuple:
    """The script's own arguments and the `TrainingArguments` from the command line; seeds everything."""
    args, training_args = HfArgumentParser((arguments_class, CpuOrGpuArguments)).parse_args_into_dataclasses()
    training_args.dataloader_pin_memory &= training_args.device.type == "cuda"
    set_seed(training_args.seed)
    return args, training_args


def load_splits(args: DownstreamArguments, *columns: str) -> DatasetDict:
    """The data with at least these columns, as `train` and one or both of `validation` and `test`.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: no data or too much of it, an unreadable file, a missing column, or a row without a value in it.
    """
    files = {split: getattr(args, f"{split}_file") for split in SPLITS}
    files = {split: file for split, file in files.items() if file}
    if bool(args.dataset_name) == bool(files) or (files and "train" not in files):
        raise ValueError("Give either --train_file (and files to evaluate on) or --dataset_name.")
    if files:
        data = DatasetDict({split: load_file(file) for split, file in files.items()})
    else:
        data = load_dataset(args.dataset_name, args.dataset_config_name)
        if "train" not in data:
            raise ValueError(f"`{args.dataset_name}` has no split `train`; it has: {', '.join(data)}.")
        data = DatasetDict({split: data[split] for split in SPLITS if split in data})
    for split, rows in data.items():
        where = files.get(split, f"{args.dataset_name}, {split}")
        for column in columns:
            if column not in rows.column_names:
                raise ValueError(f"`{where}` has no column `{column}`; it has: {', '.join(rows.column_names)}.")
            empty = next((row for row, value in enumerate(rows[column]) if value is None), None)
            if empty is not None:
                raise ValueError(f"`{where}` has no `{column}` in row {empty + 1}: fill it in or remove the row.")
    if len(data) == 1:
        data = data["train"].train_test_split(args.test_size, seed=0)
    return data


def load_file(file: str) -> Dataset:
    """The rows of a file, with all of its columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another format, or cannot be read.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"There is no file `{file}`.")
    ending = next((ending for ending in Path(file).suffixes[-2:] if ending in corpora.FORMATS), None)
    if ending is None:
        raise ValueError(f"`{file}` has an unsupported ending; supported: {corpora.SUPPORTED}.")
    options = {}
    if corpora.FORMATS[ending] == "csv":
        # Only an empty cell is missing: "None", "NA" and "null" are words, and names of classes.
        options = {"sep": ",", "keep_default_na": False, "na_values": [""]}
    if ending == ".tsv":  # a quotation mark is part of the text: files of GLUE have unpaired ones
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    try:
        # load_dataset would expand brackets in a file's name.
        return load_dataset(corpora.FORMATS[ending], data_files=glob.escape(file), split="train", **options)
    except (DatasetGenerationError, ArrowInvalid, StopIteration) as error:
        reason = error.__cause__ or str(error) or "it is empty"
        raise ValueError(f"`{file}` cannot be read: {reason}") from error


def limit_train(data: DatasetDict, args: DownstreamArguments, seed: int) -> DatasetDict:
    """With `--max_train_samples` training rows."""
    if args.max_train_samples is not None:
        count = min(args.max_train_samples, len(data["train"]))
        data["train"] = data["train"].shuffle(seed=seed).select(range(count))
    return data


def find_classes(data: DatasetDict, column: str) -> tuple[dict, dict[int, str]]:
    """The classes in a column of labels, or of lists of labels: their numbers by value, and their names by number.

    Raises:
        ValueError: labels that are no classes, fewer than two, or one that the training data does not have.
    """
    feature = data["train"].features[column]
    is_list, feature = hasattr(feature, "feature"), getattr(feature, "feature", feature)

    def values(split: str) -> set:
        cells: Iterable = data[split][column]
        return set(itertools.chain.from_iterable(cells) if is_list else cells)

    known = range(feature.num_classes) if isinstance(feature, ClassLabel) else sorted(values("train"))
    if len(known) < 2 or any(isinstance(value, float) for value in known):
        raise ValueError(f"The column `{column}` must hold two or more classes, integers or names; it holds {known}.")
    names = feature.names if isinstance(feature, ClassLabel) else map(str, known)
    for split in data:
        unknown = sorted(values(split) - set(known))
        if unknown:
            raise ValueError(f"The {split} data has labels {unknown}, the training data only {list(known)}.")
    return {value: number for number, value in enumerate(known)}, dict(enumerate(names))


def load_model(auto_class: type, args: DownstreamArguments, **options) -> PreTrainedModel:
    """The checkpoint in the class for the task, or a model of the same shape with random weights.

    Raises:
        ValueError: `--max_seq_length` is more than the model has positions for.
    """
    config = AutoConfig.from_pretrained(args.model_name_or_path, **options)
    positions = getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize)
    if args.max_seq_length > positions:
        raise ValueError(
            f"--max_seq_length {args.max_seq_length} is more than the {positions} positions of the model."
        )
    if args.random_weights:
        return auto_class.from_config(config, dtype=torch.float32)
    return auto_class.from_pretrained(args.model_name_or_path, config=config, dtype=torch.float32)


def evaluate(trainer: Trainer, data: DatasetDict) -> dict[str, dict[str, float]]:
    """The Trainer's metrics on the data that is held out, by split."""
    figures = {}
    for split in [split for split in data if split != "train"]:
        metrics = trainer.evaluate(data[split], metric_key_prefix=split)
        metrics = {name.removeprefix(f"{split}_"): value for name, value in metrics.items()}
        speed = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch")
        figures[split] = {name: value for name, value in metrics.items() if name not in speed}
    return figures


def sizes(data: DatasetDict) -> dict[str, int]:
    """The number of rows of each split."""
    return {split: len(rows) for split, rows in data.items()}


def save_results(args, **results) -> None:
    """Prints the results and writes them to `results.json`, with what it takes to get them again.

    Args:
        args: the `TrainingArguments`, or others with an `output_dir` and a `seed`
    """
    if not PartialState().is_main_process:
        return
    results = {
        "command": records.command(sys.argv, program="python"),
        "seed": args.seed,
        "versions": records.versions(),
        **json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 4)),
    }
    text = json.dumps(results, indent=2, ensure_ascii=False)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "results.json").write_text(text, encoding="utf-8")
    print(text)
