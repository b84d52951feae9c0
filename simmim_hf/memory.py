"""Where memory runs out: what to do about it, in one line."""

import contextlib
import re
from collections.abc import Iterator

from .options import reason

# As torch says it of a CPU, of CUDA and of MPS, and C++ of anything.
SAID = re.compile(r"out of memory|can't allocate memory|bad_alloc|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
WANTED = re.compile(r"tried to allocate [\d.,]+ ?\w+", re.IGNORECASE)


class OutOfMemory(RuntimeError):
    """There is not enough memory for what was asked for."""


@contextlib.contextmanager
def remedied(remedy: str) -> Iterator[None]:
    """Makes an `OutOfMemory` of what says so in here, with what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_ours = isinstance(error, MemoryError) or SAID.search(str(error))
        if isinstance(error, OutOfMemory) or not is_ours:
            raise
        wanted = WANTED.search(str(error))
        raise OutOfMemory(f"Out of memory ({wanted[0] if wanted else reason(error)}). {remedy}") from error
