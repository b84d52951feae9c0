import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from datasets import Dataset, IterableDataset
from helpers import run_python
from transformers import AutoTokenizer, BertTokenizer, CanineTokenizer

from simmim_hf.data import corpora, docstrings, tokenization
from simmim_hf.data.corpora import (
    DataError,
    load_hub_text,
    load_text,
    split_held_out,
)
from simmim_hf.data.tokenization import load_tokenizer, tokenize, train_tokenizer
from simmim_hf.evaluation.tasks import read_file

TEXTS = ["a first line", "None", "the last one"]  # "None" is a word, not a missing value
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.fixture(autouse=True, scope="module")
def caches_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def contents(ending: str, texts=(*TEXTS[:2], "  ", TEXTS[2])) -> bytes:
    if ending == ".parquet":
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), stream)
        return stream.getvalue()
    rows = [json.dumps({"text": text, "number": number}) for number, text in enumerate(texts)]
    separator = {".csv": ",", ".tsv": "\t"}.get(ending, "")
    return {
        **dict.fromkeys((".txt", ".md"), "\n\n".join(texts) + "\n"),
        ".jsonl": "\n".join(rows),
        ".json": f"[{','.join(rows)}]",
        ".csv": "\n".join([f"text{separator}number", *(f"{text}{separator}1" for text in texts)]),
        ".tsv": "\n".join([f"text{separator}number", *(f"{text}{separator}1" for text in texts)]),
    }[ending].encode()


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# ------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", corpora.FORMATS)
def test_every_format_and_compression(tmp_path, ending, streaming):
    for compression, compress in COMPRESS.items():
        path = write(tmp_path / f"data{ending}{compression}", compress(contents(ending)))
        dataset = load_text(path, streaming=streaming)
        assert isinstance(dataset, IterableDataset if streaming else Dataset)
        assert list(dataset) == [{"text": text} for text in TEXTS], path
    assert len(os.listdir(tmp_path)) == len(COMPRESS)  # nothing written beside the data


def test_an_unpaired_quotation_mark_in_a_tsv_file_swallows_nothing(tmp_path):
    texts = ['"So it begins', "A second row", 'and a third "', "the fourth"]
    path = write(tmp_path / "data.tsv", "text\tnumber\n" + "".join(f"{text}\t1\n" for text in texts))
    assert load_text(path)["text"][:] == texts


@pytest.mark.slow
def test_folders_globs_and_mixtures(tmp_path):
    write(tmp_path / "README.md", "not data")
    write(tmp_path / "b.txt", "b\n")
    write(tmp_path / "deep/er/c.txt.gz", gzip.compress(b"c\n"))
    write(tmp_path / "deep/d.jsonl", '{"text": "d"}\n')
    assert sorted(load_text(str(tmp_path))["text"]) == ["b", "c", "d"]
    assert load_text(str(tmp_path / "**/*.txt*"))["text"][:] == ["b", "c"]
    assert load_text([str(tmp_path / "deep"), str(tmp_path / "b.txt"), str(tmp_path / "*")])["text"][:] == [
        "d",  # format by format, in the order in which the formats come up
        "c",
        "b",
    ]
    assert sorted(row["text"] for row in load_text(str(tmp_path), streaming=True)) == ["b", "c", "d"]


def test_markdown_is_text(tmp_path):
    write(tmp_path / "README.md", "# Notes\n\nA paragraph\nof two lines.\n")
    write(tmp_path / "deep/more.md", "Another.\n")
    assert load_text(str(tmp_path))["text"][:] == ["# Notes", "A paragraph\nof two lines.", "Another."]
    assert len(load_text(str(tmp_path), text_unit="file")) == 2
    write(tmp_path / "rows.jsonl", '{"text": "a row"}\n')  # which README.md describes now
    assert sorted(load_text(str(tmp_path))["text"]) == ["Another.", "a row"]


