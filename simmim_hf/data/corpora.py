"""Text in, datasets out: files, Hub datasets and held-out splits."""

import collections
import contextlib
import csv
import functools
import glob
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import fsspec
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.iterable_dataset import ArrowExamplesIterable
from pandas.errors import ParserWarning

# The reader of `datasets` for each ending.
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSIONS = ("", ".gz", ".xz", ".zst")
# The documents of a .txt or .md file, and the same for datasets' own reader; in every other format they are rows.
TEXT_UNITS = {"line": "line", "paragraph": "paragraph", "file": "document"}
TextUnit = Literal["row", "line", "paragraph", "file"]
SUPPORTED = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS[1:])} appended"

LINES_A_BLOCK = 20
STRING_TYPES = ("string", "large_string", "string_view", "null")
ROWS_AT_ONCE = 1000  # of a stream

# A small compressed file can hold gigabytes without a line break, and a line is read as a whole.
LONGEST = 64 * 2**20  # bytes of a line, a row, a paragraph, or a file that is one document
LARGEST_WHOLE = 512 * 2**20  # bytes of a JSON array, and of Parquet inside .gz, .xz or .zst
BLOCK = 2**20
SEPARATORS = {"line": b"\n", "row": b"\n", "paragraph": b"\n\n"}
IN_WORDS = {"line": "a line", "row": "a row", "paragraph": "a paragraph (text_unit)", "file": "the file (text_unit)"}
QUOTED = re.compile(rb'"[^"]*"?')

Documents: TypeAlias = Dataset | IterableDataset


class DataError(ValueError):
    """Text that cannot be read; the message names the file, where in it, and the remedy."""


