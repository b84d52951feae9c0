"""What is recorded of a run: its command without secrets, and a checksum of its text."""

import shutil
import subprocess

import pytest
from datasets import Dataset

from simmim_hf import records
from simmim_hf.options import one_line


def test_a_command_is_recorded_without_folders_and_tokens():
    words = ["pretrain", "--hub_token", "secret", "--hub-token=secret", "--train_file", "/a/b/c.txt", "d/e.txt"]
    words += ["--output_dir=/a/run", "--tokenizer_name", "/a/b/tokenizer", "--text_config", '{"a": 1}']
    expected = "simmim pretrain --train_file c.txt d/e.txt --output_dir=run --tokenizer_name tokenizer --text_config"
    assert records.command(words) == expected + """ '{"a": 1}'"""


def test_options_are_recorded_without_tokens():
    options = {"hub_token": "a", "arm": {"push_to_hub_token": "b", "seed": 1}, "budget_tokens": 5, "files": ["c"]}
    assert records.without_secrets(options) == {"arm": {"seed": 1}, "budget_tokens": 5, "files": ["c"]}


def test_a_fingerprint_is_that_of_the_content():
    rows = {"text": ["a", "b", None], "input_ids": [[1, 2], [3], []], "length": [2, 1, 0]}
    first = records.fingerprint(Dataset.from_dict(rows))
    twice = Dataset.from_dict({name: [*column, *column] for name, column in rows.items()})
    assert first == records.fingerprint(twice.select([3, 1, 5]))
    for name, column in (("text", ["a", "b", "c"]), ("input_ids", [[1], [2, 3], []]), ("length", [2, 1, 1])):
        assert records.fingerprint(Dataset.from_dict({**rows, name: column})) != first
    assert records.fingerprint(twice.to_iterable_dataset()) is None


def test_files_of_one_name_are_told_apart_by_their_folders():
    assert records.distinct_names(["/a/wiki/train.txt", "/a/books/held.txt"]) == ["train.txt", "held.txt"]
    expected = ["wiki/train.txt", "books/train.txt", "train.txt"]
    assert records.distinct_names(["/a/wiki/train.txt", "books/train.txt", "train.txt"]) == expected


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One whose configuration names a command, as one out of an archive may; git runs it to look for changes."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook that runs the tests
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "repository"
    path.mkdir()
    (path / "file").write_text("text")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    hook = f"touch {tmp_path / 'was_run'}; false"
    for words in (["init"], ["add", "."], [*author, "commit", "-m", "a"], ["config", "core.fsmonitor", hook]):
        subprocess.run(["git", "-C", str(path), *words], check=True, capture_output=True)
    return path


def test_the_revision_is_of_this_package_and_runs_nothing(repository, tmp_path, monkeypatch):
    here = records.git_revision()
    monkeypatch.chdir(repository)
    assert records.git_revision() == here
    monkeypatch.setattr(records, "__file__", str(repository / "simmim_hf/records.py"))
    revision = records.git_revision()
    assert len(revision) == 40 and revision != here
    (repository / "file").write_text("other text")
    assert records.git_revision() == f"{revision}-dirty"
    assert not (tmp_path / "was_run").exists()
    installed = repository / "env/site-packages/simmim_hf/records.py"
    monkeypatch.setattr(records, "__file__", str(installed))
    assert records.git_revision() is None, "the repository around an installed package is another one"


def test_what_could_write_more_than_a_name_is_escaped():
    name = "we\nird \x1b[31m\u202e\udcff.txt"
    expected = r"we\nird \x1b[31m\u202e\udcff.txt"
    assert records.printable(name) == expected
    assert records.printable({name: [name, 1, None], "a": {"b": (name,)}}) == {
        expected: [expected, 1, None],
        "a": {"b": [expected]},
    }
    text = "naïve 河 \u200d ü"
    assert records.printable(text) == text
    assert one_line(f"there is no `{name}`") == r"there is no `we ird \x1b[31m\u202e\udcff.txt`"
