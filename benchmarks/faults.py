"""Does a run of `simmim pretrain` that is killed, damaged or out of disk come to the weights of an unbroken one?

- SIGKILL: half of them at a random moment, half before a random operation on files, of which most are those of saving.
- SIGTERM: up to 50 ms after a random operation of saving; it must end with exit code 75.
- Damage to the newest checkpoint of a finished run in every way of `DAMAGES`; it must be skipped in one line.
- A full disk from an operation of saving on: no file grows beyond `ROOM` bytes. The run must end with exit code 1 and
  a line that says so, and the newest checkpoint that was whole must still be.

Each time the command is given again with `--resume_from_checkpoint last`, and the final weights must be those of the
unbroken run, bit for bit. The plot, which takes most of the time of such a run, is left out.

python benchmarks/faults.py [--kills 8] [--terms 4] [--full 5] [--seed 0] [--folder FOLDER] [--output FILE.json]
"""

import argparse
import itertools
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from children import prepare, run_command

from simmim_hf import records
from simmim_hf.folders import SAVING
from simmim_hf.training import card
from simmim_hf.training.checkpoints import MANIFEST, checkpoints_in, damage

STEPS, SAVE_STEPS = 8, 2
NETWORK = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = "the old river runs under a small stone bridge while green birds sing above quiet water every morning".split()
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
ROOM = 20_000  # less than the weights


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def clear(path: Path) -> None:
    """As a machine leaves a file whose size but not whose content had come to the disk."""
    path.write_bytes(bytes(path.stat().st_size))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FILES = {
    "weights": "model.safetensors",
    "optimizer": "optimizer.pt",
    "scheduler": "scheduler.pt",
    "random state": "rng_state.pth",
    "state": "trainer_state.json",
    "configuration": "config.json",
    "tokenizer": "tokenizer.json",
}
WAYS = {"no {}": os.unlink, "half of the {}": cut, "a bit of the {}": flip, "zeros for the {}": clear}
WAYS |= {"an empty {}": lambda path: path.write_bytes(b"")}
# What may happen to a checkpoint, each a function of its folder.
DAMAGES = {
    way.format(what): lambda folder, damage=damage, name=name: damage(folder / name)
    for (way, damage), (what, name) in itertools.product(WAYS.items(), FILES.items())
}
DAMAGES |= {
    "everything is gone": empty,
    "a longer state": lambda folder: (folder / "trainer_state.json").open("a").write("}"),
    "half of the manifest": lambda folder: cut(folder / MANIFEST),
    "zeros for the manifest": lambda folder: clear(folder / MANIFEST),
    "another manifest": lambda folder: (folder / MANIFEST).write_text("[]"),
    # As earlier versions, which wrote no manifest, left it when they were killed.
    "neither manifest nor state": lambda folder: remove(folder, MANIFEST, "trainer_state.json"),
    "neither manifest nor optimizer": lambda folder: remove(folder, MANIFEST, "optimizer.pt"),
    "neither manifest nor scheduler": lambda folder: remove(folder, MANIFEST, "scheduler.pt"),
}


def whole(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder) if damage(path) is None]


def words_of(folder: Path, text: Path) -> list[str]:
    words = ["pretrain", "--use_cpu", "--train_file", str(text), "--output_dir", str(folder)]
    words += ["--text_config", json.dumps(NETWORK), "--vocab_size", "120", "--max_seq_length", "16"]
    words += ["--per_device_train_batch_size", "8", "--report_to", "none", "--disable_tqdm", "true"]
    return [*words, "--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--save_total_limit", "2"]


class Run:
    """A run of the command in a folder, each time in a process of its own."""

    def __init__(self, folder: Path, text: Path):
        self.folder, self.text = folder, text

    def start(self, fault: Callable[[], None] | None = None, at: int | None = None) -> int | None:
        """Begins, or goes on from the newest checkpoint; the exit code.

        Args:
            fault: happens in the process of the run before the operation `at` on files, or else at the beginning
        """
        words, numbers = words_of(self.folder, self.text), itertools.count()
        if self.folder.exists():
            found = checkpoints_in(self.folder)
            words += ["--resume_from_checkpoint", "last"] if found else ["--overwrite_output_dir"]

        def begin() -> None:
            card.plot_training = lambda *arguments: None
            listed = os.open(f"{self.folder}.operations", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)

            def watch(event: str, arguments: tuple) -> None:
                if event in FILE_EVENTS and str(self.folder) in str(arguments[0]):
                    os.write(listed, f"{event} {arguments[0]}\n".encode())
                    if next(numbers) == at:
                        fault()

            sys.addaudithook(watch)
            if at is None and fault:
                fault()

        return run_command(words, self.folder, begin=begin)

    @property
    def said(self) -> str:
        return Path(f"{self.folder}.err").read_text()

    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


