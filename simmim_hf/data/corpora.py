"""Text in, datasets out: files, Hub datasets, held-out splits, tokenizers and token ids."""

import csv
import glob
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pyarrow.parquet
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSIONS = ("", ".gz", ".xz", ".zst")
SUPPORTED = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS[1:])} appended"

STRING_TYPES = ("string", "large_string", "string_view")
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # BERT's order: the ids 0 to 4


# Files and the Hub


def load_text(
    paths: str | list[str], text_column: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Load text files as a dataset with the column `text` and, if the data has it, `negative`.

    Args:
        paths: files, globs and folders (searched recursively), of the formats txt (one text a line), jsonl, json, csv,
            tsv and parquet, plain or compressed by gzip, xz or zstandard.
        text_column: the column that holds the text; by default `text`, else the only column of strings.
        streaming: read while iterating instead of converting everything to Arrow first.

    Returns:
        The rows in file order, without those whose text (or negative) is blank.

    Raises:
        FileNotFoundError: a path that does not exist, or a glob or folder without a supported file.
        ValueError: an unsupported or unreadable file, no text in the files, or no such text column.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    for file in _find_files([paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if os.path.getsize(file) == 0:
            raise ValueError(f"{file!r} is an empty file: remove it from the data")
        ending, compression = file_format(file)
        groups.setdefault((ending, bool(compression)), []).append(file)
    parts = []
    for (ending, compressed), files in groups.items():
        where = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        try:
            dataset = read_files(ending, compressed, files, streaming)
            features = _features(dataset)
        except (DatasetGenerationError, ValueError) as error:
            raise ValueError(f"cannot read text from {where}: {error.__cause__ or error}") from error
        parts.append(_text_columns(dataset, features, text_column, where))
    if len({tuple(part.column_names) for part in parts}) > 1:
        raise ValueError("some of the files have a column 'negative' and some do not: load them separately")
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def load_hub_text(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    text_column: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Load a dataset of the Hub, or a local dataset folder, with the columns that [`load_text`] gives.

    Args:
        name: the dataset's id on the Hub, or the path of a folder.
        config_name: which of the dataset's configurations.
        split: which split, also a slice such as `"train[:1%]"`.
        text_column: the column that holds the text; by default `text`, else the only column of strings.
        streaming: read while iterating instead of downloading everything first.

    Returns:
        The rows in their order, without those whose text (or negative) is blank.

    Raises:
        FileNotFoundError: no such dataset, or the Hub cannot be reached.
        ValueError: no such configuration, split or text column, or no text.
    """
    try:
        dataset = load_dataset(name, config_name, split=split, streaming=streaming)
        features = _features(dataset)
    except ConnectionError as error:
        raise FileNotFoundError(f"dataset {name!r} is no local folder and the Hub is out of reach: {error}") from error
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read the dataset {name!r}: {error.__cause__ or error}") from error
    return _text_columns(dataset, features, text_column, name)


def file_format(path: str) -> tuple[str, str] | None:
    """The format and the compression by the file's name, None if unsupported."""
    name = os.path.basename(path).lower()
    pairs = itertools.product(FORMATS, COMPRESSIONS)
    return next((pair for pair in pairs if name.endswith("".join(pair))), None)


def _find_files(paths: list[str]) -> list[str]:
    found: dict[str, None] = {}  # a set that keeps the order
    for path in map(os.path.expanduser, paths):
        if os.path.isfile(path):
            if not file_format(path):
                raise ValueError(f"{path!r} has an unsupported ending; supported: {SUPPORTED}")
            found[path] = None
            continue
        if os.path.isdir(path):
            pattern = os.path.join(glob.escape(path), "**", "*")
        elif glob.has_magic(path):
            pattern = path
        else:
            raise FileNotFoundError(f"no such file or folder: {path!r}")
        files = [
            file for file in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(file) and file_format(file)
        ]
        if not files:
            raise FileNotFoundError(f"{path!r} matches no text file; supported endings: {SUPPORTED}")
        found.update(dict.fromkeys(files))
    if not found:
        raise ValueError("no text files given")
    return list(found)


def read_files(ending: str, compressed: bool, files: list[str], streaming: bool) -> Dataset | IterableDataset:
    """Files of one format as a table with all of their columns.

    Args:
        ending, compressed: what `file_format` says of all of the files
    """
    if ending == ".parquet" and compressed:  # datasets decompresses every format but this one
        tables = []
        for file in files:
            with fsspec.open(file, compression="infer") as stream:
                tables.append(Dataset(pyarrow.parquet.read_table(io.BytesIO(stream.read()))))
        dataset = concatenate_datasets(tables)
        return dataset.to_iterable_dataset() if streaming else dataset
    options = {}
    if FORMATS[ending] == "csv":
        # Only an empty cell is missing: "None", "NA" and "null" are words too.
        options = {"sep": ",", "keep_default_na": False, "na_values": [""]}
    if ending == ".tsv":
        # A quotation mark is part of the text: files of STS and GLUE have unpaired ones, which would swallow rows.
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    escaped = [glob.escape(file) for file in files]  # load_dataset would expand brackets in a file's name
    return load_dataset(FORMATS[ending], data_files=escaped, split="train", streaming=streaming, **options)


def _features(dataset) -> Features:
    # A stream may know its columns only by its rows.
    return dataset.features or Dataset.from_list(list(dataset.take(100))).features


def _text_columns(dataset, features: Features, text_column: str | None, where: str):
    """Select and rename the text columns, drop the blank rows, and make sure that something is left."""
    if not features:
        raise ValueError(f"{where} holds no text: it has no rows")
    strings = [name for name, kind in features.items() if getattr(kind, "dtype", None) in (*STRING_TYPES, "null")]
    if text_column is None:
        candidates = [name for name in strings if name != "negative"]
        text_column = "text" if "text" in strings else candidates[0] if len(candidates) == 1 else None
        if text_column is None:
            raise ValueError(f"which column of {where} is the text? Set text_column, one of: {', '.join(features)}")
    for column in [text_column] + [name for name in features if name == "negative"]:
        if column not in strings:
            state = "is not a column of strings" if column in features else "does not exist"
            raise ValueError(f"the column {column!r} of {where} {state}; columns: {', '.join(features)}")
    columns = ["text", "negative"] if "negative" in features and text_column != "negative" else ["text"]
    dataset = dataset.select_columns([text_column, *columns[1:]])
    if text_column != "text":
        dataset = dataset.rename_column(text_column, "text")
    target = Features({column: Value("string") for column in columns})
    if dataset.features != target:
        dataset = dataset.cast(target)
    dataset = dataset.filter(_not_blank, batched=True, input_columns=columns, **_progress(dataset, "Dropping blanks"))
    if next(iter(dataset), None) is None:
        raise ValueError(f"{where} holds no text: all of its rows are blank")
    return dataset


def _not_blank(*columns: list[str | None]) -> list[bool]:
    return [all(text and not text.isspace() for text in row) for row in zip(*columns)]


def _progress(dataset, desc: str) -> dict:
    return {"desc": desc} if isinstance(dataset, Dataset) else {}  # a stream has no end to progress to


# The held-out split


def split_held_out(
    dataset: Dataset, fraction: float = 0.05, max_rows: int = 2000, group_column: str | None = None, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Split a dataset at random, the same way on every machine; no text is on both sides.

    Args:
        dataset: rows with the column `text`.
        fraction: the held-out share of the rows.
        max_rows: the most held-out rows.
        group_column: keep the rows that share this column's value on one side, such as the `source` of a document.
        seed: another seed, another split.

    Returns:
        The training rows and the held-out rows, each in their order. Neither is empty.

    Raises:
        ValueError: a fraction outside (0, 1), a stream, no such column, or nothing left to split.
    """
    column = group_column or "text"
    if not 0 < fraction < 1 or max_rows < 1:
        raise ValueError(f"fraction must be between 0 and 1, max_rows at least 1: got {fraction} and {max_rows}")
    if isinstance(dataset, IterableDataset):
        raise ValueError("a streaming dataset cannot be split: give held-out data of its own, or do not stream")
    if column not in dataset.column_names:
        raise ValueError(f"no column {column!r} to split by; columns: {', '.join(dataset.column_names)}")
    hashes = [_hash(f"{seed}:{value}") for value in dataset[column][:]]
    sizes = Counter(hashes)
    if len(sizes) < 2:
        raise ValueError(f"a held-out split needs two different values of {column!r}, the data has {len(sizes)}")
    room = min(max_rows, max(1, round(fraction * len(hashes))), len(hashes) - 1)
    chosen: set[int] = set()
    for group in sorted(sizes):  # the order of the hashes is the random order
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    chosen = chosen or {min(sizes, key=lambda group: (sizes[group], group))}
    held_out = dataset.select([row for row, group in enumerate(hashes) if group in chosen])
    known = set(held_out["text"][:])
    rows = enumerate(zip(hashes, dataset["text"][:]))
    kept = [row for row, (group, text) in rows if group not in chosen and text not in known]
    if not kept:
        raise ValueError("every training text is also held out: the data repeats itself too much to be split")
    return dataset.select(kept), held_out


def _hash(value: str) -> int:
    return int.from_bytes(hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


# Tokenizers


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 30522, lowercase: bool = True, show_progress: bool = True
) -> BertTokenizer:
    """Train a WordPiece tokenizer like BERT's; the same texts give the same vocabulary.

    Args:
        texts: the texts to learn from.
        vocab_size: the number of tokens, the five special ones included. Little text gives fewer.
        lowercase: lower-case the text and strip its accents.
        show_progress: show the progress bars of the training.

    Returns:
        The tokenizer, ready for `save_pretrained`.

    Raises:
        ValueError: no text, or no room for a vocabulary.
    """
    if vocab_size < 2 * len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size must be at least {2 * len(SPECIAL_TOKENS)}, got {vocab_size}")
    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(texts, normalizer, limit=vocab_size // 2)
    if not alphabet:
        raise ValueError("there is no text to train a tokenizer on")

    def train(size: int, first_tokens: list[str], show_progress: bool) -> dict[str, int]:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=first_tokens,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=show_progress,
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        return tokenizer.get_vocab()

    # The trainer numbers the characters in the order of a random hash and breaks ties by these numbers. So ask it for
    # the characters alone (`a` and `##a`), and then train with those numbered beforehand.
    characters = train(0, SPECIAL_TOKENS, show_progress=False).keys() - set(SPECIAL_TOKENS)
    vocab = train(vocab_size, SPECIAL_TOKENS + sorted(characters), show_progress)
    return BertTokenizer(vocab=vocab, do_lower_case=lowercase)


def _alphabet(texts: list[str], normalizer, limit: int, coverage: float = 0.9999) -> list[str]:
    """The most frequent characters that make up nearly all of the text: rare ones would fill the vocabulary."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in normalizer.normalize_str(character).strip():
            counts[normal] += count
    needed, alphabet = coverage * counts.total(), []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]:
        if needed <= 0:
            break
        needed -= count
        alphabet.append(character)
    return alphabet


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by Hub id or path; BERT's `vocab.txt`, or a folder with nothing else, will do.

    Raises:
        FileNotFoundError: no tokenizer of this name.
        ValueError: a vocabulary without BERT's special tokens, or a folder without a tokenizer.
    """
    path = Path(name_or_path)
    described = any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "config.json"))
    vocab_file = path if path.is_file() else path / "vocab.txt"
    if path.is_file() or (vocab_file.is_file() and not described):
        tokens = vocab_file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        vocab = {token: index for index, token in enumerate(tokens)}
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise ValueError(f"{str(vocab_file)!r} is no BERT vocabulary: it lacks {', '.join(missing)}")
        return BertTokenizer(vocab=vocab)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except OSError as error:
        raise FileNotFoundError(f"no tokenizer {name_or_path!r}: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without a vocabulary
        raise ValueError(f"{name_or_path!r} holds no tokenizer: save one there with save_pretrained")
    return tokenizer


def with_next_as_negative(dataset: Dataset) -> Dataset:
    """Adds the column `negative`: the text of the following row (of the row before, for the last), which often is of
    the same document and so a harder negative than a random text.

    Raises:
        ValueError: fewer than two texts.
    """
    texts = list(dataset["text"])
    if len(texts) < 2:
        raise ValueError("hard negatives are the neighbours of a text, and there is only one text.")
    if "negative" in dataset.column_names:
        dataset = dataset.remove_columns("negative")
    return dataset.add_column("negative", [*texts[1:], texts[-2]])


def tokenize(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, int | None]:
    """Turn the texts into token ids.

    Args:
        dataset: rows with the column `text` and possibly `negative`.
        tokenizer: a fast tokenizer.
        max_length: the most tokens of a text, the special ones included; the rest is cut off.
        num_proc: the number of processes; a stream takes only one.

    Returns:
        The dataset with `input_ids`, `length` and, if there are negatives, `negative_input_ids`, without the rows
        that have no token but the special ones; and how many of its texts (not negatives) were cut, None for a stream.

    Raises:
        ValueError: no column `text`, a `max_length` without room for a token, or no token at all.
    """
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if "text" not in columns:
        raise ValueError(f"no column 'text' to tokenize; columns: {', '.join(columns)}")
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise ValueError(f"max_length must exceed the {special} special tokens of a text, got {max_length}")
    ids, count = List(Value("int32")), Value("int32")
    features = {"input_ids": ids, "length": count, "truncated": Value("bool")}
    if "negative" in columns:
        features["negative_input_ids"] = ids
    streaming = not isinstance(dataset, Dataset)
    tokenized = dataset.map(
        _encode,
        batched=True,
        remove_columns=columns,
        features=Features(features),
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "special": special},
        **({} if streaming else {"num_proc": num_proc}),
        **_progress(dataset, "Tokenizing"),
    )
    if not streaming and not len(tokenized):
        raise ValueError("none of the texts has a token that the tokenizer knows how to make")
    truncated = None if streaming else sum(tokenized["truncated"])
    return tokenized.remove_columns("truncated"), truncated


def _encode(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_length: int, special: int) -> dict:
    def ids_and_truncated(texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        encoded = tokenizer(texts, truncation=True, max_length=max_length, **options)
        if tokenizer.is_fast:
            return encoded["input_ids"], [bool(encoding.overflowing) for encoding in encoded.encodings]
        # A tokenizer written in Python does not tell: what fills the length is tokenised once more, uncut.
        fills = [len(ids) == max_length for ids in encoded["input_ids"]]
        whole = (full and len(tokenizer(text)["input_ids"]) for full, text in zip(fills, texts))
        return encoded["input_ids"], [length > max_length for length in whole]

    texts, truncated = ids_and_truncated(batch["text"])
    negatives = ids_and_truncated(batch["negative"])[0] if "negative" in batch else texts
    kept = [row for row, pair in enumerate(zip(texts, negatives)) if min(map(len, pair)) > special]
    encoded = {
        "input_ids": [texts[row] for row in kept],
        "length": [len(texts[row]) for row in kept],
        "truncated": [truncated[row] for row in kept],
    }
    if "negative" in batch:
        encoded["negative_input_ids"] = [negatives[row] for row in kept]
    return encoded
