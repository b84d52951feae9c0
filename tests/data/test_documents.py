"""Documents become rows of tokens, and none of them is lost."""

import itertools
import random

import pytest
from datasets import Dataset
from helpers import tiny_tokenizer

from simmim_hf.data.corpora import load_text, split_held_out, text_units
from simmim_hf.data.tokenization import tokenize

CLS, SEP = 2, 3


@pytest.fixture(autouse=True, scope="module")
def caches_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def corpus(lengths) -> Dataset:
    rng = random.Random(0)
    return Dataset.from_dict({"text": [" ".join(f"w{rng.randrange(50)}" for _ in range(n)) for n in lengths]})


def tokens_of(rows) -> list[int]:
    return list(itertools.chain.from_iterable(row["input_ids"][1:-1] for row in rows))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("passages", [1, 2])
def test_every_token_of_a_long_document_is_read_once(streaming, passages):
    texts, tokenizer = corpus([2000, 1999, 3, 126, 127]), tiny_tokenizer()
    whole = list(itertools.chain.from_iterable(tokenizer(texts["text"][:], add_special_tokens=False)["input_ids"]))
    given = texts.to_iterable_dataset() if streaming else texts
    rows, counts = tokenize(given, tokenizer, max_length=128, passages=passages)
    rows = list(rows)
    assert tokens_of(rows) == whole
    for row in rows:
        assert (row["input_ids"][0], row["input_ids"][-1]) == (CLS, SEP)
        assert row["length"] == len(row["input_ids"]) <= 126 * passages + 2
    if streaming:
        assert counts is None
    else:
        assert counts[:4] == (5, len(rows), len(whole) + 2 * len(rows), 0)
        assert len(rows) == sum(-(-n // (126 * passages)) for n in (2000, 1999, 3, 126, 127))


def test_passages_of_a_document_are_equally_long():
    rows, _ = tokenize(corpus([127]), tiny_tokenizer(), max_length=128)
    assert rows["length"][:] == [65, 66]  # rather than one of 126 tokens and one of a single token


def test_truncated_texts_are_cut_and_counted():
    rows, counts = tokenize(corpus([300, 5]), tiny_tokenizer(), max_length=128, long_texts="truncate")
    assert rows["length"][:] == [128, 7]
    assert counts[:4] == (2, 2, 135, 174)


def test_negatives_follow_the_passages_of_their_document():
    texts = corpus([20, 3]).add_column("negative", ["w1 w2", "w3 " * 20])
    rows, _ = tokenize(texts, tiny_tokenizer(), max_length=12)
    assert rows["negative_input_ids"][:2] == [[CLS, 6, 7, SEP]] * 2
    assert len(rows["negative_input_ids"][2]) == 12


WRAPPED = "A first line\nand its second.\n\nAnother block,\nwrapped too.\n"


@pytest.mark.parametrize(
    "unit, documents",
    [
        ("line", ["A first line", "and its second.", "Another block,", "wrapped too."]),
        ("paragraph", ["A first line\nand its second.", "Another block,\nwrapped too."]),
        ("file", [WRAPPED.strip()]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_units_of_a_text_file(tmp_path, unit, documents, streaming):
    (tmp_path / "book.txt").write_text(WRAPPED)
    assert [row["text"] for row in load_text(tmp_path, text_unit=unit, streaming=streaming)] == documents


def test_default_units(tmp_path):
    wrapped, lines, table = (tmp_path / name for name in ("wrapped.txt", "lines.txt", "table.jsonl"))
    wrapped.write_text(WRAPPED)
    lines.write_text("One text a line.\n" * 50 + "\n" + "One text a line.\n" * 50)  # a stray blank line
    table.write_text('{"text": "a row"}\n')
    units = text_units(str(tmp_path))
    assert units == {str(lines): "line", str(table): "row", str(wrapped): "paragraph"}
    assert len(load_text(str(tmp_path))) == 100 + 1 + 2


def test_units_that_do_not_exist(tmp_path):
    (tmp_path / "a.txt").write_text("text\none text\n")
    with pytest.raises(
        ValueError, match=r"text_unit is 'row', and .*a.txt' has none: choose from line, paragraph, file"
    ):
        load_text(str(tmp_path), text_unit="row")
    (tmp_path / "a.txt").rename(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="text_unit is 'line', and there is no .txt or .md file"):
        load_text(str(tmp_path), text_unit="line")


def test_no_document_is_on_both_sides_of_the_split():
    train, held_out = split_held_out(corpus([300] * 40), fraction=0.2)
    sides = [tokens_of(tokenize(side, tiny_tokenizer(), max_length=32)[0]) for side in (train, held_out)]
    assert sum(map(len, sides)) == 40 * 300
    assert not set(train["text"][:]) & set(held_out["text"][:])
