"""What several processes on one CPU gain over one process with all threads and the same batch, and what limits them.

    python benchmarks/processes.py --text corpus.txt --output benchmarks/results/processes-2x128
    python benchmarks/processes.py --text corpus.txt --layers 6 --hidden_size 384

A step is forward and backward. The contenders take turns of two steps in one launch, of which the second counts:

- one process reads the whole batch with all threads, while the others wait;
- every process reads its part with its part of the threads;
- the same without the exchange of gradients;
- the same without that of vectors and counts either: each process contrasts and averages for itself.

A step takes as long as its slowest process; how long the fastest takes tells what is spent on waiting for others.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from train_step import backbone, make_batches, parser_of_steps

from simmim_hf import SimMIMConfig, SimMIMForPreTraining
from simmim_hf.data import corpora, tokenization

CONFIG = Path(__file__).parents[1] / "examples" / "accelerate_configs" / "ddp_cpu.yaml"


def launch(processes: int) -> int:
    """Starts this script again in so many processes; the exit code."""
    words = ["accelerate.commands.launch", "--config_file", CONFIG, "--num_processes", processes, *sys.argv]
    return subprocess.run([sys.executable, "-m", *map(str, words)]).returncode


def part_of(batch: dict[str, torch.Tensor], rank: int, processes: int) -> dict[str, torch.Tensor]:
    """The rows of a process, without the columns that are padding in all of them."""
    rows = {name: x.tensor_split(processes)[rank] for name, x in batch.items()}
    length = int(rows["attention_mask"].sum(1).max())
    return {name: x[:, :length] for name, x in rows.items()}


def seconds_of(model, batch: dict[str, torch.Tensor], threads: int, *contexts) -> float:
    """The second of two steps; the first finds the memory for both."""
    torch.set_num_threads(threads)
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            start = time.perf_counter()
            model(**batch).loss.backward()
            seconds = time.perf_counter() - start
        model.zero_grad()
    return seconds


def measure(model: SimMIMForPreTraining, batches: list[dict], rounds: int, threads: int) -> dict[str, list]:
    """For each contender and round the seconds of every process that took part."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    together, each = DistributedDataParallel(model), max(1, threads // processes)
    by_itself = lambda: patch("simmim_hf.model.losses.is_distributed", return_value=False)  # noqa: E731
    contenders = {
        "1 process": lambda whole, own: seconds_of(model, whole, threads, by_itself) if rank == 0 else None,
        f"{processes} processes": lambda whole, own: seconds_of(together, own, each),
        "without exchange of gradients": lambda whole, own: seconds_of(together, own, each, together.no_sync),
        "without any exchange": lambda whole, own: seconds_of(together, own, each, together.no_sync, by_itself),
    }
    found = {name: [] for name in contenders}
    for index in range(rounds):
        batch = batches[index % len(batches)]
        for name, step in contenders.items():
            dist.barrier()
            seconds = [None] * processes
            dist.all_gather_object(seconds, step(batch, part_of(batch, rank, processes)))
            found[name].append([taken for taken in seconds if taken is not None])
    return found


def main() -> None:
    parser = parser_of_steps(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all processes together")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit(launch(arguments.processes))
    arguments.pad_to_max_length = False

    dist.init_process_group("gloo")
    if arguments.tokenizer:
        tokenizer = tokenization.load_tokenizer(arguments.tokenizer)
    else:  # the same text gives the same one in every process
        texts = corpora.load_text(arguments.text)["text"]
        tokenizer = tokenization.train_tokenizer(texts, show_progress=False)
    torch.manual_seed(0)  # the same corruption and weights in all
    batches = make_batches(arguments, tokenizer, torch.device("cpu"))
    model = SimMIMForPreTraining(SimMIMConfig(text_config=backbone(arguments, len(tokenizer)))).train()
    seconds = measure(model, batches, arguments.rounds, arguments.threads)
    if dist.get_rank() == 0:
        report(arguments, model, batches, seconds)
    dist.destroy_process_group()


def report(arguments, model: SimMIMForPreTraining, batches: list[dict], seconds: dict[str, list]) -> None:
    tokens = statistics.mean(int(batch["attention_mask"].sum()) for batch in batches)
    slowest, fastest = (
        {name: statistics.median(map(of, rounds)) for name, rounds in seconds.items()} for of in (max, min)
    )
    rows = ["| contender | seconds a step | real tokens/s | ratio | its fastest process |", "| --- " * 5 + "|"]
    for name, taken in slowest.items():
        figures = f"{taken:.3f} | {tokens / taken:,.0f} | {taken / slowest['1 process']:.2f} | {fastest[name]:.3f}"
        rows.append(f"| {name} | {figures} |")
    table = "\n".join(rows)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("torch", "transformers", "simmim_hf")},
        "processes": arguments.processes,
        "threads": arguments.threads,
        "batch_size": arguments.batch_size,
        "parameters": model.num_parameters(),
        "median_seconds": slowest,
        "seconds": seconds,
    }
    print(table)
    if arguments.output:
        Path(arguments.output + ".json").write_text(json.dumps(result, indent=2) + "\n")
        Path(arguments.output + ".md").write_text(
            f"`{result['command']}` on a CPU, {arguments.threads} threads\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
