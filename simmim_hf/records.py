"""What results depend on, and JSON files that are whole or absent."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from transformers import TrainingArguments

SECRET = re.compile(r"[\w-]+[_-]token")  # an option that holds an access token, such as hub_token


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on."""
    names = ("simmim_hf", "torch", "transformers", "datasets", "tokenizers", "accelerate")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


# Line breaks and control characters, with which a name could write more than a name or move the cursor; characters
# that turn the direction of text; bytes of a name that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def git_revision() -> str | None:
    """The commit of the clone that this package runs from, `-dirty` where files changed; None where it is installed.

    Never of the working directory: git runs what the configuration of a repository names, and this one may have come
    out of an archive.
    """
    clone = Path(__file__).parents[1]
    if not (clone / ".git").exists():  # a repository further up has this package as one of its files
        return None
    words = ["git", "-C", str(clone), "-c", "core.fsmonitor=false"]
    words += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # there may be no git
        return None


def fingerprint(rows) -> str | None:
    """A checksum of the content of a dataset; None for a stream, or what is no `datasets.Dataset`."""
    if not isinstance(rows, Dataset):
        return None
    checksum = hashlib.sha256(repr(rows.features).encode())
    for table in rows.with_format("arrow").iter(batch_size=10_000):
        for column in table.columns:
            values = column.combine_chunks()
            while pa.types.is_list(values.type):
                checksum.update(values.value_lengths().to_numpy(zero_copy_only=False).tobytes())
                values = values.flatten()
            if pa.types.is_integer(values.type) and not values.null_count:
                checksum.update(values.to_numpy().tobytes())
            else:
                checksum.update(repr(values.to_pylist()).encode())
    return checksum.hexdigest()[:16]


def hardware(args: TrainingArguments) -> str:
    """The device of one process, by the name that its maker gave it."""
    if args.device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    name = args.device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(args.device)
    return f"{args.n_gpu} x {name}" if args.n_gpu > 1 else name


def cpu_name() -> str:
    information = Path("/proc/cpuinfo")  # on Linux `platform` knows the architecture only
    if information.is_file():
        name = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.M)
        if name:
            return name[1]
    return platform.processor() or platform.machine()


def without_folders(value: Any) -> Any:
    """An option with absolute paths cut to their last part: what is shared names no folder of this machine."""
    return _changed(value, _without_folder)


def _without_folder(part: Any) -> Any:
    if isinstance(part, str) and os.path.isabs(part):
        return Path(part).name
    return part


def without_secrets(options: dict) -> dict:
    """Options, and the options in them, without access tokens: nothing that is written may hold one."""
    kept = {name: value for name, value in options.items() if not SECRET.fullmatch(str(name))}
    return {name: without_secrets(value) if isinstance(value, dict) else value for name, value in kept.items()}


def printable(value: Any) -> Any:
    """A text, or the texts in dicts and lists, with control characters written as in Python: `\\n`, `\\x1b`."""
    if isinstance(value, dict):
        return {printable(name): printable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(part) for part in value]
    if isinstance(value, str):
        return CONTROL.sub(_escape, value)
    return value


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value, or the dicts and lists that it is made of, with every part that is neither of them changed."""
    if isinstance(value, dict):
        return {str(name): _changed(part, change) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(part, change) for part in value]
    return change(value)


def command(argv: Sequence[str], program: str = "simmim") -> str:
    """A command line as it may be shared: without access tokens and folders of this machine."""
    shared = [program]
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--") and SECRET.fullmatch(name[2:]):
            if not equals:
                next(words, None)
        elif equals:
            shared.append(f"{name}={without_folders(value)}")
        else:
            shared.append(without_folders(word))
    return shlex.join(shared)


def distinct_names(paths: list[str]) -> list[str]:
    """The last part of each path, with the folder that it lies in where two would be the same."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(Path(*Path(path).parts[-2:])) for path in paths]


def read_json(path: Path) -> dict:
    """
    Raises:
        ValueError: what is in the file is not a JSON object; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a JSON object.")
    return content


def write_json(path: Path, content: dict) -> None:
    """Writes all of a file or nothing. NaN and infinity, such as the loss of an arm that diverged, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    finite = _changed(content, _null_if_not_finite)
    partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _null_if_not_finite(part: Any) -> Any:
    if isinstance(part, float) and not math.isfinite(part):
        return None
    return part
