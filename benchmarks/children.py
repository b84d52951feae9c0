"""Commands of `simmim` in child processes of one that has run one of them, so that each begins at once."""

import contextlib
import gc
import io
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import tqdm.std
from accelerate.state import AcceleratorState

from simmim_hf.cli import main as simmim

SECONDS = 3600  # of the processor, that a child may use
CHILDREN = multiprocessing.get_context("fork")
# All children share a lock of progress bars, which one that is killed may take with it.
tqdm.std.TqdmDefaultWriteLock.mp_lock = None
tqdm.std.tqdm.monitor_interval = 0  # a thread that may hold a lock while a child is made


def prepare(words: Sequence[str]) -> None:
    """Runs a command here, so that the children find all modules imported and all caches filled."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # a thread would not be there in a child
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # a child finds nothing left to print
    environment = dict(os.environ)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = simmim(words)
    if status:
        sys.exit(f"simmim {' '.join(words)}: {errors.getvalue()}")
    os.environ.clear()
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.freeze()  # a child that collects would copy all of it


def run_command(words: Sequence[str], said: Path, begin: Callable[[], None] = lambda: None) -> int | None:
    """Runs `simmim` in a child; its standard output goes to the file `said`.out, and its errors to `said`.err.

    It ends after an hour of the processor; where it uses none, after ten hours.

    Args:
        begin: what the child does first

    Returns:
        The exit code, the negative number of a signal, or None where the time was over.
    """
    child = CHILDREN.Process(target=_run, args=(words, said, begin))
    child.start()
    child.join(10 * SECONDS)
    code = child.exitcode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # with the processes that it started
    child.join()
    child.close()
    return None if code == -signal.SIGXCPU else code


def _run(words: Sequence[str], said: Path, begin: Callable[[], None]) -> None:
    os.setsid()
    for descriptor, ending, name in ((1, "out", "stdout"), (2, "err", "stderr")):
        with open(f"{said}.{ending}", "w") as file:
            os.dup2(file.fileno(), descriptor)
        setattr(sys, name, os.fdopen(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False))
    logging.getLogger().handlers.clear()  # those of a test runner
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.RLIM_INFINITY))
    begin()
    sys.exit(simmim(words))
