"""What adapting an encoder to a kind of text is worth, and what is forgotten: `simmim adapt` by objective, and TSDAE.

python benchmarks/adapt.py --model all-MiniLM-L6-v2 --output_dir adapted --domains docstrings \
    wiki=enwiki/train.txt.xz,enwiki/heldout.txt.xz --similarity stsb_en/test.jsonl.gz

A domain is `docstrings` (the built-in text: a docstring's body is to be found by its summary), or NAME=TEXT,HELD_OUT:
a file of text to adapt to, and a held-out one, in which the first half of a document is to find its second; or in
place of the latter a table of a task of `simmim evaluate`, such as of `query` and `document`. All arms of a domain and
seed use as many operations as `--steps` of the first arm, the warm-up of its head included; those of TSDAE, which is
that of sentence-transformers and runs where it can, are counted in the same way. The same command goes on where it
ended. results.json has every value, results.md the means over the seeds with half the width of their 95 % intervals,
and a star where a paired t-test over the seeds tells an arm from the model before at 5 %; results.png shows each
domain's own task.
"""

import argparse
import contextlib
import gc
import itertools
import json
import math
import random
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from transformers.utils import logging

from simmim_hf import records
from simmim_hf.comparison.budget import epochs, training_flops
from simmim_hf.comparison.statistics import differ, estimate
from simmim_hf.data.corpora import load_text
from simmim_hf.data.tokenization import load_tokenizer
from simmim_hf.evaluation.encoding import load_encoder
from simmim_hf.evaluation.metrics import tfidf_reciprocal_rank
from simmim_hf.evaluation.run_task import EvalSettings, measure
from simmim_hf.evaluation.tasks import Task, half_pairs, load_task
from simmim_hf.metric_catalogue import METRICS
from simmim_hf.options import build, read_settings, reason
from simmim_hf.pretraining.adapt import ADAPTATION, Adaptation

logger = logging.get_logger(__name__)

BEFORE, TSDAE = "before", "tsdae"
ARMS = {name: {"objective": name} for name in ("spans", "snippets", "mlm")}
ARMS["spans, cut anywhere"] = {"objective": "spans", "first_sentence_probability": 0.0}
ARMS["simcse"] = {"objective": "simcse", "dropout": 0.1}  # which some families have not
METRIC_OF_KIND = {"retrieval": "mrr@10", "similarity": "spearman", "transfer": "accuracy"}  # what stands in the table
DELETED = 0.6  # of the words, by TSDAE (Wang et al. 2021)