def test_names_with_brackets_are_files_not_patterns(tmp_path):
    path = write(tmp_path / "odd [1]*.txt", "a\n")
    assert load_text(path)["text"][:] == ["a"]


def test_text_column(tmp_path):
    only = write(tmp_path / "only.jsonl", '{"sentence": "a b", "label": 1}\n')
    two = write(tmp_path / "two.csv", "left,right,n\na,b,1\n")
    both = write(tmp_path / "both.csv", "text,other\na,b\n")
    assert load_text(only)[:] == {"text": ["a b"]}
    assert load_text(two, text_column="right")[:] == {"text": ["b"]}
    assert load_text(both)[:] == {"text": ["a"]}
    for streaming in (False, True):
        assert [row["text"] for row in load_text(both, "other", streaming)] == ["b"]
        with pytest.raises(ValueError, match="left, right, n"):
            load_text(two, streaming=streaming)
        with pytest.raises(ValueError, match="'nope'.*left, right, n"):
            load_text(two, text_column="nope", streaming=streaming)
        with pytest.raises(ValueError, match="not a column of strings"):
            load_text(two, text_column="n", streaming=streaming)


def test_negatives_are_kept(tmp_path):
    path = write(tmp_path / "n.csv", "sentence,negative\na,b\nc,\n,d\n")
    assert load_text(path)[:] == {"text": ["a"], "negative": ["b"]}
    with pytest.raises(ValueError, match="'negative'"):
        load_text([path, write(tmp_path / "plain.txt", "a\n")])


def test_missing_files(tmp_path):
    write(tmp_path / "notes.rst", "text")
    for path in ("missing.txt", "missing", "*.txt", ""):
        with pytest.raises(FileNotFoundError, match="no such file|supported endings: .txt"):
            load_text(str(tmp_path / path))


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_files(tmp_path, streaming):
    cases = {
        "notes.rst": ("text", "unsupported ending"),
        "empty.txt": ("", "empty file"),
        "blank.txt": (" \n\n\t\n", "holds no text"),
        "header.csv": ("text,n\n", "header.csv' has no rows"),
        "nothing.txt.gz": (gzip.compress(b""), "nothing.txt.gz' has no rows"),
        "nothing.parquet": (contents(".parquet", []), "nothing.parquet' has no rows"),
        "commas.csv": ("text,n\na, b,1\nc, d,2\n", "commas.csv: rows have more fields than titles"),
        "latin.txt": (("good\n" * 9 + "caf\xe9\n").encode("latin-1"), "latin.txt, line 10"),
        "broken.jsonl": ('{"text": "a', "broken.jsonl"),
    }
    for name, (content, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            load_text(write(tmp_path / name, content), streaming=streaming)
    with pytest.raises(ValueError, match="no text files given"):
        load_text([])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_fault_late_in_a_folder_names_its_file(tmp_path, streaming):
    for number in range(6):
        rows = [json.dumps({"text": f"row {row}"}) for row in range(2500)] + ['{"text": "a'] * (number == 4)
        write(tmp_path / f"{number}.jsonl", "\n".join(rows))
    with pytest.raises(DataError, match=r"4\.jsonl, line 2501: .*correct it or leave it out"):
        list(load_text(str(tmp_path), streaming=streaming))
    for name, rows in (("a", "text,n\nb,1\n"), ("b", "body,n\nb,1\n")):
        write(tmp_path / f"other/{name}.csv", rows)
    with pytest.raises(DataError, match=r"b\.csv: there is no column 'text'"):
        list(load_text(str(tmp_path / "other"), streaming=streaming))


LONG = b"words and " * 1000
TOO_LONG = {
    "line.txt": (b"first\n" * 1000 + LONG, "a line"),
    "paragraph.txt": (b"a\r\n\r\n" * 1000 + b"words and\r\n" * 1000, r"a paragraph \(text_unit\)"),
    "row.jsonl": (b'{"text": "a"}\n{"text": "' + LONG + b'"}\n', "a row"),
    "array.json": (b'[{"text": "' + LONG + LONG + b'"}]', "JSON with other than a row in each line"),
    "nothing.jsonl": (bytes(20_000), "JSON with other than a row in each line"),
    "row.csv": (b"text,n\na,1\n" + LONG, "a row"),
    "cell.csv": (b'text,n\na,1\n"' + b"words and\n" * 1000, "a row"),
    "whole.parquet.gz": (bytes(20_000), "the file"),
}


@pytest.fixture
def small_limits(monkeypatch):
    for name, size in (("LONGEST", 6000), ("LARGEST_WHOLE", 12_000), ("BLOCK", 1000)):
        monkeypatch.setattr(corpora, name, size)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", TOO_LONG)
def test_what_does_not_fit_into_memory_is_refused(tmp_path, small_limits, name, streaming):
    """Two gigabytes of zeros are a file of nine megabytes in gzip, and were read as one line."""
    content, what = TOO_LONG[name]
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=rf"cannot read text from .*{name}: {what} is longer than .* leave it out"):
        load_text(path, streaming=streaming)
    with pytest.raises(DataError, match="is longer than"):
        read_file(path)