class TooLong(ValueError):
    """A document that does not fit into memory by far."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} is longer than {limit / 2**20:g} MiB, which is the most that is read at once")


class Corpus(NamedTuple):
    """Training and held-out documents, and their description.

    Args:
        train: documents; a stream of them has no length
        held_out: documents that are in no training text
        description: for `results.json` and the card, without the folders of this machine: `built_in`, or the names of
            `files`, or `datasets` of the Hub and their `dataset_config`; and `held_out`, how that part was made
        units: the documents of the training files, such as `a line of .txt`; none for a dataset
    """

    train: Documents
    held_out: Dataset
    description: dict[str, Any]
    units: Sequence[str] = ()


class Form(NamedTuple):
    """How documents are stored in a file: files of the same form are read together.

    Args:
        ending: a key of `FORMATS`
        is_compressed: by gzip, xz or zstandard
        unit: as `text_units` gives it
    """

    ending: str
    is_compressed: bool
    unit: str


# Files and the Hub


def load_text(
    paths: str | list[str],
    text_column: str | None = None,
    streaming: bool = False,
    text_unit: TextUnit | None = None,
) -> Documents:
    """Load text files as a dataset of documents, with the column `text` and, if the data has it, `negative`.

    Args:
        paths: files, globs and folders (searched recursively), of the formats txt, md, jsonl, json, csv, tsv and
            parquet, plain or compressed by gzip, xz or zstandard. In a folder with other files than .md, README.md is
            taken for a description of them and left out.
        text_column: the column that holds the text; by default `text`, else the only column of strings.
        streaming: read while iterating instead of converting everything to Arrow first.
        text_unit: the documents of a .txt or .md file: each `line`, a `paragraph` (a block between blank lines) or
            the whole `file`. By default what `text_units` finds. A document of any other format is a `row`.

    Returns:
        The documents in file order, without those whose text (or negative) is blank.

    Raises:
        FileNotFoundError: a path that does not exist, or a glob or folder without a supported file.
        ValueError: an unsupported or unreadable file, or a document beyond `LONGEST` (a `DataError`, which a stream
            raises when it comes to it), no text in the files, no such text column, or a unit that these files do not
            have.
    """
    return load_files(text_units(paths, text_unit), text_column, streaming)


def load_files(
    units: dict[str, str],
    text_column: str | None = None,
    streaming: bool = False,
) -> Documents:
    """As [`load_text`], for files with the units of `text_units`."""
    groups: dict[Form, list[str]] = {}
    for file, unit in units.items():
        ending, compression = format_of(file)
        form = Form(ending, bool(compression), unit)
        groups.setdefault(form, []).append(file)
    parts = [_load_group(files, form, text_column, streaming) for form, files in groups.items()]
    if len({tuple(part.column_names) for part in parts}) > 1:
        raise ValueError("some of the files have a column 'negative' and some do not: load them separately")
    if len(parts) == 1:
        return parts[0]
    return concatenate_datasets(parts)


def _load_group(
    files: list[str],
    form: Form,
    text_column: str | None,
    streaming: bool,
) -> Documents:
    """The documents of files that have the same form."""
    where = ", ".join(files[:3])
    if len(files) > 3:
        where += f" and {len(files) - 3} more"
    for file in files[:1] if streaming else files:
        check_lengths(file, form.unit)
    with errors_name_file(files[0]), _no_field_left_out():
        features = _features(read_files(files[:1], form, streaming=True))
    source, columns = _choose_columns(features, text_column, where)
    sources = (source, *columns[1:])  # the same columns by their names in the files
    if streaming:
        # Whole tables are faster than a generator of rows, where `datasets` checks every row.
        target = Features({column: Value("string") for column in columns})
        options = {"files": files, "form": form, "columns": sources}
        dataset = IterableDataset(ArrowExamplesIterable(_tables, options), DatasetInfo(features=target))
    else:
        try:
            with _no_field_left_out():
                dataset = read_files(files, form, streaming=False)
        except (DatasetGenerationError, ValueError) as error:
            collections.deque(_tables(files, form, sources), maxlen=0)  # file by file: its error names the file
            raise DataError(f"{where} do not fit together: {_one_line(error)}. Give fewer of them.") from error
        dataset = _select_columns(dataset, source, columns)
    return _without_blanks(dataset, columns, where)


def text_units(paths: str | list[str], text_unit: TextUnit | None = None) -> dict[str, str]:
    """What a document is in each file: `row`, or of a .txt or .md file `line`, `paragraph` or `file`.

    Args:
        paths, text_unit: as in [`load_text`]. By default the lines of such a file are documents, unless blank lines
            stand between blocks of wrapped lines: one in `LINES_A_BLOCK` or more of its first lines.

    Raises:
        FileNotFoundError: a path that does not exist, or a glob or folder without a supported file.
        ValueError: an unsupported or empty file, or a unit that these files do not have.
    """
    units: dict[str, str] = {}
    for file in find_files(paths):
        check_file(file)
        units[file] = _unit_of(file, text_unit)
    if text_unit in TEXT_UNITS and text_unit not in units.values():
        raise ValueError(
            f"text_unit is {text_unit!r}, and there is no .txt or .md file: a document of a table is a row"
        )
    return units


def describe_units(units: dict[str, str]) -> list[str]:
    """The units of `text_units` with the endings of their files, each pair once: `a line of .txt`."""
    kinds = [f"a {unit} of {format_of(file)[0]}" for file, unit in units.items()]
    return list(dict.fromkeys(kinds))


def _unit_of(file: str, text_unit: TextUnit | None) -> str:
    ending, _ = format_of(file)
    if FORMATS[ending] != "text":
        return "row"
    if text_unit == "row":
        raise ValueError(f"text_unit is 'row', and {file!r} has none: choose from {', '.join(TEXT_UNITS)}")
    return text_unit or _unit_of_lines(file)


def check_file(file: str) -> None:
    """Refuses a file that is empty, or has no row, or needs a package that is not installed."""
    ending, compression = format_of(file)
    if os.path.getsize(file) == 0:
        raise ValueError(f"{file!r} is an empty file: remove it from the data")
    if compression == ".zst" and not importlib.util.find_spec("zstandard"):
        raise ValueError(f"{file!r} needs the package zstandard: pip install zstandard")
    with errors_name_file(file), fsspec.open(file, "rb", compression="infer") as opened:
        stream = io.BufferedReader(opened)  # not every compression gives lines
        if ending == ".parquet":
            content = _read_whole(stream) if compression else stream
            has_rows = pyarrow.parquet.ParquetFile(content).metadata.num_rows > 0
        elif FORMATS[ending] == "csv":
            rows = (line for line in _lines(stream) if line.strip())
            has_rows = any(itertools.islice(rows, 1, 2))  # under the header
        else:
            has_rows = bool(stream.read(1))
    if not has_rows:
        raise ValueError(f"{file!r} has no rows: remove it from the data")


def _unit_of_lines(file: str) -> str:
    with errors_name_file(file), fsspec.open(file, "rt", compression="infer", encoding="utf-8") as stream:
        is_blank = [not line.strip() for line in itertools.islice(_lines(stream), 10_000)]
    blank = sum(is_blank)
    has_blocks = 0 < blank < len(is_blank) and blank * LINES_A_BLOCK >= len(is_blank)
    return "paragraph" if has_blocks else "line"


def check_lengths(file: str, unit: str) -> None:
    """Refuses a file with a document that is too long to be read, by reading a block of it at a time.

    Args:
        file: `check_file` accepts it
        unit: as `text_units` gives it

    Raises:
        DataError: a line, row, paragraph or file beyond `LONGEST`, or a JSON array beyond `LARGEST_WHOLE`.
    """
    with errors_name_file(file):
        state = os.stat(file)
        _scan(file, unit, state.st_size, state.st_mtime_ns)


@functools.cache  # a stream begins again for every epoch
def _scan(file: str, unit: str, size: int, changed: int) -> None:
    ending, compression = format_of(file)
    if ending == ".parquet" or (size <= LONGEST and not compression):
        return
    separator = SEPARATORS.get(unit)
    limit = LONGEST
    what = IN_WORDS[unit]
    if FORMATS[ending] == "json" and not _begins_with_row(file):
        separator = None
        limit = LARGEST_WHOLE
        what = "JSON with other than a row in each line"
    length = 0  # since the last block with a separator
    before = b""
    in_cell = False
    with fsspec.open(file, "rb", compression="infer") as stream:
        while block := stream.read(BLOCK):
            text = before + block
            if ending == ".csv":  # a line break between quotation marks ends no row
                if in_cell:
                    text = b'"' + text
                in_cell = text.count(b'"') % 2 == 1
                text = QUOTED.sub(b"", text)
            if FORMATS[ending] != "json":
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if unit == "paragraph":
                before = block[-3:]  # its end may be cut by that of the block
            if separator and separator in text:
                length = 0
            else:
                length += len(block)
            if length > limit:
                raise TooLong(what, limit)


def _begins_with_row(file: str) -> bool:
    """Whether JSON has a row in each line, rather than all of them in one array."""
    with fsspec.open(file, "rb", compression="infer") as opened:
        stream = io.BufferedReader(opened)
        lines = iter(functools.partial(stream.readline, LONGEST), b"")
        first = next(filter(bytes.strip, lines), b"")
    try:
        is_object = first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{")
        return is_object and bool(json.loads(first.decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return False


def _lines(stream: IO) -> Iterator:
    """The lines of a stream of bytes or text; one beyond `LONGEST` is `TooLong`."""
    while line := stream.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise TooLong("a line", LONGEST)
        yield line


def _read_whole(stream: IO[bytes]) -> io.BytesIO:
    content = stream.read(LARGEST_WHOLE + 1)
    if len(content) > LARGEST_WHOLE:
        raise TooLong("the file", LARGEST_WHOLE)
    return io.BytesIO(content)


def load_hub_text(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    text_column: str | None = None,
    streaming: bool = False,
) -> Documents:
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
    if not streaming:
        everything = os.path.join(glob.escape(name), "**", "*")  # where the name is that of a folder
        for file in _text_files(everything):
            check_lengths(file, "row")
    try:
        dataset = load_dataset(name, config_name, split=split, streaming=streaming)
        features = _features(dataset)
    except ConnectionError as error:
        raise FileNotFoundError(f"dataset {name!r} is no local folder and the Hub is out of reach: {error}") from error
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read the dataset {name!r}: {error.__cause__ or error}") from error
    source, columns = _choose_columns(features, text_column, name)
    return _without_blanks(_select_columns(dataset, source, columns), columns, name)


def file_format(path: str) -> tuple[str, str] | None:
    """The ending and the compression by the file's name, a key of `FORMATS` and one of `COMPRESSIONS`; None if it is
    unsupported."""
    name = os.path.basename(path).lower()
    for ending, compression in itertools.product(FORMATS, COMPRESSIONS):
        if name.endswith(ending + compression):
            return ending, compression
    return None


def format_of(path: str) -> tuple[str, str]:
    """As `file_format`, and a ValueError for an ending that is not supported."""
    known = file_format(path)
    if known is None:
        raise ValueError(f"{path!r} has an unsupported ending; supported: {SUPPORTED}")
    return known


def find_files(paths: str | list[str]) -> list[str]:
    """The supported files of paths, globs and folders, each once."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: dict[str, None] = {}  # a set that keeps the order
    for path in map(os.path.expanduser, paths):
        if os.path.isfile(path):
            format_of(path)
            found[path] = None
            continue
        if os.path.isdir(path):
            pattern = os.path.join(glob.escape(path), "**", "*")
        elif glob.has_magic(path):
            pattern = path
        else:
            raise FileNotFoundError(f"no such file or folder: {path!r}")
        files = _text_files(pattern)
        if any(format_of(file)[0] != ".md" for file in files):
            files = [file for file in files if os.path.basename(file).lower() != "readme.md"]
        if not files:
            raise FileNotFoundError(f"{path!r} matches no text file; supported endings: {SUPPORTED}")
        found.update(dict.fromkeys(files))
    if not found:
        raise ValueError("no text files given")
    return list(found)