class DoesNotRun(Exception):
    """TSDAE of sentence-transformers does not run on every model."""

    @classmethod
    @contextlib.contextmanager
    def instead(cls):
        """Takes the place of an error of sentence-transformers or transformers."""
        try:
            yield
        except (ValueError, RuntimeError, AttributeError, AssertionError) as error:
            raise cls(reason(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model to adapt")
    parser.add_argument("--domains", nargs="+", default=["docstrings"], help="docstrings, or NAME=TEXT,HELD_OUT")
    parser.add_argument("--similarity", nargs="*", default=[], help="tasks that tell what was forgotten")
    parser.add_argument("--arms", default=None, help="a YAML file of arms: a name, and options of `simmim adapt`")
    parser.add_argument("--without_tsdae", action="store_true")
    parser.add_argument("--steps", type=int, default=200, help="of the first arm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output_dir", required=True)
    arguments = parser.parse_args()

    arms = read_settings(arguments.arms) if arguments.arms else ARMS
    output = Path(arguments.output_dir)
    domains = {each.partition("=")[0]: each.partition("=")[2] for each in arguments.domains}
    for domain, files in domains.items():
        for seed in arguments.seeds:
            folder = output / domain / str(seed)
            tasks = tasks_of(domain, files, arguments, seed)
            finish(folder / BEFORE, arguments, tasks, seed, unchanged(arguments.model))
            budget = None
            for arm, options in arms.items():
                options = options_of(arguments, files, seed, folder / arm, options)
                facts = finish(folder / arm, arguments, tasks, seed, adapter(options, arguments.steps, budget))
                budget = budget or facts["flops"]
            if not arguments.without_tsdae:
                options = options_of(arguments, files, seed, folder / TSDAE, {"objective": "mlm"})  # single passages
                finish(folder / TSDAE, arguments, tasks, seed, tsdae(options, budget))
            report(arguments, list(domains), arms, output)


def tasks_of(domain: str, files: str, arguments, seed: int) -> dict[str, Task]:
    """What a model of a domain is measured on, the domain's own task first."""
    tasks = {name: load_task(name, seed) for name in arguments.similarity}
    held_out = files.partition(",")[2]
    if not files:
        return {domain: load_task("docstrings", seed), **tasks}
    if not held_out.rpartition(".")[2].startswith(("jsonl", "csv", "tsv", "parquet")):
        pairs = half_pairs(load_text(held_out)["text"], longest=4 * arguments.max_seq_length)
        return {domain: Task(domain, pairs), **tasks}
    return {domain: load_task(held_out, seed), **tasks}


def options_of(arguments, files: str, seed: int, folder: Path, options: dict) -> dict:
    """The options of `simmim adapt` for an arm."""
    shared = {"model_name_or_path": arguments.model, "seed": seed, "output_dir": str(folder / "adapted")}
    shared |= {"per_device_train_batch_size": arguments.batch_size, "max_seq_length": arguments.max_seq_length}
    shared |= {"bf16": arguments.bf16, "report_to": "none", "overwrite_output_dir": True}
    shared |= {"eval_strategy": "no", "save_strategy": "no"}
    if files:
        shared["train_file"] = files.partition(",")[0]
    return {**shared, **options}


def finish(folder: Path, arguments, tasks: dict[str, Task], seed: int, adapt) -> dict:
    """The results of an arm, made where they are not there yet; `adapt` gives a model, its tokenizer and its cost."""
    path = folder / "results.json"
    if path.is_file():
        return records.read_json(path)
    try:
        model, tokenizer, facts = adapt(folder)
    except DoesNotRun as error:
        logger.warning(f"{folder}: {error}")
        facts = {"failed": str(error)}
    else:
        settings = EvalSettings(tokenizer, arguments.max_seq_length, seed=seed)
        facts["tasks"] = {}
        for name, task in tasks.items():
            facts["tasks"][name] = {"kind": task.kind, **measure(task, model, settings)}
            if task.kind == "retrieval" and folder.name == BEFORE:
                pairs = task.test
                facts["tfidf"] = tfidf_reciprocal_rank(list(pairs["query"]), list(pairs["document"]))
    records.write_json(path, facts)
    shutil.rmtree(folder / "adapted", ignore_errors=True)
    gc.collect()
    return facts


def unchanged(name: str):
    """A function that gives a model as it is."""
    return lambda folder: (load_encoder(name), load_tokenizer(name), {})


def adapter(options: dict, steps: int, budget: float | None):
    """A function that adapts a model by `simmim adapt` for as many operations as the budget has, or for some steps."""

    def adapt(folder: Path):
        run = Adaptation(*build(ADAPTATION, {**options, "max_steps": steps}))
        flops = 0.0
        for count, cost in enumerate(operations(run)):
            if count == steps if budget is None else count and flops + cost / 2 > budget:
                break
            flops += cost
        run.args.max_steps = run.trainer.args.max_steps = count  # of the warm-up, and of the training
        start = time.perf_counter()
        run.train()
        facts = {"steps": run.trainer.state.global_step, "flops": flops, "seconds": time.perf_counter() - start}
        return run.model, run.tokenizer, facts

    return adapt


def operations(run: Adaptation) -> Iterator[float]:
    """The operations of each step of the training to come, with those of its share of the warm-up of a new head, by
    `training_flops`. A frozen encoder is read forward only, a third of that."""
    trainer, model, objective = run.trainer, run.model, run.model.config.objective
    for rows in itertools.chain.from_iterable(epochs(trainer)):
        batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
        cost = training_flops(model, batch, objective)
        if model.head_is_new and objective.mlm_weight:
            masked = type(objective)(mlm_weight=1.0, contrastive_weight=0.0, clm_weight=0.0)
            (view,) = model.views(masked, **batch)
            predicted = view.is_predicted.sum().item()
            head = 6 * sum(parameter.numel() for parameter in model.lm_head.parameters()) * predicted
            cost += run.args.head_warmup * (head + (training_flops(model, batch, masked) - head) / 3)
        yield cost


def tsdae(options: dict, budget: float):
    """A function that adapts a model by TSDAE, for as many operations as the budget has."""

    def adapt(folder: Path):
        from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
        from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
        from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

        seed, batch_size = options["seed"], options["per_device_train_batch_size"]
        trial = Adaptation(*build(ADAPTATION, {**options, "max_steps": 1, "output_dir": str(folder / "trial")}))
        shutil.rmtree(folder / "trial", ignore_errors=True)
        rows = trial.text.train["input_ids"][:]
        texts = [text for text in trial.tokenizer.batch_decode(rows, skip_special_tokens=True) if text.split()]
        model = SentenceTransformer(options["model_name_or_path"], device=str(trial.args.device))
        model.max_seq_length = min(model.max_seq_length, options["max_seq_length"])
        with DoesNotRun.instead():
            loss = DenoisingAutoEncoderLoss(model)
        lengths = np.array([min(len(row), model.max_seq_length) for row in rows])
        cost = batch_size * tsdae_flops(loss.decoder, model[0].auto_model, lengths)
        generator = random.Random(seed)

        def damaged(batch: dict) -> dict:
            """Each text with most of its words deleted, and the text."""
            words = [text.split() for text in batch["text"]]
            kept = [[word for word in each if generator.random() >= DELETED] or each[:1] for each in words]
            return {"damaged": [" ".join(each) for each in kept], "text": batch["text"]}

        count = max(1, round(budget / cost))
        trainer = SentenceTransformerTrainer(
            model,
            Arguments(
                str(folder / "adapted"),
                max_steps=count,
                per_device_train_batch_size=batch_size,
                learning_rate=3e-5,
                bf16=options["bf16"],
                use_cpu=trial.args.use_cpu,
                seed=seed,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=Dataset.from_dict({"text": texts}).map(damaged, batched=True),
            loss=loss,
        )
        start = time.perf_counter()
        with DoesNotRun.instead():
            trainer.train()
        seconds = time.perf_counter() - start
        model.save_pretrained(str(folder / "adapted"), create_model_card=False)
        model, tokenizer = (load(str(folder / "adapted")) for load in (load_encoder, load_tokenizer))
        return model, tokenizer, {"steps": count, "flops": count * cost, "seconds": seconds}

    return adapt


def tsdae_flops(decoder: torch.nn.Module, encoder: torch.nn.Module, lengths: np.ndarray) -> float:
    """The operations of a text, forward and backward, as `training_flops` counts them: the damaged text through the
    encoder, the whole text through the decoder, and a prediction of each of its tokens."""
    config, head = encoder.config, decoder.get_output_embeddings()
    of_layers = [
        sum(p.numel() for name, p in part.named_parameters() if "embeddings" not in name)
        for part in (encoder, decoder.base_model)
    ]
    kept, tokens, squares = 1 - DELETED, lengths.mean(), np.square(lengths).mean()
    attention = 12 * config.num_hidden_layers * config.hidden_size * (kept**2 + 1) * squares
    return float(6 * (kept * of_layers[0] + of_layers[1] + head.weight.numel()) * tokens + attention)


def report(arguments, domains: list[str], arms: dict[str, dict], output: Path) -> None:
    """Writes results.json and results.md of all that is finished, and prints the latter."""
    rows = [BEFORE, *arms, *([] if arguments.without_tsdae else [TSDAE])]
    results = {
        "command": shlex.join(["python", *records.without_folders(sys.argv)]),
        "versions": records.versions(),
        "seeds": arguments.seeds,
        "arms": arms,
        "runs": {},
    }
    lines = [f"# {Path(arguments.model).name}, adapted", ""]
    for domain in domains:
        found = {}
        for arm in rows:
            paths = {seed: output / domain / str(seed) / arm / "results.json" for seed in arguments.seeds}
            found[arm] = {seed: records.read_json(path) for seed, path in paths.items() if path.is_file()}
        before = next(iter(found[BEFORE].values()), None)
        if before is None:
            continue
        results["runs"][domain] = found
        columns = {name: METRIC_OF_KIND[values["kind"]] for name, values in before["tasks"].items()}
        shown = records.without_folders(list(columns))
        titles = [f"{name}: {METRICS[key].title}" for name, key in zip(shown, columns.values(), strict=True)]
        lines += [f"## {domain}", "", f"| | {' | '.join([*titles, 'steps', 'TFLOPs', 'seconds'])} |"]
        lines.append("| --- " * (len(titles) + 4) + "|")
        of_before = {name: _estimate(found[BEFORE], "tasks", name, key) for name, key in columns.items()}
        for arm, runs in found.items():
            if not any("tasks" in run for run in runs.values()):
                reason = next((run["failed"] for run in runs.values()), "not run yet")
                lines.append(f"| {arm} | {reason} |")
                continue
            cells = []
            for name, key in columns.items():
                value = _estimate(runs, "tasks", name, key)
                star = " *" if arm != BEFORE and value and differ(value, of_before[name]) else ""
                cells.append(_cell(value, METRICS[key].digits) + star)
            for name, scale, digits in (("steps", 1, 0), ("flops", 1e12, 1), ("seconds", 1, 0)):
                cost = [run[name] / scale for run in runs.values() if name in run]
                cells.append(f"{np.mean(cost):,.{digits}f}" if cost else "")
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        if "tfidf" in before:
            value = estimate({seed: run["tfidf"] for seed, run in found[BEFORE].items()})
            lines.append(f"| TF-IDF | {_cell(value, 3)} |{' |' * (len(columns) + 2)}")
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [f"- {arm}: {json.dumps(options)}" for arm, options in arms.items()] + [""]
    lines += [f"Seeds {', '.join(map(str, arguments.seeds))}; {versions}.", "", "```bash", results["command"], "```"]
    plot(results["runs"], output / "results.png")
    records.write_json(output / "results.json", results)
    (output / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def plot(runs: dict[str, dict], path: Path) -> None:
    """For each domain what its own task gives: before, as a line, and after each arm, with 95 % intervals."""
    columns, rows = min(2, len(runs)), math.ceil(len(runs) / 2)
    figure = Figure(figsize=(9, rows * (0.8 + 0.3 * max(map(len, runs.values())))), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for empty in panels[len(runs) :]:
        empty.set_axis_off()
    for panel, (domain, arms) in zip(panels, runs.items(), strict=False):
        kinds = {run["tasks"][domain]["kind"] for seeds in arms.values() for run in seeds.values() if "tasks" in run}
        key = METRIC_OF_KIND[kinds.pop()]
        values = {arm: _estimate(seeds, "tasks", domain, key) for arm, seeds in arms.items()}
        values = {arm: value for arm, value in values.items() if value is not None}
        means, halves = zip(*((value.mean, value.half_width or 0) for value in values.values()), strict=True)
        panel.errorbar(means, range(len(values)), xerr=halves, fmt="o", capsize=3)
        panel.axvline(values[BEFORE].mean, linestyle="--", color="grey", linewidth=1)
        panel.set(yticks=range(len(values)), yticklabels=values, title=domain, xlabel=METRICS[key].title)
        panel.invert_yaxis()
    figure.savefig(path, dpi=120)


def _estimate(runs: dict[int, dict], *path: str):
    values = {}
    for seed, value in runs.items():
        for key in path:
            value = (value or {}).get(key)
        values[seed] = value
    return estimate(values)


def _cell(value, digits: int) -> str:
    if value is None:
        return "undefined"
    half = "" if value.half_width is None else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"


if __name__ == "__main__":
    main()