def test_a_file_that_is_one_document_has_a_limit_too(tmp_path, small_limits):
    path = write(tmp_path / "book.txt", b"words and\n" * 1000)
    assert len(load_text(path)) == 1000
    with pytest.raises(DataError, match=r"book.txt: the file \(text_unit\) is longer than"):
        load_text(path, text_unit="file")
    with pytest.raises(DataError, match="long.txt: a row is longer than"):
        load_hub_text(str(Path(write(tmp_path / "folder/long.txt", LONG)).parent))


def test_a_file_of_any_size_is_read_where_its_documents_are_short(tmp_path, small_limits):
    rows = [{"text": f"row {number}"} for number in range(2000)]
    cells = "".join(f'"{row["text"]}\nof ""two"" lines",1\n' for row in rows)
    lines = "\n".join(map(json.dumps, rows))
    assert len(load_text(write(tmp_path / "rows.jsonl", lines))) == 2000
    assert len(load_text(write(tmp_path / "rows.csv", f"text,n\n{cells}"))) == 2000
    assert len(load_text(write(tmp_path / "rows.txt", "a\r\nb\r\n\r\n" * 2000))) == 2000
    with pytest.raises(DataError, match="is longer than"):
        load_text(write(tmp_path / "array.json", f"[{lines}]".replace("\n", ",")))
    small = ",".join(map(json.dumps, rows[:500]))
    assert len(load_text(write(tmp_path / "small.json", f"[{small}]"))) == 500


@pytest.mark.slow
def test_a_long_line_is_refused_in_little_memory(tmp_path):
    with gzip.open(tmp_path / "zeros.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(bytes(2**20))
    code = (
        "import resource, sys; from simmim_hf.data.corpora import load_text\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "try: load_text(sys.argv[1], streaming=True)\n"
        "except ValueError: print(peak() - before)"
    )
    assert int(run_python("-c", code, tmp_path / "zeros.txt.gz").stdout) < 300  # MiB


@pytest.mark.parametrize("streaming", [False, True])
def test_a_comma_at_the_end_of_each_row_moves_no_column(tmp_path, streaming):
    path = write(tmp_path / "data.csv", "text,other\na,x,\nb,y,\n")
    assert list(load_text(path, streaming=streaming)) == [{"text": "a"}, {"text": "b"}]


def test_hub_text_from_a_folder(tmp_path):
    write(tmp_path / "data/train.jsonl", '{"sentence": "a"}\n{"sentence": " "}\n')
    assert load_hub_text(str(tmp_path / "data"))[:] == {"text": ["a"]}
    with pytest.raises(ValueError, match="sentence"):
        load_hub_text(str(tmp_path / "data"), text_column="nope")
    with pytest.raises(ValueError, match="nope"):
        load_hub_text(str(tmp_path / "data"), split="nope")


# ------------------------------------------------------------------------------------------------- built-in corpus

MODULE = '''
"""A module that must never be imported, only read by the scanner. It does have a second sentence.

Example::

    dropped = code()

>>> 1 + 1
2

Args:
    size (`int`, *optional*, defaults to 3):
        How many of the :class:`~a.b.Thing` things there are in ``all`` of them.
"""
open("imported", "w")
class A:
    """Too short."""
    if True:
        async def f(self):
            """Finds the first thing, e.g. A thing, in a list of them. The rest of this text is in several models."""
    def g(self):
        """Finds the nearest one among a set of them. The rest of this text is in several models."""
'''


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "package/b/module.py", MODULE)
    write(tmp_path / "package/a.py", '"""Another text, of at least eight words, in a file that is first."""')
    write(tmp_path / "package/broken.py", "def (:")
    write(tmp_path / "package/tests/c.py", '"""A docstring in a test folder, which nobody would want to read."""')
    return tmp_path / "package"