def _text_files(pattern: str) -> list[str]:
    files = sorted(glob.glob(pattern, recursive=True))
    return [file for file in files if os.path.isfile(file) and file_format(file)]


def read_files(files: list[str], form: Form, streaming: bool) -> Documents:
    """Files of one form as a table with all of their columns."""
    if form.ending == ".parquet" and form.is_compressed:  # datasets decompresses every format but this one
        tables = []
        for file in files:
            with fsspec.open(file, compression="infer") as stream:
                tables.append(Dataset(pyarrow.parquet.read_table(_read_whole(stream))))
        dataset = concatenate_datasets(tables)
        if streaming:
            return dataset.to_iterable_dataset()
        return dataset
    reader = FORMATS[form.ending]
    escaped = [glob.escape(file) for file in files]  # load_dataset would expand brackets in a file's name
    dataset = load_dataset(
        reader, data_files=escaped, split="train", streaming=streaming, **_options_of_reader(reader, form)
    )
    if form.unit in ("row", "line"):
        return dataset
    return dataset.map(_strip, batched=True, **_progress(dataset, "Reading"))


def _options_of_reader(reader: str, form: Form) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if reader == "text":
        options["sample_by"] = TEXT_UNITS[form.unit]
    if reader == "csv":
        # Only an empty cell is missing: "None", "NA" and "null" are words too. Without a column of row names a comma
        # at the end of each row does not move the texts under another title.
        options |= {"sep": ",", "keep_default_na": False, "na_values": [""], "index_col": False}
    if form.ending == ".tsv":
        # A quotation mark is part of the text: files of STS and GLUE have unpaired ones, which would swallow rows.
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    return options


