"""Checkpoints that are whole or absent: written aside, listed in a manifest, renamed; and which one to resume."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, logging

from .. import folders, records
from ..folders import NotSaved, make_durable
from ..model.configuration_simmim import current_options
from ..model.encoder import give_usual_mode

logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
RECORD = "run.json"
# What resuming reads, and what Trainer, FSDP, DeepSpeed (`latest`) and peft call the files or folders of it.
PARTS = {
    "weights": ("model*.safetensors", "adapter_model.safetensors", "*/adapter_model.safetensors", "pytorch_model*"),
    "optimizer": ("optimizer*",),
    "scheduler": ("scheduler.pt",),
    "random state": ("rng_state*.pth",),
}
DEEPSPEED = "latest"
LAST_IF_ANY = "last_if_any"  # for a command that is started again and again, such as by an elastic launcher
BEFORE_THE_FIRST = ("runs",)  # what a run leaves that was killed before its first checkpoint


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Meanwhile, and for all processes, the main one keeps other commands from a folder, as `folders.claimed`.

    Raises:
        ValueError: in all processes.
    """
    refusal = None
    with contextlib.ExitStack() as claim:
        if _is_main() and os.environ.get("RANK", "0") == "0":  # before there is a process group
            try:
                claim.enter_context(folders.claimed(folder))
            except ValueError as error:
                refusal = str(error)
        refusal = in_all_processes(refusal)
        if refusal:
            raise ValueError(refusal)
        yield


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Waits until all processes have saved their part.

    Raises:
        NotSaved: in all processes, where one of them could not.
    """
    failure = cause = None
    try:
        yield
    except Exception as error:
        failure = folders.failure_of(error, folder)
        cause = error
        if failure is None:
            raise
    failures = [failure]
    if dist.is_initialized():
        failures = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
    if any(failures):
        raise NotSaved(next(filter(None, failures))) from cause


def seal(folder: Path) -> None:
    """Makes the files of a folder durable, and writes the manifest with their sizes and checksums."""
    files = {}
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
        make_durable(path)
    records.write_json(folder / MANIFEST, {"files": files})
    make_durable(folder / MANIFEST)
    make_durable(folder)


def publish(folder: Path, target: Path) -> None:
    """Renames a sealed checkpoint from the folder `SAVING`, in place of an earlier one of that name."""
    if os.path.lexists(target):
        os.replace(target, folder.with_name("replaced"))
    os.replace(folder, target)
    make_durable(target.parent)
    shutil.rmtree(folder.parent)


def replace_model(source: Path, target: Path) -> None:
    """Moves the files of a saved model to where an earlier one may be.

    `config.json`, without which nothing loads, is taken away first and put there last: whenever the process ends, the
    target holds one whole model or none, and never the weights of one with the configuration of another.
    """
    give_usual_mode(source.rglob("*.safetensors"))
    files = sorted(filter(Path.is_file, source.rglob("*")), key=lambda path: path.name == CONFIG_NAME)
    for path in files:
        make_durable(path)
    (target / CONFIG_NAME).unlink(missing_ok=True)
    for path in target.glob("model*.safetensors*"):  # an earlier one may have had other shards
        path.unlink()
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        os.replace(path, place)
    make_durable(target)


def damage(folder: Path, checksums: bool = True) -> str | None:
    """What is wrong with a checkpoint; None for a whole one.

    Earlier versions wrote no manifest; theirs is whole if all parts are there, for the state was written last.
    """
    try:
        if (folder / MANIFEST).exists():
            for name, file in _read(folder / MANIFEST)["files"].items():
                path = folder / name
                if not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != file["bytes"]:
                    return f"{name} has {path.stat().st_size:,} bytes, not {file['bytes']:,}"
                if checksums and _checksum(path) != file["sha256"]:
                    return f"{name} has changed"
        _read(folder / TRAINER_STATE_NAME)["global_step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if type(error) is ValueError:
            return str(error)
        return f"its manifest or state is not valid ({error!r})"
    for part, names in PARTS.items():
        if not any(any(folder.glob(name)) for name in (*names, DEEPSPEED)):
            return f"the {part} is missing"
    return None


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint in a folder, the same in all processes. Says which newer ones it skips, and why."""
    return in_all_processes(_newest_whole(Path(output_dir)) if _is_main() else None)


def _newest_whole(folder: Path) -> str | None:
    newest = None
    skipped = []
    for path in reversed(checkpoints_in(folder)):
        reason = damage(path)
        if reason is None:
            newest = path
            break
        skipped.append(f"{path.name} ({reason})")
    if skipped:
        named = records.printable(", ".join(skipped))  # a manifest names files as it likes
        logger.warning(f"Skipped {named}: going on from {newest.name if newest else 'no checkpoint'}.")
    return str(newest) if newest else None


def to_resume(checkpoint: str | bool, output_dir: str | Path) -> str | None:
    """The folder that `resume_from_checkpoint` means: a checkpoint, or the newest whole one for `last` and True; for
    `last_if_any` that, or None where there is none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the one that is named is not whole.
    """
    if not isinstance(checkpoint, bool) and os.path.isdir(checkpoint):
        reason = in_all_processes(damage(Path(checkpoint)) if _is_main() else None)
        if reason:
            raise ValueError(
                f"--resume_from_checkpoint `{checkpoint}` is damaged: {reason}. `last` takes the newest whole one; "
                "--model_name_or_path would begin anew from its weights."
            )
        return checkpoint
    if str(checkpoint).lower() not in ("true", "last", LAST_IF_ANY):
        raise FileNotFoundError(
            f"--resume_from_checkpoint: there is no folder `{checkpoint}`. `last` finds the newest, `{LAST_IF_ANY}` "
            "begins anew where there is none."
        )
    found = last_checkpoint(output_dir)
    if found is None and checkpoint != LAST_IF_ANY:
        raise FileNotFoundError(f"--resume_from_checkpoint: no checkpoint in `{output_dir}` is whole.")
    return found


def changes(checkpoint: str, record: dict) -> list[str]:
    """What has another meaning in this run than in that of a checkpoint, as far as both versions recorded it.

    Raises:
        ValueError: the checkpoint is of a run with an option that is gone.
    """
    path = Path(checkpoint, RECORD)
    before = records.read_json(path)["meaning"] if path.is_file() else {}
    before = {part: current_options(options) for part, options in before.items()}
    found = []
    for part, options in json.loads(json.dumps(record["meaning"])).items():
        for name, value in options.items():
            old = before.get(part, {}).get(name, value)
            if old != value:
                found.append(records.printable(f"{part} {name} was {old} and is {value}"))
    return found


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, in the order of their steps."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    found = [path for path in found if re.fullmatch(r"\d+", path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def rotate(folder: Path, limit: int | None, keep: Iterable[Path]) -> None:
    """Removes whole checkpoints beyond a limit, the oldest first, and none of `keep`; damaged ones do not count."""
    whole = [path for path in checkpoints_in(folder) if damage(path, checksums=False) is None]
    surplus = len(whole) - limit if limit and limit > 0 else 0
    for path in [path for path in whole if path not in keep][: max(surplus, 0)]:
        with contextlib.suppress(OSError):
            remove_checkpoint(path)


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint; of one that is linked from elsewhere the link alone."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    else:
        shutil.rmtree(checkpoint)


def in_all_processes(value) -> Any:
    """The value of the main process; waits until all processes are here."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _read(path: Path) -> dict:
    try:
        return records.read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (OSError, ValueError):
        raise ValueError(f"{path.name} cannot be read") from None


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