def test_docstrings(tree):
    rows = docstrings.scan_docstrings({"name": tree})
    assert [row["source"] for row in rows] == ["name/a.py", "name/b/module.py", "name/b/module.py"]
    module, method = rows[1:]
    assert module["summary"] == "A module that must never be imported, only read by the scanner."
    assert module["body"] == (
        "It does have a second sentence.\nHow many of the a.b.Thing things there are in all of them."
    )
    assert method["summary"] == "Finds the first thing, e.g. A thing, in a list of them."  # and g repeats its body
    assert not os.path.exists("imported")
    assert docstrings.scan_docstrings({"name": tree}) == rows


def test_clean_docstring_keeps_prose():
    cleaned = docstrings.clean_docstring(
        """
        Computes `the` **mean** of [`~x.Y`], see <b>this</b> note.

        .. note::
            Kept as prose.

        .. code-block:: python

            dropped = 1

        Returns:
        --------
        ```
        dropped
        ```
        Afterwards there is
        more of it.
        """
    )
    assert cleaned == "Computes the mean of x.Y, see this note.\nKept as prose.\nAfterwards there is more of it."


def test_built_in_corpus_of_the_standard_library(monkeypatch, tree):
    monkeypatch.setattr(docstrings.sysconfig, "get_paths", lambda: {"stdlib": str(tree)})
    monkeypatch.setattr(docstrings.importlib.util, "find_spec", lambda name: None)
    dataset = docstrings.built_in_corpus()
    assert dataset.column_names == ["text", "summary", "body", "source"]
    assert dataset["source"][0] == "python/a.py"
    write(tree / "a.py", '"""Other words, and again eight of them at the least, in the first file."""')
    docstrings.built_in_corpus.cache_clear()
    assert docstrings.built_in_corpus()["text"][0].startswith("Other words")
    docstrings.built_in_corpus.cache_clear()


# ------------------------------------------------------------------------------------------------- held-out split


def test_split_by_rows():
    texts = [f"text {number % 400}" for number in range(500)]
    train, held_out = split_held_out(Dataset.from_dict({"text": texts}), fraction=0.1)
    assert 0 < len(held_out) <= 50
    assert not set(train["text"]) & set(held_out["text"])
    assert sorted([*train["text"], *held_out["text"]]) == sorted(texts)
    again, other = (split_held_out(Dataset.from_dict({"text": texts}), 0.1, seed=seed)[1] for seed in (0, 1))
    assert again["text"][:] == held_out["text"][:] != other["text"][:]
    assert len(split_held_out(Dataset.from_dict({"text": texts}), 0.5, max_rows=7)[1]) == 7


def test_split_is_the_same_on_every_machine():
    assert corpora._hash("0:text") == 5550474120531146090


