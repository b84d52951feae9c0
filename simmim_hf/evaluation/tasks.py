"""The tasks of `simmim evaluate`: files, folders, Hub datasets and built-in sets, of a kind by their columns."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..data import corpora, docstrings
from .metrics import check_labels, check_scores

# A task is of the first kind whose columns it has.
KINDS = {
    "similarity": ("sentence1", "sentence2", "score"),
    "retrieval": ("query", "document"),
    "transfer": ("text", "label"),
    "minimal pairs": ("sentence_good", "sentence_bad"),
    "language modelling": ("text",),
}
NEEDED = "; ".join(f"{', '.join(columns)} ({kind})" for kind, columns in KINDS.items())
NOT_TEXT = ("score", "label")
NEEDS_HEAD = ("minimal pairs", "language modelling")  # of a language model
TEST_SPLITS = ("test", "validation", "dev")
SHORTEST_HALF = 20


@dataclass
class Task:
    """Something to measure.

    Args:
        name: as in the command
        test: with the columns of its kind
        train: for transfer the training texts of a given split, for language modelling the text that the counts of
            tokens come from

    Raises:
        ValueError: there are no rows, a text is missing, or scores or labels that cannot be used.
    """

    name: str
    test: Dataset
    train: Dataset | None = None

    def __post_init__(self) -> None:
        present = set(self.test.column_names)
        kinds = [kind for kind, columns in KINDS.items() if present.issuperset(columns)]
        if not kinds:
            raise ValueError(f"`{self.name}` has the columns {sorted(present)}, but a task needs one of: {NEEDED}.")
        self.kind = kinds[0]
        try:
            self._check_rows()
        except ValueError as error:
            raise ValueError(f"`{self.name}`: {error}") from error

    @property
    def needs_head(self) -> bool:
        """Whether it is measured by the predictions of a language model."""
        return self.kind in NEEDS_HEAD

    @property
    def text_columns(self) -> list[str]:
        return [column for column in KINDS[self.kind] if column not in NOT_TEXT]

    def texts(self) -> Iterator[str]:
        """All texts whose vectors are measured, those of training too where a classifier is fitted to them."""
        if self.kind == "minimal pairs":
            return
        parts = [self.test]
        if self.kind == "transfer" and self.train is not None:
            parts.append(self.train)
        for rows in parts:
            for column in self.text_columns:
                yield from rows[column]

    def _check_rows(self) -> None:
        for rows in (self.test, self.train):
            if rows is not None:
                _check_texts(rows, self.text_columns)
        if self.kind == "similarity":
            for row, score in enumerate(self.test["score"], start=1):
                if not _is_number(score):
                    raise ValueError(f"the score {score!r} of row {row} is not a number.")
            check_scores(self.test["score"][:])
        if self.kind == "retrieval" and len(set(self.test["document"])) < 2:
            raise ValueError("retrieval needs two different documents or more.")
        if self.kind == "transfer":
            self._check_labels()

    def _check_labels(self) -> None:
        fitted = self.test if self.train is None else self.train
        check_labels(fitted["label"][:], needed=3 if self.train is None else 2)
        unknown = set(self.test["label"]) - set(fitted["label"])
        if unknown:
            raise ValueError(f"the test texts have labels that no training text has: {sorted(unknown, key=repr)}.")


def load_task(name: str, seed: int = 42) -> Task:
    """
    Args:
        name: a file; a folder with a train and a test file, or one file; a Hub dataset as `owner/name` or
            `owner/name:configuration`; or a name of `BUILT_IN`
        seed: of the held-out part of a built-in set

    Raises:
        FileNotFoundError: there is no such thing; the message lists the built-in names.
        ValueError: a file that cannot be read, or see `Task`.
    """
    if name in BUILT_IN:
        return Task(name, BUILT_IN[name](seed))
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(name, path)
    if path.is_file():
        return Task(name, read_file(str(path)))
    if name.count("/") == 1 and name[0] not in "/.~" and not corpora.file_format(name):
        return _load_from_hub(name)
    raise FileNotFoundError(
        f"the task `{name}` is neither a file or folder nor a Hub dataset (owner/name). "
        f"Built-in tasks: {', '.join(BUILT_IN)}."
    )


def load_tasks(names: Iterable[str], seed: int = 42) -> dict[str, Task]:
    """Each task once, by its name in the results: that of an absolute path is its last two parts, to show no folder of
    this machine, and a number where two would be called the same.

    Args:
        names, seed: see `load_task`, also for the errors
    """
    tasks: dict[str, Task] = {}
    for path in dict.fromkeys(names):
        task = load_task(path, seed)
        short = path
        if os.path.isabs(path):
            short = "/".join(Path(path).parts[-2:])
        name = short
        while name in tasks:
            name = f"{short} ({len(tasks) + 1})"
        tasks[name] = task
    return tasks


def load_scored_pairs(file: str) -> Dataset:
    """A file with the columns `sentence1`, `sentence2` and `score`, or a released file of the STS benchmark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, and the message names those there are; or see `Task`.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file `{file}` of scored pairs.")
    pairs = read_file(str(path))
    columns = KINDS["similarity"]
    if not set(columns).issubset(pairs.column_names):
        raise ValueError(f"`{file}` has the columns {pairs.column_names}, but scored pairs need {', '.join(columns)}.")
    return Task(file, pairs).test


