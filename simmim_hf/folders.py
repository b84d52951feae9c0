"""The folder that a command writes to: claimed for it alone and tried before anything is read; and what is said where
a file cannot be written."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging

from .options import reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

# Trainer uploads nothing that begins with `_`. The file of a lock means nothing by itself: the lock that the system
# has on it ends with its process, however that ends.
LOCK = "_lock"
SAVING = "_saving"  # the folder of what is not whole yet
TRIAL = "_trial"  # the folder of a trial of writing

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EXDEV, errno.ENODEV, errno.ENXIO)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTCONN)
# What a file system answers that cannot bring the names in a folder to the disk.
NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOSYS)


class NotSaved(OSError):
    """A file could not be written."""


@contextlib.contextmanager
def claimed(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other commands from a folder meanwhile, or until this process ends; proves that it can be written.

    Where a file system has no locks, a warning says so.

    Args:
        folder: is made where there is none; where nothing came into it, it is taken away again

    Raises:
        ValueError: it cannot be written, or another command writes to it; the message names the remedy.
    """
    folder = Path(folder).absolute()
    is_new = not os.path.exists(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = _lock(folder)
    except BlockingIOError:
        raise ValueError(
            f"--output_dir `{folder}`: another command is writing there. Wait for its end, or give another folder."
        ) from None
    except OSError as error:
        raise ValueError(_unwritable(folder, error)) from error
    try:
        try:
            _try_to_write(folder)
        except OSError as error:
            raise ValueError(_unwritable(folder, error)) from error
        yield
    finally:
        _release(lock, folder, is_new=is_new)


def is_used(folder: str | os.PathLike, *others: str) -> bool:
    """Whether there is anything in a folder beside what a killed command leaves, and these names."""
    return os.path.isdir(folder) and not {LOCK, SAVING, TRIAL, *others}.issuperset(os.listdir(folder))


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Makes a `NotSaved` of what says that a file could not be written, in Python's words, safetensors' or torch's."""
    try:
        yield
    except Exception as error:
        failure = failure_of(error, folder)
        if failure is None or isinstance(error, NotSaved):
            raise
        raise NotSaved(failure) from error


def failure_of(error: Exception, folder: str | os.PathLike) -> str | None:
    """What kept a file from being written, in a sentence; None where the error is another one."""
    said = str(error)
    if isinstance(error, NotSaved):
        return said
    if isinstance(error, ValueError):  # of what was read, which may quote the system
        return None
    found = re.search(r"\[Errno (\d+)\]|os error (\d+)\b", said)  # of Python, of a library in Rust
    number = int(found[1] or found[2]) if found else None
    # torch says so where a file became shorter than what was written to it.
    if number in FULL or re.search(r"PytorchStreamWriter failed|\bunexpected pos \d", said):
        return f"The disk of `{folder}` is full, or a quota used up ({reason(error)})."
    path = getattr(error, "filename", None) or folder
    if number in (*REFUSED, *GONE) and Path(path).absolute().is_relative_to(Path(folder).absolute()):
        return f"`{folder}` cannot be written any more ({reason(error)})."
    return None


def make_durable(path: Path) -> None:
    """Brings a file to the disk, or the names in a folder where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in NO_SYNC_OF_FOLDERS:
            raise


def _unwritable(folder: Path, error: OSError) -> str:
    return f"--output_dir `{folder}` cannot be written ({reason(error)}). Give a folder that can be."


def _lock(folder: Path) -> int:
    """The descriptor of the locked file `LOCK`.

    Raises:
        BlockingIOError: another process has the lock.
    """
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_file(descriptor, folder)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the command before has just released it, and taken its name away


def _lock_file(descriptor: int, folder: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no fcntl")
        # Of the process alone: `flock` would also be held by a worker of a DataLoader that outlives it for seconds.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(errno.EAGAIN, error.strerror) from None
        logger.warning(f"`{folder}` cannot be locked ({reason(error)}): start no other command that writes there.")


def _release(lock: int, folder: Path, *, is_new: bool) -> None:
    with contextlib.suppress(OSError):  # the folder may be gone
        os.unlink(folder / LOCK)
    os.close(lock)
    if is_new:
        with contextlib.suppress(OSError):  # something is in it
            os.rmdir(folder)


def _try_to_write(folder: Path) -> None:
    """Does once what saving a checkpoint does: writes a file aside, brings it to the disk, renames its folder."""
    _remove_unfinished(folder)  # of a killed command
    file = folder / SAVING / TRIAL / "file"
    try:
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(4096))
        make_durable(file)
        make_durable(file.parent)
        os.replace(file.parent, folder / TRIAL)
        make_durable(folder)
    finally:
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    for name in (SAVING, TRIAL):
        shutil.rmtree(folder / name, ignore_errors=True)
