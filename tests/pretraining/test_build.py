"""What a run is made of: a corpus says itself what it is."""

import json

import pytest
from datasets import Dataset

from simmim_hf.pretraining.build import read_text
from simmim_hf.pretraining.options import DataArguments


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    (tmp_path / "lines.txt").write_text("".join(f"a line with the number {number}\n" for number in range(40)))
    rows = [{"text": f"a row with the number {number}"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / name) for name in ("lines.txt", "rows.jsonl")}


def test_a_corpus_says_what_it_is(files):
    lines, rows = files.values()
    corpus = read_text(DataArguments(train_file=[lines, rows]), seed=0)
    assert corpus.units == ["a line of .txt", "a row of .jsonl"]
    assert corpus.description == {
        "files": ["lines.txt", "rows.jsonl"],
        "held_out": "5 % of the texts, 2,000 at most, drawn at random",
    }
    assert len(corpus.train) == 76 and len(corpus.held_out) == 4

    options = {"mixture_weights": [1.0, 2.0], "validation_file": [lines], "text_unit": "file"}
    mixture = read_text(DataArguments(train_file=[lines, rows], **options), seed=0)
    assert mixture.units == ["a file of .txt", "a row of .jsonl"]
    assert mixture.description == {"files": ["lines.txt", "rows.jsonl"], "held_out": "lines.txt"}

    saved = Dataset.from_dict({"text": ["one text", "another text", "a third text"]})
    folder = lines.replace("lines.txt", "dataset")
    saved.to_parquet(f"{folder}/train.parquet")
    of_a_folder = read_text(DataArguments(dataset_name=folder), seed=0)
    assert of_a_folder.units == [] and of_a_folder.description["files"] == ["dataset"]
