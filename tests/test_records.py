"""What is recorded of a run: its command without secrets, and a checksum of its text."""

from datasets import Dataset

from simmim_hf import records


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