def test_split_by_groups():
    rows = {
        "text": [f"text {number}" for number in range(99)] + ["text 0"],
        "source": [f"file {number // 10}" for number in range(100)],
    }
    for seed in range(10):
        train, held_out = split_held_out(Dataset.from_dict(rows), 0.2, group_column="source", seed=seed)
        assert len(set(held_out["source"])) == 2
        assert not set(train["source"]) & set(held_out["source"])
        assert not set(train["text"]) & set(held_out["text"])
    train, held_out = split_held_out(Dataset.from_dict(rows), 0.01, group_column="source")
    assert len(held_out) == 10  # no group fits, so one of them has to


def test_split_is_never_empty():
    for fraction in (0.001, 0.999):
        train, held_out = split_held_out(Dataset.from_dict({"text": ["a", "b"]}), fraction)
        assert len(train) == len(held_out) == 1


def test_split_of_few_distinct_texts_respects_its_maximum():
    train, held_out = split_held_out(Dataset.from_dict({"text": ["a", "b", "c"] * 100}), 0.1, max_rows=7)
    assert len(held_out) == 7 and len(train) == 200
    assert not set(train["text"]) & set(held_out["text"])


def test_split_errors():
    two = Dataset.from_dict({"text": ["a", "b"]})
    for match, dataset, options in (
        ("two different", Dataset.from_dict({"text": ["a", "a"]}), {}),
        ("fraction", two, {"fraction": 1.0}),
        ("'source'", two, {"group_column": "source"}),
        ("streaming", two.to_iterable_dataset(), {}),
        ("repeats", Dataset.from_dict({"text": ["a", "a"], "source": ["x", "y"]}), {"group_column": "source"}),
    ):
        with pytest.raises(ValueError, match=match):
            split_held_out(dataset, **options)


# ------------------------------------------------------------------------------------------------- tokenizers

CORPUS = ["The café serves the warmest coffee.", "Warm café, warm coffee; the lowest prices!", "中文 and English"] * 3


@pytest.mark.parametrize("lowercase", [True, False])
def test_trained_tokenizer_round_trip(tmp_path, lowercase):
    tokenizer = train_tokenizer(CORPUS, vocab_size=120, lowercase=lowercase, show_progress=False)
    assert isinstance(tokenizer, BertTokenizer)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded.get_vocab() == tokenizer.get_vocab()
        for text in (*CORPUS, "[MASK] UNSEEN Café 中", ""):
            assert loaded(text).input_ids == tokenizer(text).input_ids
            assert loaded(text).input_ids[:: len(loaded(text).input_ids) - 1] == [2, 3]
    assert ("Café" in tokenizer.get_vocab()) is False and ("the" in tokenizer.get_vocab()) is True
    same = tokenizer("The CAFÉ").input_ids == tokenizer("the cafe").input_ids
    assert same is lowercase
    assert 4 in tokenizer("a [MASK]").input_ids


@pytest.mark.slow
def test_training_a_tokenizer_is_deterministic():
    code = (
        "from simmim_hf.data.tokenization import *; import pathlib, sys\n"
        "texts = pathlib.Path(sys.argv[1]).read_text().splitlines()\n"
        "print(sorted(train_tokenizer(texts, 600, show_progress=False).get_vocab().items()))"
    )
    elsewhere = run_python("-c", code, corpora.__file__).stdout
    here = train_tokenizer(Path(corpora.__file__).read_text().splitlines(), 600, show_progress=False).get_vocab()
    assert elsewhere.strip() == str(sorted(here.items())) and len(here) == 600


def test_training_a_tokenizer_needs_text():
    for texts, size in ((["", "  "], 100), ([], 100), (["a"], 3)):
        with pytest.raises(ValueError, match="no text|vocab_size"):
            train_tokenizer(texts, size, show_progress=False)


def test_rare_characters_do_not_fill_the_vocabulary():
    texts = ["plain words of english"] * 3000 + ["".join(chr(0x4E00 + number) for number in range(4))]
    vocab = train_tokenizer(texts, 100, show_progress=False).get_vocab()
    assert "一" not in vocab and "english" in vocab


