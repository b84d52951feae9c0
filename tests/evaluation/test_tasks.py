"""What a task may be, how its files are read, and what is refused."""

import gzip
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from task_files import PAIRS, sentences, write_lines

from simmim_hf.data import corpora
from simmim_hf.evaluation import tasks
from simmim_hf.evaluation.tasks import load_scored_pairs, load_task, load_tasks

PAIR_FILES = [
    ("a.jsonl", [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in PAIRS]),
    ("a.tsv", ["score\tsentence1\tsentence2\n", *(f"{s}\t{a}\t{b}\n" for a, b, s in PAIRS)]),
    ("a.tsv", [f"news\tMSRvid\t2012test\t{i:04}\t{s}\t{a}\t{b}\n" for i, (a, b, s) in enumerate(PAIRS)]),
    ("sts-test.csv", [f"forum\tx\t2015\t{i}\t{s}\t{a}\t{b}\tl\tm\n" for i, (a, b, s) in enumerate(PAIRS)]),
    (
        "a.csv",
        [
            "sentence1,sentence2,score\n",
            *("{},{},{}\n".format(*(f'"{x.replace(chr(34), 2 * chr(34))}"' for x in (a, b)), s) for a, b, s in PAIRS),
        ],
    ),
]


@pytest.mark.parametrize(("name", "lines"), PAIR_FILES)
@pytest.mark.parametrize("compressed", [False, True])
def test_scored_pairs_are_read_alike_from_all_formats(tmp_path, name, lines, compressed):
    path = Path(write_lines(tmp_path / name, lines))
    if compressed:
        path.with_name(name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path = path.with_name(name + ".gz")
    task = load_task(str(path))
    assert task.kind == "similarity"
    for table in (task.test, load_scored_pairs(str(path))):
        assert list(zip(table["sentence1"], table["sentence2"], table["score"], strict=True)) == PAIRS


def test_scored_pairs_in_parquet(tmp_path):
    rows = Dataset.from_list([{"sentence1": a, "sentence2": b, "score": s} for a, b, s in PAIRS])
    rows.to_parquet(tmp_path / "a.parquet")
    assert load_scored_pairs(str(tmp_path / "a.parquet")).to_list() == rows.to_list()


def test_scored_pairs_without_a_column_name_what_they_have(tmp_path):
    file = write_lines(tmp_path / "pairs.jsonl", [{"sentence1": "a", "text": "b"}])
    with pytest.raises(ValueError, match=r"has the columns \['sentence1', 'text'\].*need sentence1, sentence2, score"):
        load_scored_pairs(file)
    labelled = write_lines(tmp_path / "labelled.csv", ["text,label\n", "a,1\n"])
    with pytest.raises(ValueError, match=r"has the columns \['text', 'label'\]"):
        load_scored_pairs(labelled)
    with pytest.raises(FileNotFoundError, match="no-such"):
        load_scored_pairs(str(tmp_path / "no-such.jsonl"))


def test_results_name_no_folder_of_this_machine_and_each_task_once(tmp_path):
    files = [write_lines(tmp_path / part / "x" / "a.txt", ["a b\n"]) for part in ("one", "two")]
    assert list(load_tasks([*files, files[0]])) == ["x/a.txt", "x/a.txt (2)"]


def test_a_folder_with_one_file_is_that_file(tmp_path):
    write_lines(tmp_path / "all.jsonl", [{"text": t, "label": i % 2} for i, t in enumerate(sentences(8))])
    (tmp_path / "LICENSE").write_text("free")
    task = load_task(str(tmp_path))
    assert (task.kind, task.train, len(task.test)) == ("transfer", None, 8)


def test_hub_datasets_are_read_by_their_splits(monkeypatch):
    def fake(name, configuration):
        asked.append((name, configuration))
        return DatasetDict(splits)

    asked, rows = [], Dataset.from_list([{"text": t, "label": i % 2} for i, t in enumerate(sentences(8))])
    monkeypatch.setattr(tasks, "load_dataset", fake)
    splits = {"train": rows, "validation": rows.select(range(4)), "test": rows.select(range(2))}
    task = load_task("owner/name:english")
    assert asked == [("owner/name", "english")] and len(task.train) == 8 and len(task.test) == 2
    splits = {"train": rows}
    assert load_task("owner/name").train is None
    splits = {"train": rows, "more": rows}
    with pytest.raises(ValueError, match=r"splits \['train', 'more'\]"):
        load_task("owner/name")
    monkeypatch.setattr(tasks, "load_dataset", lambda *_: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(FileNotFoundError, match=r"`owner/name`.*no network.*docstrings"):
        load_task("owner/name")


def test_the_built_in_task_is_the_held_out_part_of_pretraining(monkeypatch):
    rows = [
        {"text": f"{i} x", "summary": f"s {i}", "body": f"b{i}" + " word" * (8 + i % 2), "source": f"file{i // 4}"}
        for i in range(400)
    ]
    monkeypatch.setattr(tasks.docstrings, "built_in_corpus", lambda: Dataset.from_list(rows))
    _, held_out = corpora.split_held_out(Dataset.from_list(rows), 0.1, group_column="source", seed=7)
    task = load_task("docstrings", seed=7)
    assert task.test["query"][:] == [row["summary"] for row in held_out if len(row["body"].split()) == 10]
    assert len(set(task.test["query"])) == 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is an empty file"),
        (
            [{"sentence1": "a", "sentence2": "b"}],
            "has the columns ['sentence1', 'sentence2'], but a task needs one of",
        ),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}] * 2, "at least 3 scored pairs, and there are 2"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}] * 3, "all 3 scores are 1"),
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}] * 3, "the score 'high' of row 1 is not a number"),
        ([{"sentence1": "a", "sentence2": None, "score": 1}] * 3, "row 1 has None in the column `sentence2`"),
        ([{"text": "a", "label": 1}] * 20, "all 20 labels are 1"),
        ([{"text": "a", "label": i // 19} for i in range(20)], "the label 1 has only 1 texts"),
        ([{"text": "a", "label": None}, {"text": "a", "label": 1}], "row 1 has no label"),
        ([{"query": "a", "document": "b"}] * 4, "two different documents"),
        ([{"text": " "}] * 3, "all rows of the column `text` are blank"),
        (["{not json"], "cannot read text from"),
    ],
)
def test_tasks_that_cannot_be_measured_are_refused(tmp_path, content, said):
    with pytest.raises(ValueError) as refusal:
        load_task(write_lines(tmp_path / "bad.jsonl", content))
    assert said in str(refusal.value) and "bad.jsonl" in str(refusal.value)


def test_unreadable_files_and_folders_are_refused(tmp_path):
    (tmp_path / "scan.pdf").write_text("x")
    with pytest.raises(ValueError, match="unsupported ending"):
        load_task(str(tmp_path / "scan.pdf"))
    with pytest.raises(ValueError, match="a task is one file"):
        load_task(str(tmp_path))
    sts = write_lines(tmp_path / "sts.tsv", ["a\tb\tc\td\t1.0\tx\ty\n", "a\tb\tc\td\tnone\tx\ty\n"])
    with pytest.raises(ValueError, match="line 2"):
        load_task(sts)
    write_lines(tmp_path / "split" / "train.jsonl", [{"text": "a", "label": i % 2} for i in range(8)])
    write_lines(tmp_path / "split" / "test.jsonl", [{"text": "a", "label": 7}])
    with pytest.raises(ValueError, match=r"labels that no training text has: \[7\]"):
        load_task(str(tmp_path / "split"))