class Faults:
    """Runs with faults, and what came of them.

    Args:
        folder: for the runs
    """

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.text = folder / "text.txt"
        self.text.write_text(
            "".join(f"{' '.join(rng.choices(WORDS, k=rng.randint(3, 12)))} {i}\n" for i in range(200))
        )
        prepare(words_of(folder / "prepared", self.text))
        self.unbroken, self.results = Run(folder / "unbroken", self.text), []
        begun = time.monotonic()
        if self.unbroken.start():
            sys.exit(f"The unbroken run failed: {self.unbroken.said}")
        self.seconds = time.monotonic() - begun
        operations = Path(f"{self.unbroken.folder}.operations").read_text().splitlines()
        self.operations = len(operations)
        self.saving = [number for number, operation in enumerate(operations) if f"{SAVING}/checkpoint" in operation]
        print(f"the unbroken run: {self.seconds:.1f} s, {self.operations} operations on files")

    def kill(self, number: int) -> None:
        run = Run(self.folder / f"killed-{number}", self.text)
        if number % 2:
            after = self.rng.uniform(0, self.seconds)
            code, when = run.start(lambda: later(after, signal.SIGKILL)), f"after {after:.2f} s"
        else:
            at = self.rng.randrange(self.operations)
            code, when = run.start(lambda: os.kill(os.getpid(), signal.SIGKILL), at), f"at operation {at}"
        self._finish(
            "SIGKILL", run, code, f"{when}, which left {whole(run.folder)}", good=code in (-signal.SIGKILL, 0)
        )

    def terminate(self, number: int) -> None:
        run, at, delay = (
            Run(self.folder / f"ended-{number}", self.text),
            self.rng.choice(self.saving),
            self.rng.uniform(0, 0.05),
        )
        code = run.start(lambda: later(delay, signal.SIGTERM), at)
        # After the last step there is nothing to save: the run ends as if there were no signal.
        good = code == 0 or (code == 75 and " ended with a checkpoint of step " in run.said.splitlines()[-1])
        self._finish("SIGTERM", run, code, f"{delay:.3f} s after operation {at}: {run.said.splitlines()[-1]}", good)

    def damage(self, kind: str) -> None:
        run = Run(self.folder / kind.replace(" ", "-"), self.text)
        shutil.copytree(self.unbroken.folder, run.folder)
        newest = checkpoints_in(run.folder)[-1]
        DAMAGES[kind](newest)
        self._finish("damage", run, None, f"{newest.name}: {kind}", told=f"Skipped {newest.name} (")

    def fill(self, at: int) -> None:
        run = Run(self.folder / f"full-{at}", self.text)
        before = Path(f"{run.folder}.whole")

        def fault() -> None:
            before.write_text("\n".join(whole(run.folder)))
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

        code = run.start(fault, at)
        kept = set(before.read_text().split()[-1:]) <= set(whole(run.folder)) and len(whole(run.folder)) == len(
            checkpoints_in(run.folder)
        )
        good = code == 1 and " is full" in run.said.splitlines()[-1] and "Traceback" not in run.said and kept
        self._finish("full disk", run, code, f"from operation {at} on: {run.said.splitlines()[-1]}", good)

    def _finish(self, fault: str, run: Run, code: int | None, what: str, good: bool = True, told: str = "") -> None:
        (run.folder / "model.safetensors").unlink(missing_ok=True)
        before, status = run.said if code is not None else "", run.start()
        equal = status == 0 and run.weights() == self.unbroken.weights()
        good = good and equal and sum(told in line for line in run.said.splitlines()) >= bool(told)
        print(f"{'as unbroken' if good else 'DIFFERENT'}: {fault} {what}")
        if not good:
            print(f"exit codes {code} and {status}\n{before}\n{run.said}")
        what = what.replace(str(self.folder), "").replace(sys.prefix, "")  # folders of this machine
        self.results.append(
            {"fault": fault, "what": what, "exit_code": code, "as_unbroken": equal, "as_it_should": good}
        )


def later(seconds: float, number: int) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--terms", type=int, default=4)
    parser.add_argument("--damages", nargs="*", choices=DAMAGES, default=list(DAMAGES), help="default: all")
    parser.add_argument("--full", type=int, default=5, help="moments, from the first to the last of saving")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="keep the runs here")
    parser.add_argument("--output", default=None, help="write what came out here, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        faults = Faults(folder, random.Random(arguments.seed))
        for number in range(arguments.kills):
            faults.kill(number)
        for number in range(arguments.terms):
            faults.terminate(number)
        for kind in arguments.damages:
            faults.damage(kind)
        for number in range(arguments.full):
            faults.fill(faults.saving[number * (len(faults.saving) - 1) // max(arguments.full - 1, 1)])
    results = faults.results
    counts = {
        kind: [row["as_it_should"] for row in results if row["fault"] == kind]
        for kind in dict.fromkeys(row["fault"] for row in results)
    }
    for kind, good in counts.items():
        print(f"{kind:10} {sum(good):3} of {len(good):3} as they should be")
    if arguments.output:
        summary = {"command": shlex.join(["python", "benchmarks/faults.py", *sys.argv[1:]]), "seed": arguments.seed}
        summary |= {"versions": records.versions(), "revision": records.git_revision(), "results": results}
        records.write_json(Path(arguments.output), summary)
    sys.exit(0 if all(row["as_it_should"] for row in results) else 1)


if __name__ == "__main__":
    main()