def test_one_endless_word_does_not_stall_the_training_of_a_tokenizer():
    """Uncut, the trainer would join its characters to tokens of any length."""
    texts = ["plain words of english", "ab" * 100_000]
    assert max(map(len, train_tokenizer(texts, 200, show_progress=False).get_vocab())) <= tokenization.LONGEST_WORD + 2


def test_bare_vocabulary(shared_data):
    folder = shared_data("tokenizers/bert-base-chinese")
    for path in (folder, folder / "vocab.txt"):
        tokenizer = load_tokenizer(str(path))
        assert len(tokenizer) == 21128
        assert tokenizer.tokenize("今天 Weather [MASK]") == ["今", "天", "we", "##ather", "[MASK]"]
        assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 103)


def test_tokenizer_errors(tmp_path):
    vocab = write(tmp_path / "vocab.txt", "a\nb\n")
    for path in (vocab, str(tmp_path)):
        with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
            load_tokenizer(path)
    with pytest.raises(ValueError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    write(tmp_path / "model/config.json", '{"model_type": "bert"}')
    with pytest.raises(ValueError):
        load_tokenizer(str(tmp_path / "model"))


# ------------------------------------------------------------------------------------------------- token ids


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a b c d e f g h"] * 3, 40, show_progress=False)


def test_tokenize(tokenizer):
    texts = ["a b c", "a b c d", "a b c d e f g h", "\u200b\u0000", "h"]
    dataset = Dataset.from_dict({"text": texts, "other": range(5)})
    tokenized, counts = tokenize(dataset, tokenizer, max_length=6, long_texts="truncate")
    assert counts[:4] == (4, 4, 20, 4)  # four letters and two special tokens just fit
    assert tokenized.column_names == ["input_ids", "length"]
    assert tokenized["length"][:] == [len(ids) for ids in tokenized["input_ids"]] == [5, 6, 6, 3]
    assert tokenized["input_ids"][1] == tokenizer("a b c d").input_ids
    assert tokenized["input_ids"][2] == tokenizer("a b c d").input_ids  # [SEP] stays
    assert tokenized.features["input_ids"].feature.dtype == "int32"
    assert not tokenized.cache_files
    stream, counts = tokenize(dataset.to_iterable_dataset(), tokenizer, max_length=6, long_texts="truncate")
    assert counts is None and list(stream) == list(tokenized)


@pytest.mark.slow
def test_tokenize_without_a_rust_tokenizer():
    texts = ["abcd", "abcdef", "abcdefgh", "ab"]
    dataset, tokenizer = Dataset.from_dict({"text": texts}), CanineTokenizer()
    tokenized, counts = tokenize(dataset, tokenizer, max_length=8, long_texts="truncate")
    assert tokenized["length"][:] == [6, 8, 8, 4] and counts.dropped == 2
    assert tokenized["input_ids"][1] == tokenizer("abcdef").input_ids


def test_tokenize_negatives(tokenizer):
    dataset = Dataset.from_dict({"text": ["a", "b"], "negative": ["c d e", "\u200b"]})
    tokenized, counts = tokenize(dataset, tokenizer, max_length=4)
    assert counts.dropped == 0  # of the texts
    assert sorted(tokenized.column_names) == ["input_ids", "length", "negative_input_ids"]
    assert tokenized["negative_input_ids"][:] == [tokenizer("c d").input_ids]


def test_tokenize_errors(tokenizer):
    with pytest.raises(ValueError, match="max_length"):
        tokenize(Dataset.from_dict({"text": ["a"]}), tokenizer, max_length=2)
    with pytest.raises(ValueError, match="columns: body"):
        tokenize(Dataset.from_dict({"body": ["a"]}), tokenizer, max_length=8)
    with pytest.raises(ValueError, match="none of the texts"):
        tokenize(Dataset.from_dict({"text": ["\u200b"]}), tokenizer, max_length=8)