def _strip(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [text.strip() for text in batch["text"]]}


def _features(dataset: Documents) -> Features:
    if dataset.features:
        return dataset.features
    first = list(dataset.take(100))  # a stream may know its columns only by its rows
    return Dataset.from_list(first).features


def _tables(files: list[str], form: Form, columns: tuple[str, ...]) -> Iterator[tuple]:
    """The texts, and negatives where a second column is named, as keys and tables; the error of a file names it."""
    for file in files:
        check_lengths(file, form.unit)
        with errors_name_file(file):
            stream = read_files([file], form, streaming=True)
            tables = stream.with_format("arrow").iter(ROWS_AT_ONCE)
        for number in itertools.count():
            with errors_name_file(file), _no_field_left_out():
                table = next(tables, None)
                if table is None:
                    break
                missing = set(columns) - set(table.column_names)
                if missing:
                    raise ValueError(f"there is no column {missing.pop()!r} as in the files before it")
                texts = [table[column].cast(pyarrow.string()) for column in columns]
            names = ["text", "negative"][: len(texts)]
            yield (file, number), pyarrow.table(texts, names)


@contextlib.contextmanager
def errors_name_file(file: str) -> Iterator[None]:
    """Turns any error of reading a file into a DataError with its name; each format and compression has its own."""
    try:
        yield
    except TooLong as error:
        raise DataError(f"cannot read text from {file}: {error}; break it up or leave it out") from error
    except Exception as error:
        words = _one_line(error)
        remedy = "correct it or leave it out"
        if "utf-8" in words:
            remedy = "convert it to UTF-8"
        raise DataError(f"cannot read text from {file}{_first_bad_line(file)}: {words}; {remedy}") from error


