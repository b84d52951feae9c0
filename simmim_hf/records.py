"""What a figure depends on, and JSON files that are whole or absent."""

import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments


def versions() -> dict[str, str]:
    """The versions that a figure depends on."""
    names = ("simmim_hf", "torch", "transformers", "datasets", "tokenizers", "accelerate")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def hardware(args: TrainingArguments) -> str:
    """The device of one process, by the name that its maker gave it."""
    if args.device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    return f"{args.n_gpu} x {name}" if args.n_gpu > 1 else name


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")  # on Linux `platform` knows the architecture only
    names = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.M) if information.is_file() else []
    return (names or [platform.processor() or platform.machine()])[0]


def without_folders(value):
    """An option with absolute paths cut to their last part: what is shared names no folder of this machine."""
    if isinstance(value, dict):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def command(argv: Sequence[str]) -> str:
    """The command line of `simmim` as it may be shared: without access tokens and folders of this machine."""
    shared, words = ["simmim"], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--\w+[_-]token", name):
            if not equals:
                next(words, None)
        else:
            shared.append(f"{name}={without_folders(value)}" if equals else without_folders(word))
    return shlex.join(shared)


def write_json(path: Path, content: dict) -> None:
    """Writes all of a file or nothing; what is no number, such as the loss of an arm that diverged, becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _finite(value):
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
