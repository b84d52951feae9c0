"""What pre-training is worth downstream: the scripts of `examples/` from random weights and from checkpoints, by seed.

python benchmarks/downstream.py --data FOLDER --coherence_model all-MiniLM-L6-v2 --output_dir downstream \
    --weights "MLM only=comparison/runs/mlm/seed-{seed}" "SimMIM=comparison/runs/simmim/seed-{seed}"

`FOLDER` holds mr, subj, trec, stsb_en, books_en and enwiki. A checkpoint is fine-tuned with the seed that it was
pre-trained with; random weights have its shape. Runs that are finished are not repeated. results.md has the means over
the seeds with half the width of their 95 % intervals and, where a paired t-test over the seeds tells them apart from
the first checkpoint at 5 %, a star; beside what is written, how the books themselves go on (real text); and the
command of each task. results.json has every figure.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from simmim_hf import records
from simmim_hf.comparison.statistics import differ, estimate

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RANDOM, REAL = "random", "real text"

OPTIONS = "--per_device_train_batch_size 32 --save_strategy no --report_to none --disable_tqdm true"
TRAIN = f"--learning_rate 3e-4 {OPTIONS}"
TREC = f"run_classification.py --train_file trec/train.jsonl.gz --test_file trec/test.jsonl.gz {TRAIN}"
SUBJ = f"run_classification.py --train_file subj/all.jsonl.gz {TRAIN}"
MR = f"run_classification.py --train_file mr/all.jsonl.gz {TRAIN}"
FEW, ALL = "--max_train_samples 100 --num_train_epochs 20", "--num_train_epochs 3"
STSB = (
    "run_sentence_similarity.py --train_file stsb_en/train.jsonl.gz --validation_file stsb_en/dev.jsonl.gz "
    f"--test_file stsb_en/test.jsonl.gz {TRAIN}"
)
GENERATION = (
    "run_generation.py --train_file books_en/train.txt.xz --test_file books_en/heldout.txt.xz "
    "--max_train_samples 12800 --num_train_epochs 1 --learning_rate 1e-3 "
    f"--num_prompts 200 --max_new_tokens 40 {OPTIONS}"
)
INFILLING = "run_infilling.py --evaluate enwiki/heldout.txt.xz --gaps 3 --max_samples 2000"

# Each task: its command, run in the folder of the data, and its figures: title -> where it is in results.json, times.
ACCURACY = ("test", "accuracy")
TASKS = {
    "trec-100": (f"{TREC} {FEW}", {"TREC, 100 rows, accuracy": (ACCURACY, 100)}),
    "trec": (f"{TREC} {ALL}", {"TREC, 5,452 rows, accuracy": (ACCURACY, 100)}),
    "subj-100": (f"{SUBJ} {FEW}", {"SUBJ, 100 rows, accuracy": (ACCURACY, 100)}),
    "subj": (f"{SUBJ} {ALL}", {"SUBJ, 9,000 rows, accuracy": (ACCURACY, 100)}),
    "mr-100": (f"{MR} {FEW}", {"MR, 100 rows, accuracy": (ACCURACY, 100)}),
    "mr": (f"{MR} {ALL}", {"MR, 9,595 rows, accuracy": (ACCURACY, 100)}),
    "stsb-100": (f"{STSB} {FEW}", {"STS-B test, 100 pairs, Spearman x 100": (("spearman_after", "test"), 1)}),
    "stsb": (
        f"{STSB} {ALL}",
        {
            "STS-B test, not fine-tuned, Spearman x 100": (("spearman_before", "test"), 1),
            "STS-B test, 5,749 pairs, Spearman x 100": (("spearman_after", "test"), 1),
        },
    ),
    "generation": (
        GENERATION,
        {
            "causal perplexity, 400 steps": (("test", "perplexity"), 1),
            **{f"distinct-{n} of what it writes, x 100": (("written", f"distinct_{n}"), 100) for n in (1, 2, 3)},
            "words of a continuation": (("written", "words"), 1),
            "cosine of consecutive sentences, x 100": (("written", "coherence"), 100),
        },
    ),
    "infilling": (
        INFILLING,
        {
            "3 gaps, one after the other, exact": (("held_out", "accuracy_iterative"), 100),
            "3 gaps, all at once, exact": (("held_out", "accuracy_at_once"), 100),
        },
    ),
}


def command(task: str, arguments) -> list[str]:
    """The command of a task but for what differs from run to run: the weights, the seed and the output folder."""
    words = shlex.split(TASKS[task][0])
    if task == "generation" and arguments.coherence_model:
        words += ["--coherence_model", arguments.coherence_model]
    if arguments.max_seq_length:
        words += ["--max_seq_length", str(arguments.max_seq_length)]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True, help="NAME=FOLDER, with {seed} in the folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--data", required=True, help="the folder of the data sets")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--coherence_model", default=None, help="a model of sentence vectors, for generation")
    parser.add_argument("--max_seq_length", type=int, default=None, help="default: that of the scripts")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--output_dir", required=True)
    arguments = parser.parse_args()

    folders = {name: str(Path(folder).absolute()) for name, folder in (w.split("=", 1) for w in arguments.weights)}
    folders = {RANDOM: next(iter(folders.values())), **folders}
    output = Path(arguments.output_dir).absolute()
    if arguments.coherence_model and Path(arguments.coherence_model).is_dir():
        arguments.coherence_model = str(Path(arguments.coherence_model).absolute())
    jobs = []
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for name, folder in folders.items():
                where = output / task / name.replace(" ", "-") / str(seed)
                if not (task == "infilling" and name == RANDOM):
                    jobs.append((task, name, seed, where, folder.format(seed=seed)))

    def run(job) -> None:
        task, name, seed, where, folder = job
        if (where / "results.json").is_file():
            return
        where.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with open(where / "log.txt", "w", encoding="utf-8") as log:
            script, *words = command(task, arguments)
            words += ["--model_name_or_path", folder, "--output_dir", str(where), "--seed", str(seed)]
            words += ["--random_weights"] if name == RANDOM else []
            words = [sys.executable, str(EXAMPLES / script), *words]
            subprocess.run(words, cwd=arguments.data, env=environment, stdout=log, stderr=log, check=True)
        for weights in where.glob("*.safetensors"):
            weights.unlink()

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(tqdm(pool.map(run, jobs), total=len(jobs)))
    found = {job[:3]: json.loads((job[3] / "results.json").read_text(encoding="utf-8")) for job in jobs}
    report(arguments, list(folders), found, output)


def report(arguments, names: list[str], found: dict, output: Path) -> None:
    columns = [*names, REAL]
    rows = [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    figures = {}
    for task in arguments.tasks:
        for title, (path, times) in TASKS[task][1].items():
            by_name = {name: {} for name in columns}
            for (of_task, name, seed), results in found.items():
                if of_task == task:
                    by_name[name][seed] = _at(results, path, times)
                    if path[0] == "written":  # how the books go on after the same prompts
                        by_name[REAL][seed] = _at(results, ("real", path[1]), times)
            figures[title] = by_name
            known = {name: estimate(by_seed) for name, by_seed in by_name.items()}
            first = known[names[1]]
            cells = []
            for name in columns:
                cell = "" if known[name] is None else f"{known[name].mean:,.1f}"
                if name != REAL and known[name] and known[name].half_width is not None:
                    cell += f" ± {known[name].half_width:.1f}"
                    cell += " *" if name != names[1] and differ(known[name], first) else ""
                cells.append(cell)
            rows.append(f"| {title} | {' | '.join(cells)} |")
    commands = {task: shlex.join(records.without_folders(command(task, arguments))) for task in arguments.tasks}
    results = {
        "command": shlex.join(["python", *records.without_folders(sys.argv)]),
        "versions": records.versions(),
        "seeds": arguments.seeds,
        "commands": commands,
        "figures": figures,
    }
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    rows += ["", f"Seeds {', '.join(map(str, arguments.seeds))}; {versions}."]
    rows += ["", "```bash", *(line for task in commands for line in (f"# {task}", commands[task])), "```"]
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (output / "results.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


def _at(results: dict, path: tuple[str, ...], times: float) -> float | None:
    for key in path:
        results = results[key]
    return None if results is None else times * results


if __name__ == "__main__":
    main()