@contextlib.contextmanager
def _no_field_left_out() -> Iterator[None]:
    """Makes it an error that rows have more fields than there are titles: a comma without quotation marks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)
        try:
            yield
        except ParserWarning as error:
            raise ValueError("rows have more fields than titles: put texts with commas in quotation marks") from error


def _first_bad_line(file: str) -> str:
    """Where a file stops being text, or .jsonl JSON, as far as it can be read."""
    ending, _ = format_of(file)
    if ending == ".parquet":
        return ""
    with contextlib.suppress(Exception), fsspec.open(file, "rb", compression="infer") as stream:
        for number, line in enumerate(_lines(io.BufferedReader(stream)), start=1):
            try:
                text = line.decode("utf-8-sig")
                if ending == ".jsonl" and text.strip():
                    json.loads(text)
            except ValueError:
                return f", line {number}"
    return ""


def _one_line(error: BaseException) -> str:
    if isinstance(error, DatasetGenerationError):
        error = error.__cause__ or error
    words = " ".join(str(error).split())[:300].rstrip(".")
    return words or type(error).__name__


def _choose_columns(
    features: Features,
    text_column: str | None,
    where: str,
) -> tuple[str, list[str]]:
    """The column that holds the text, and the columns of the result."""
    if not features:
        raise ValueError(f"{where} holds no text: it has no rows")
    strings = []
    for name, kind in features.items():
        if getattr(kind, "dtype", None) in STRING_TYPES:
            strings.append(name)
    if text_column is None:
        text_column = _default_column(strings)
        if text_column is None:
            raise ValueError(f"which column of {where} is the text? Set text_column, one of: {', '.join(features)}")
    needed = [text_column]
    if "negative" in features:
        needed.append("negative")
    for column in needed:
        if column not in strings:
            state = "is no column"
            if column in features:
                state = "is not a column of strings"
            named = "text_column" if column == text_column else "the column"
            raise ValueError(f"{named} {column!r} {state} in {where}; columns: {', '.join(features)}")
    if "negative" in features and text_column != "negative":
        return text_column, ["text", "negative"]
    return text_column, ["text"]


def _default_column(strings: list[str]) -> str | None:
    """`text`, else the only column of strings that holds no negatives."""
    if "text" in strings:
        return "text"
    candidates = [name for name in strings if name != "negative"]
    return candidates[0] if len(candidates) == 1 else None


def _select_columns(dataset: Documents, text_column: str, columns: list[str]) -> Documents:
    """The text columns alone, under the names of the result."""
    dataset = dataset.select_columns([text_column, *columns[1:]])
    if text_column != "text":
        dataset = dataset.rename_column(text_column, "text")
    target = Features({column: Value("string") for column in columns})
    if dataset.features == target:
        return dataset
    return dataset.cast(target)


def _without_blanks(dataset: Documents, columns: list[str], where: str) -> Documents:
    """Drops the blank rows, and makes sure that something is left."""
    options = _progress(dataset, "Dropping blanks")
    dataset = dataset.filter(_not_blank, batched=True, input_columns=columns, **options)
    if next(iter(dataset), None) is None:
        raise ValueError(f"{where} holds no text: all of its rows are blank")
    return dataset


def _not_blank(*columns: list[str | None]) -> list[bool]:
    kept = []
    for row in zip(*columns, strict=True):
        kept.append(all(text and not text.isspace() for text in row))
    return kept


def _progress(dataset: Documents, desc: str) -> dict[str, str]:
    """The title of a progress bar; a stream has none."""
    return {"desc": desc} if isinstance(dataset, Dataset) else {}


# The held-out split


def split_held_out(
    dataset: Dataset,
    fraction: float = 0.05,
    max_rows: int = 2000,
    group_column: str | None = None,
    seed: int = 0,
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
    hashes = [_hash(f"{seed}:{value}") for value in dataset[column][:]]  # of each row, that of its group
    sizes = Counter(hashes)
    if len(sizes) < 2:
        raise ValueError(f"a held-out split needs two different values of {column!r}, the data has {len(sizes)}")
    share = max(1, round(fraction * len(hashes)))
    room = min(max_rows, share, len(hashes) - 1)
    chosen: set[int] = set()
    for group in sorted(sizes):  # the order of the hashes is the random order
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    if not chosen:  # all groups are too large: the smallest is cut, and the rest of it is on neither side
        chosen = {min(sizes, key=lambda group: (sizes[group], group))}
    held_out_rows = [row for row, group in enumerate(hashes) if group in chosen]
    held_out = dataset.select(held_out_rows[:max_rows])
    known = set(held_out["text"][:])
    texts = dataset["text"][:]
    rows = [row for row, group in enumerate(hashes) if group not in chosen]
    kept = [row for row in rows if texts[row] not in known]
    if not kept:
        raise ValueError("every training text is also held out: the data repeats itself too much to be split")
    return dataset.select(kept), held_out


def _hash(value: str) -> int:
    digest = hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
