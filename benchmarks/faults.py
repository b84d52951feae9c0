"""Does a run of `simmim pretrain` that is killed, or whose newest checkpoint is damaged, come to the same weights?

Kills by SIGKILL, half of them at a random moment and half just before a random operation on files, of which most are
those of saving; damages the newest checkpoint of a finished run in every way of `DAMAGES`; and lets no file grow
beyond some kilobytes, as on a full disk. Each time the command is given again with `--resume_from_checkpoint last`;
the final weights must be those of the unbroken run, bit for bit.

python benchmarks/faults.py [--kills 8] [--seed 0] [--folder FOLDER]
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch

import simmim_hf.training.pretraining  # before the forks, which then begin at once  # noqa: F401
from simmim_hf.cli import main as simmim
from simmim_hf.training.checkpoints import MANIFEST, checkpoints_in

STEPS, SAVE_STEPS = 12, 2
NETWORK = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = "the old river runs under a small stone bridge while green birds sing above quiet water every morning".split()
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


# What may happen to a checkpoint, each a function of its folder.
DAMAGES = {
    "everything is gone": empty,
    "no weights": lambda folder: remove(folder, "model.safetensors"),
    "half of the weights": lambda folder: cut(folder / "model.safetensors"),
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "no optimizer": lambda folder: remove(folder, "optimizer.pt"),
    "half of the optimizer": lambda folder: cut(folder / "optimizer.pt"),
    "a bit of the optimizer": lambda folder: flip(folder / "optimizer.pt"),
    "an empty optimizer": lambda folder: (folder / "optimizer.pt").write_bytes(b""),
    "no scheduler": lambda folder: remove(folder, "scheduler.pt"),
    "no random state": lambda folder: remove(folder, "rng_state.pth"),
    "no tokenizer": lambda folder: remove(folder, "tokenizer.json"),
    "no configuration": lambda folder: remove(folder, "config.json"),
    "half of the state": lambda folder: cut(folder / "trainer_state.json"),
    "a longer state": lambda folder: (folder / "trainer_state.json").open("a").write("}"),
    "half of the manifest": lambda folder: cut(folder / MANIFEST),
    "another manifest": lambda folder: (folder / MANIFEST).write_text("[]"),
    # As earlier versions, which wrote no manifest, left it when they were killed.
    "neither manifest nor state": lambda folder: remove(folder, MANIFEST, "trainer_state.json"),
    "neither manifest nor optimizer": lambda folder: remove(folder, MANIFEST, "optimizer.pt"),
    "neither manifest nor scheduler": lambda folder: remove(folder, MANIFEST, "scheduler.pt"),
}


class Run:
    """A run of the command in a folder, each time in a process of its own."""

    def __init__(self, folder: Path, text: Path):
        self.folder, self.said = folder, Path(f"{folder}.txt")
        self.words = ["pretrain", "--use_cpu", "--train_file", str(text), "--output_dir", str(folder)]
        self.words += ["--text_config", json.dumps(NETWORK), "--vocab_size", "120", "--max_seq_length", "16"]
        self.words += ["--per_device_train_batch_size", "8", "--report_to", "none", "--disable_tqdm", "true"]
        self.words += ["--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--save_total_limit", "2"]

    def start(self, kill_after: float | None = None, kill_at: int | None = None, room: int | None = None) -> int:
        """Begins, or goes on from the newest checkpoint; the exit code."""
        words = self.words
        if self.folder.exists():
            words = [*words, *(["--resume_from_checkpoint", "last"] if checkpoints_in(self.folder) else [])]
            words = [*words, *([] if checkpoints_in(self.folder) else ["--overwrite_output_dir"])]
        child = os.fork()
        if child == 0:
            self._run(words, kill_after, kill_at, room)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _run(self, words: list[str], kill_after: float | None, kill_at: int | None, room: int | None) -> None:
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * room, 1000 * room))
        with open(self.said, "w") as said:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        if kill_after is not None:
            threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        numbers = itertools.count()

        def count(event, arguments):
            if event in FILE_EVENTS and str(self.folder) in str(arguments[0]) and next(numbers) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            status = simmim(words)
            Path(f"{self.folder}.count").write_text(str(next(numbers)))
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)

    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--damages", nargs="*", choices=DAMAGES, default=list(DAMAGES), help="default: all")
    parser.add_argument(
        "--rooms", nargs="*", type=int, default=[30, 60, 70, 100, 200], help="kilobytes; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="keep the runs here")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.stdout.reconfigure(line_buffering=True)  # nothing is left for a fork to print again
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        text = folder / "text.txt"
        text.write_text("".join(f"{' '.join(rng.choices(WORDS, k=rng.randint(3, 12)))} {i}\n" for i in range(200)))
        unbroken = Run(folder / "unbroken", text)
        begun = time.monotonic()
        if unbroken.start():
            sys.exit(f"The unbroken run failed: {unbroken.said.read_text()}")
        seconds, operations = time.monotonic() - begun, int(Path(f"{unbroken.folder}.count").read_text())
        print(f"the unbroken run: {seconds:.1f} s, {operations} operations on files")
        failures = []

        def finish(run: Run, what: str, said: str = "") -> None:
            (run.folder / "model.safetensors").unlink(missing_ok=True)
            status = run.start()
            words = run.said.read_text()
            good = status == 0 and run.weights() == unbroken.weights() and said in words
            print(f"{'as unbroken' if good else 'DIFFERENT'}: {what}")
            if not good:
                failures.append(what)
                print(f"exit code {status}\n{words}")

        for number in range(arguments.kills):
            run = Run(folder / f"killed-{number}", text)
            moment = {"kill_after": rng.uniform(0, seconds)} if number % 2 else {"kill_at": rng.randrange(operations)}
            status = run.start(**moment)
            left = [path.name for path in checkpoints_in(run.folder)]
            finish(run, f"{'killed' if status < 0 else 'ended'}, {moment}, which left {', '.join(left) or 'nothing'}")
        for number, kind in enumerate(arguments.damages):
            run = Run(folder / f"damaged-{number}", text)
            shutil.copytree(unbroken.folder, run.folder)
            newest = checkpoints_in(run.folder)[-1]
            DAMAGES[kind](newest)
            finish(run, f"{newest.name} damaged: {kind}", said=f"Skipped {newest.name}")
        for room in arguments.rooms:
            run = Run(folder / f"full-{room}", text)
            status = run.start(room=room)
            words = run.said.read_text()
            if status != 1 or "is full" not in words.splitlines()[-1] or "Traceback" in words:
                failures.append(f"a disk of {room} kB")
                print(f"exit code {status}\n{words}")
            finish(run, f"no file had more room than {room} kB: {words.splitlines()[-1]}")
    sys.exit(f"{len(failures)} came out differently" if failures else 0)


if __name__ == "__main__":
    main()
