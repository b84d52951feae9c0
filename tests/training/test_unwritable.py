"""A folder in which another command writes, or that cannot be written: each command says so in one line."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import (
    TINY,
    another_command_in,
    corpus_lines,
    environment,
    failing,
    launch,
    refused,
    tiny_model,
    tiny_tokenizer,
)

from simmim_hf import records
from simmim_hf.cli import main
from simmim_hf.folders import LOCK
from simmim_hf.training.checkpoints import checkpoints_in

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]

SMALL = ["--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "8", "--max_seq_length", "16"]
SMALL += ["--disable_tqdm", "true"]
NETWORK = ["--text_config", json.dumps({**TINY, "num_hidden_layers": 1}), "--vocab_size", "120"]
COMMANDS = ("pretrain", "adapt", "compare", "evaluate", "export")


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.txt").write_text("\n".join(corpus_lines(60)))
    return str(tmp_path / "text.txt")


def pretrain(text: str, *more: str) -> list[str]:
    return ["pretrain", "--train_file", text, *SMALL, *NETWORK, "--max_steps", "4", "--save_steps", "2", *more]


def words_of(command: str, text: str, encoder: Path) -> list[str]:
    """A command whose text and model are there."""
    if not encoder.exists():
        tiny_model().save_pretrained(encoder)
        tiny_tokenizer().save_pretrained(encoder)
    words = {
        "pretrain": pretrain(text),
        "adapt": ["adapt", "--model_name_or_path", str(encoder), "--train_file", text, *SMALL],
        "compare": ["compare", "--objectives", "mlm", "--train_file", text, *SMALL, *NETWORK],
        "evaluate": ["evaluate", "--model", str(encoder), "--tasks", text, "--max_samples", "0"],
        "export": ["export", "--model", str(encoder), "--to", "backbone"],
    }
    words["compare"] += ["--budget_text", "900", "--seeds", "1"]
    return [*words[command], "--output_dir", "run"]


def names(folder: str) -> list[str]:
    return [path.name for path in checkpoints_in(Path(folder))]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_leaves_a_folder_alone_in_which_another_one_writes(text, tmp_path, capsys, command):
    words = words_of(command, text, tmp_path / "encoder")
    with another_command_in(tmp_path / "run"):
        message = refused(capsys, *words)
        assert os.listdir("run") == [LOCK]
    assert "run`: another command is writing there. Wait for its end, or give another folder." in message


def test_two_runs_that_begin_together_end_as_one(text, tmp_path):
    words = [sys.executable, "-m", "simmim_hf.cli", *pretrain(text, "--output_dir", "run")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    runs = [subprocess.Popen(words, **pipes) for _ in range(2)]
    said = {run.communicate(timeout=300)[1]: run.returncode for run in runs}
    assert sorted(said.values()) == [0, 2] and "Traceback" not in "".join(said)
    assert names("run") == ["checkpoint-2", "checkpoint-4"]
    assert "results.json" in os.listdir("run") and not [name for name in os.listdir("run") if name.startswith("_")]


def test_all_processes_of_a_refused_run_end_in_one_line(text, tmp_path):
    with another_command_in(tmp_path / "run"):
        ended = launch("-m", "simmim_hf.cli", *pretrain(text, "--output_dir", "run"), check=False)
    said = [line for line in ended.stderr.splitlines() if line.startswith("simmim pretrain: error: ")]
    assert ended.returncode and len(said) == 2 and all("another command is writing there" in line for line in said)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_found_before_text_is_read(tmp_path, capsys, monkeypatch, command):
    words = words_of(command, "no-such-file.txt", tmp_path / "encoder")
    monkeypatch.setattr(os, "replace", failing(errno.EXDEV, None))
    message = refused(capsys, *words)
    assert "run` cannot be written ([Errno 18] Invalid cross-device link). Give a folder that can be." in message
    assert not (tmp_path / "run").exists()


def renames(step: int):
    return lambda source, target: Path(target).name == f"checkpoint-{step}"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ESTALE, errno.EACCES, errno.EROFS, errno.EIO, errno.ENOSPC])
def test_a_checkpoint_that_cannot_be_saved_ends_a_run_that_goes_on_later(text, capsys, monkeypatch, number):
    words = pretrain(text, "--output_dir", "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(number, os.replace, only=renames(4)))
        message = refused(capsys, *words, code=1)
    assert os.strerror(number) in message and "`run`" in message and "--resume_from_checkpoint last" in message
    assert names("run") == ["checkpoint-2"] and not Path("run/_saving").exists()
    if number == errno.EXDEV:
        assert main([*words, "--resume_from_checkpoint", "last"]) == 0


def test_a_run_without_a_checkpoint_begins_anew(text, capsys, monkeypatch):
    words = pretrain(text, "--output_dir", "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(errno.ESTALE, os.replace, only=renames(2)))
        assert "add --overwrite_output_dir and begin anew" in refused(capsys, *words, code=1)
    assert main([*words, "--overwrite_output_dir"]) == 0


@pytest.mark.parametrize("command", ["pretrain", "compare", "evaluate"])
def test_results_that_cannot_be_saved_end_a_command_in_one_line(text, tmp_path, capsys, monkeypatch, command):
    words = words_of(command, text, tmp_path / "encoder")
    with monkeypatch.context() as patch:
        write = failing(errno.EROFS, records.write_json, only=lambda path, content: path.name.startswith("result"))
        patch.setattr(records, "write_json", write)
        message = refused(capsys, *words, code=1)
    assert "`run` cannot be written any more ([Errno 30] Read-only file system)" in message
    more = ["--resume_from_checkpoint", "last"] if command == "pretrain" else []
    assert main([*words, *more]) == 0


def test_an_export_for_which_there_is_no_room_ends_in_one_line(tmp_path, capsys, monkeypatch):
    words = words_of("export", "", tmp_path / "encoder")
    monkeypatch.setattr(shutil, "copyfile", failing(errno.ENOSPC, None))
    assert "The disk of `run` is full" in refused(capsys, *words, code=1)


FAILING_RANK = """
import errno, os, sys, torch
from simmim_hf.cli import main

if os.environ["RANK"] == sys.argv[1]:
    def stale(*arguments, **options):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    torch.save = stale
sys.exit(main(sys.argv[2:]))
"""


def test_all_processes_end_where_one_cannot_save(text):
    Path("failing.py").write_text(FAILING_RANK)
    ended = launch("failing.py", "1", *pretrain(text, "--output_dir", "run"), check=False)
    said = [line for line in ended.stderr.splitlines() if line.startswith("simmim pretrain: ")]
    assert ended.returncode and len(said) == 2 and all("`run` cannot be written any more" in line for line in said)
    assert names("run") == []