def docstring_pairs(seed: int) -> Dataset:
    """`query` and `document`: summary and body of the docstrings that `simmim pretrain --seed` holds out."""
    corpus = docstrings.built_in_corpus()
    _, held_out = corpora.split_held_out(corpus, fraction=0.1, group_column="source", seed=seed)
    return docstrings.retrieval_pairs(held_out)


def half_pairs(texts: Iterable[str], longest: int, most: int = 1000) -> Dataset | None:
    """`query` and `document`: the first and the second half of texts, cut between two words.

    Args:
        longest: characters of a half; the rest of a longer text is left out
        most: the texts that are enough

    Returns:
        None for fewer than two texts whose halves have `SHORTEST_HALF` characters.
    """
    pairs: list[dict[str, str]] = []
    for text in texts:
        start = " ".join(text.split())[: 2 * longest]
        middle = len(start) // 2
        if middle < 2 * SHORTEST_HALF:
            continue
        cut = start.find(" ", middle, middle + SHORTEST_HALF)
        if cut < 0:  # no space there, as in Chinese
            cut = middle
        query = start[:cut].strip()
        document = start[cut:].strip()
        pairs.append({"query": query, "document": document})
        if len(pairs) == most:
            break
    if len(pairs) < 2:
        return None
    return Dataset.from_list(pairs)


BUILT_IN = {"docstrings": docstring_pairs}


def _load_folder(name: str, folder: Path) -> Task:
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    files = [file for file in files if corpora.file_format(file.name)]
    by_part = {file.name.split(".")[0]: str(file) for file in files}
    if "test" in by_part:
        train = read_file(by_part["train"]) if "train" in by_part else None
        return Task(name, read_file(by_part["test"]), train)
    if len(files) == 1:
        return Task(name, read_file(str(files[0])))
    raise ValueError(
        f"the folder `{name}` holds {[file.name for file in files]}; a task is one file, or a test file such as "
        f"test.jsonl with or without a train file. Formats: {corpora.SUPPORTED}."
    )


def _load_from_hub(name: str) -> Task:
    dataset_id, _, configuration = name.partition(":")
    try:
        splits = load_dataset(dataset_id, configuration or None)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise FileNotFoundError(
            f"the task `{name}` is no file or folder, and as a Hub dataset it cannot be loaded: {error} "
            f"Built-in tasks: {', '.join(BUILT_IN)}."
        ) from error
    assert isinstance(splits, DatasetDict)
    for split in TEST_SPLITS:
        if split in splits:
            return Task(name, splits[split], splits.get("train"))
    if len(splits) > 1:
        raise ValueError(f"`{name}` has the splits {list(splits)}, none of them a test or validation split.")
    return Task(name, next(iter(splits.values())))


def read_file(path: str) -> Dataset:
    """One file as a table with all its columns; a .txt or .md file has the column `text`.

    Raises:
        ValueError: an ending that is not supported, or a file that is empty or damaged.
    """
    ending, compression = corpora.format_of(path)
    if corpora.FORMATS[ending] == "text":
        return corpora.load_text(path)
    corpora.check_file(path)
    corpora.check_lengths(path, "row")
    with corpora.errors_name_file(path):
        if corpora.FORMATS[ending] == "csv":
            rows = _read_sts_benchmark(path)
            if rows:
                return Dataset.from_list(rows)
        form = corpora.Form(ending, bool(compression), "row")
        return corpora.read_files([path], form, streaming=False)


def _read_sts_benchmark(path: str) -> list[dict]:
    """The rows of a file of the STS benchmark as it was released, and none for any other file.

    It has no header, and its fields are separated by tabs: genre, filename, year, id, score, sentence1, sentence2,
    and sometimes sources.
    """
    with fsspec.open(path, "rt", encoding="utf-8", newline="\n", compression="infer") as file:
        first = file.readline().rstrip("\r\n").split("\t")
        if len(first) < 7 or not _is_number(first[4]):
            return []
        lines = [first]
        for line in file:
            lines.append(line.rstrip("\r\n").split("\t"))
    for number, fields in enumerate(lines, start=1):
        if len(fields) < 7 or not _is_number(fields[4]):
            raise ValueError(f"line {number}: genre, filename, year, id, score and two sentences expected.")
    rows = []
    for fields in lines:
        score = float(fields[4])
        rows.append({"sentence1": fields[5], "sentence2": fields[6], "score": score})
    return rows


def _is_number(value) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_texts(rows: Dataset, columns: list[str]) -> None:
    if not len(rows):
        raise ValueError("there are no rows.")
    for column in columns:
        for row, text in enumerate(rows[column], start=1):
            if not isinstance(text, str):
                raise ValueError(f"row {row} has {text!r} in the column `{column}`, which must be text.")
        if not any(text.strip() for text in rows[column]):
            raise ValueError(f"all rows of the column `{column}` are blank.")
