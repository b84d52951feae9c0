"""What `simmim pretrain` gains from several processes on one machine, started by torchrun as the documentation says.

    python benchmarks/processes.py --text corpus.txt --output benchmarks/results/processes-2x128

The contenders read the same batches and take turns: one process with all threads, and several that share them. Tokens
a second are those of the log of training, without its first part; the rest of the time is what a user waits besides.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simmim_hf import records


def run(arguments: argparse.Namespace, processes: int, folder: Path) -> dict[str, float]:
    """One start of the command: its seconds in all, and the tokens a second of its training."""
    shutil.rmtree(folder, ignore_errors=True)
    threads = max(1, arguments.threads // processes)
    backbone = {
        "model_type": "modernbert",
        "num_hidden_layers": arguments.layers,
        "hidden_size": arguments.hidden_size,
    }
    backbone |= {"num_attention_heads": arguments.hidden_size // 64, "intermediate_size": 4 * arguments.hidden_size}
    words = ["--text_config", json.dumps(backbone), "--vocab_size", 8192, "--use_cpu", "--report_to", "none"]
    words += ["--per_device_train_batch_size", arguments.batch_size // processes, "--max_steps", arguments.steps]
    words += ["--logging_steps", arguments.steps // 4, "--save_strategy", "no", "--output_dir", folder]
    words += ["--train_file", arguments.text, "--objective", arguments.objective]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command = [*launcher, "-m", "simmim_hf.cli", "pretrain", *words]
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - started
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    rates = [entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry]
    return {"seconds": seconds, "tokens_per_second": statistics.mean(rates[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--objective", default="snippets")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all processes together")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64, help="of all processes together")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="where .json and .md go")
    arguments = parser.parse_args()
    found: dict[int, list[dict]] = {1: [], arguments.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for processes, rounds in found.items():
                rounds.append(run(arguments, processes, Path(folder, "run")))
    rows = ["| processes | threads each | tokens/s | ratio | seconds in all |", "| --- " * 5 + "|"]
    medians = {
        count: statistics.median(entry["tokens_per_second"] for entry in rounds) for count, rounds in found.items()
    }
    for count, rounds in found.items():
        seconds = statistics.median(entry["seconds"] for entry in rounds)
        ratio = medians[count] / medians[1]
        threads = max(1, arguments.threads // count)
        rows.append(f"| {count} | {threads} | {medians[count]:,.0f} | {ratio:.2f} | {seconds:.1f} |")
    table = "\n".join(rows)
    print(table)
    if arguments.output:
        command = records.without_folders([Path(word).name if "/" in word else word for word in sys.argv[1:]])
        result = {
            "command": " ".join(["python benchmarks/processes.py", *command]),
            "versions": records.versions(),
            "processor": records.cpu_name(),
            "options": {name: value for name, value in vars(arguments).items() if name not in ("text", "output")},
            "rounds": found,
        }
        Path(arguments.output + ".json").write_text(json.dumps(result, indent=2) + "\n")
        title = f"`{result['command']}` on {result['processor']}, medians of {arguments.rounds}"
        Path(arguments.output + ".md").write_text(f"{title}\n\n{table}\n")


if __name__ == "__main__":
    main()
