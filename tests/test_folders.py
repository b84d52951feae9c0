"""The folder of a command: one command writes to it, it is tried beforehand, and what cannot be written is said."""

import errno
import os
from pathlib import Path

import pytest
from helpers import another_command_in, failing

from simmim_hf import folders
from simmim_hf.folders import LOCK, SAVING, TRIAL, NotSaved, claimed, failure_of, is_used, make_durable, writing


def claim(folder: Path) -> None:
    with claimed(folder):
        pass


def is_folder(descriptor: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{descriptor}")


def test_one_command_writes_to_a_folder_and_one_that_was_killed_leaves_it_free(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "of the first").touch()
    with another_command_in(run):
        for _ in range(2):
            with pytest.raises(ValueError, match="run`: another command is writing there. Wait for its end"):
                claim(run)
    assert (run / LOCK).is_file(), "it was killed"
    claim(run)
    assert os.listdir(run) == ["of the first"]


def test_a_lock_is_of_the_file_that_has_its_name(tmp_path, monkeypatch):
    """The command before has released it between the opening and the locking of the file."""
    lockf = folders.fcntl.lockf

    def unlink_and_lock(*arguments):
        monkeypatch.setattr(folders.fcntl, "lockf", lockf)
        (tmp_path / LOCK).unlink()
        lockf(*arguments)

    monkeypatch.setattr(folders.fcntl, "lockf", unlink_and_lock)
    with claimed(tmp_path):
        assert (tmp_path / LOCK).is_file()


def test_what_a_killed_command_leaves_is_nothing(tmp_path):
    assert not is_used(tmp_path / "missing") and not is_used(tmp_path)
    (tmp_path / LOCK).touch()
    for name in (SAVING, TRIAL):
        (tmp_path / name / "folder").mkdir(parents=True)
    assert not is_used(tmp_path)
    (tmp_path / "text.txt").touch()
    assert is_used(tmp_path) and not is_used(tmp_path, "text.txt")
    claim(tmp_path)
    assert os.listdir(tmp_path) == ["text.txt"]


def test_a_folder_into_which_nothing_came_is_taken_away(tmp_path):
    claim(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    claim(tmp_path)
    with pytest.raises(KeyError), claimed(tmp_path / "new"):
        raise KeyError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(folders.fcntl, "lockf", failing(number, None))
    claim(tmp_path)
    assert [os.strerror(number) in record.message for record in caplog.records] == [True]
    assert "start no other command that writes there" in caplog.text


@pytest.mark.parametrize(
    ("function", "number"),
    [
        *(("replace", number) for number in (errno.EXDEV, errno.ESTALE, errno.EACCES)),
        *(("fsync", number) for number in (errno.EIO, errno.ENOSPC, errno.EINVAL)),
        *(("mkdir", number) for number in (errno.EROFS, errno.EACCES, errno.ENOSPC)),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, function, number):
    monkeypatch.setattr(os, function, failing(number, None))
    with pytest.raises(ValueError, match=f"cannot be written .*{os.strerror(number)}.*Give a folder that can be"):
        claim(tmp_path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["/proc/run", "/sys/run", "/dev/null/run", "file", "file/run"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{place}` cannot be written"):
        claim(tmp_path / place)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / SAVING).touch()
    with pytest.raises(ValueError, match=f"cannot be written .*{SAVING}"):
        claim(tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_a_folder_is_brought_to_the_disk_where_that_can_be(tmp_path, monkeypatch, number):
    (tmp_path / "file").touch()
    monkeypatch.setattr("os.fsync", failing(number, os.fsync, only=is_folder))
    make_durable(tmp_path)
    make_durable(tmp_path / "file")
    claim(tmp_path)
    monkeypatch.setattr("os.fsync", failing(number, os.fsync))
    with pytest.raises(OSError, match=os.strerror(number)):
        make_durable(tmp_path / "file")
    monkeypatch.setattr("os.fsync", failing(errno.EIO, os.fsync))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        make_durable(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), "The disk of `run` is full, or a quota used up ([Errno 28] No space"),
        (Exception("I/O error: ... (os error 28)"), "The disk of `run` is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "The disk of `run` is full"),
        (RuntimeError("unexpected pos 64 vs 0"), "The disk of `run` is full"),
        (OSError(errno.ESTALE, "Stale file handle"), "`run` cannot be written any more ([Errno 116] Stale"),
        (Exception("I/O error: ... (os error 5)"), "`run` cannot be written any more"),
        (FileNotFoundError(errno.ENOENT, "No such file", "run/checkpoint-1"), "`run` cannot be written any more"),
        (FileNotFoundError(errno.ENOENT, "No such file", "text.txt"), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
        (ConnectionError("no route"), None),
        (ValueError("text.txt: [Errno 5] Input/output error"), None),
    ],
)
def test_errors_of_writing_are_told_from_others(error, said):
    found = failure_of(error, "run")
    assert (found or "").startswith(said) if said else found is None
    with pytest.raises(NotSaved if said else type(error)) as raised, writing("run"):
        raise error
    assert "\n" not in str(raised.value)
