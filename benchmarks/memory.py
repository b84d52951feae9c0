"""Does the memory of a run of `simmim pretrain` stay flat? Batches without padding have other shapes at every step.

Trains on the documentation inside Python, torch and transformers, saves checkpoints, and reads the resident memory of
the process every few steps. One reading depends on the sizes of the last batches; what counts is the mean of a window
of steps, against that of the first window after the warm-up. Every option of `simmim pretrain` can be given.

python benchmarks/memory.py [--steps 3000] [--output results/memory] [options of simmim pretrain]
"""

import argparse
import math
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import psutil
from matplotlib.figure import Figure
from transformers import TrainerCallback

from simmim_hf import records
from simmim_hf.options import parse
from simmim_hf.pretraining.options import pretraining_parser
from simmim_hf.pretraining.pretrain import Pretraining

EVERY = 25  # steps from one reading to the next
WINDOW = 200  # steps; the first so many are the warm-up


class Memory(TrainerCallback):
    """Notes the resident bytes of this process by step."""

    def __init__(self):
        self.bytes: dict[int, int] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % EVERY == 0:
            self.bytes[state.global_step] = psutil.Process().memory_info().rss


def means(resident: dict[int, int]) -> dict[int, float]:
    """The mean reading of each window after the warm-up, by its last step."""
    windows: dict[int, list[int]] = {}
    for step, size in resident.items():
        windows.setdefault(math.ceil(step / WINDOW) * WINDOW, []).append(size)
    return {last: statistics.mean(sizes) for last, sizes in windows.items() if last > WINDOW}


def plot(resident: dict[int, int], path: str) -> None:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.add_subplot(xlabel="step", ylabel="resident memory, MB", title="A run of ragged batches")
    panel.plot(resident.keys(), [size / 1e6 for size in resident.values()], ".", label="a reading")
    of_windows = {step: size / 1e6 for step, size in means(resident).items()}
    panel.plot([step - WINDOW / 2 for step in of_windows], of_windows.values(), label=f"mean of {WINDOW} steps")
    first = next(iter(of_windows.values()))
    panel.axhspan(0.95 * first, 1.05 * first, alpha=0.15, label="within 5 % of the first mean")
    panel.set_ylim(bottom=0)
    panel.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", default=None, help="write NAME.json and NAME.png")
    arguments, options = parser.parse_known_args()
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--max_steps", str(arguments.steps), "--report_to", "none"]
        run = Pretraining(*parse(pretraining_parser(), [*words, "--output_dir", f"{folder}/run", *options]))
        run.trainer.add_callback(memory)
        run.trainer.train()
        facts = {"hardware": records.hardware(run.args), "versions": records.versions()}
    first, *later = means(memory.bytes).values()
    readings = [size for step, size in memory.bytes.items() if step > WINDOW]
    sizes = {"highest_mean": max(later), "last_mean": later[-1], "highest_reading": max(readings)}
    result = {
        "command": shlex.join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        **facts,
        "revision": records.git_revision(),
        "first_mean": round(first),
        "growth": {name: round(size / first - 1, 4) for name, size in sizes.items()},
        "resident_bytes": memory.bytes,
    }
    print(f"first mean {result['first_mean']:,} bytes, growth {result['growth']}")
    if arguments.output:
        records.write_json(Path(f"{arguments.output}.json"), result)
        plot(memory.bytes, f"{arguments.output}.png")


if __name__ == "__main__":
    main()
