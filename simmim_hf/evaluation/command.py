"""`simmim evaluate`: tasks in; a table, `results.json` and `results.md` of what one or more encoders are worth out."""

import importlib.metadata
import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import folders, memory, quantities, records
from ..data import tokenization
from ..model.configuration_simmim import Pooling, SimMIMConfig
from ..options import is_number, option, refusing
from .bootstrap import CONFIDENCE, Sampled, paired_difference
from .encoding import load_encoder
from .language_modelling import load_language_model, masked_rows
from .measure import TextVectors, measure_with_samples
from .tasks import BUILT_IN, NEEDED, Task, load_tasks

LARGEST = 2**32 - 1  # that scikit-learn takes for a seed


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model: list[str] = option(
        help="Folder or Hub id of a SimMIM checkpoint, or of any encoder. Several are compared with the first."
    )
    output_dir: str = option("simmim-evaluated", "Folder for results.json and results.md.")
    tasks: list[str] | None = option(
        None,
        "Files, folders with train and test files, Hub datasets (owner/name or owner/name:configuration), or a "
        f"built-in task ({', '.join(BUILT_IN)}). The columns tell the kind: {NEEDED}.",
    )
    mteb: list[str] | None = option(None, "Names of tasks of the mteb package, which has to be installed.")
    pooling: Pooling | None = option(
        None,
        "How tokens become a sentence vector. Default: that of a SimMIM or sentence-transformers model, "
        "mean for others.",
    )
    max_seq_length: int = option(128, "Longer texts are truncated to this many tokens.")
    batch_size: int = option(64, "Texts that are read at a time; it changes no value.")
    bf16: bool = option(False, "Compute in bfloat16.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    mlm_probability: float = option(0.15, "Share of corrupted tokens in plain text.")
    max_samples: int = option(
        100, "Texts for the pseudo-perplexity, which reads a text once for each of its tokens; 0: none."
    )
    seed: int = option(42, "Of masks, folds and samples.")
    overwrite_output_dir: bool = option(False, "Replace earlier results in --output_dir.")

    def __post_init__(self):
        self.model = [self.model] if isinstance(self.model, str) else self.model
        if not self.tasks and not self.mteb:
            raise ValueError(f"nothing to measure: give --tasks (built in: {', '.join(BUILT_IN)}) or --mteb.")
        for name, least in (("batch_size", 1), ("max_samples", 0), ("max_seq_length", 1), ("seed", 0)):
            value = getattr(self, name)
            if not is_number(value, least, LARGEST, int):
                raise ValueError(f"--{name} is {value!r}: it must be {least} or more, up to {LARGEST:,}.")
        if os.path.exists(os.path.join(self.output_dir, "results.json")) and not self.overwrite_output_dir:
            raise ValueError(
                f"--output_dir `{self.output_dir}` already has a results.json. Give another folder, or "
                "--overwrite_output_dir to replace it."
            )


class Contender:
    """One of the models that are measured, with all that measuring it needs.

    Args:
        name: folder or Hub id
        needs_head: whether a task asks for its language model

    Raises:
        ValueError, OSError: a model that cannot be measured.
    """

    def __init__(self, name: str, args: EvaluationArguments, device: torch.device, needs_head: bool):
        self.args = args
        with refusing("--model"):
            self.tokenizer = tokenization.load_tokenizer(name)
            self.encoder = load_encoder(name, args.pooling)
        self.encoder.to(device)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # padding is masked, so that any token will do
        self.max_length = min(args.max_seq_length, self.encoder.max_length)
        self._check_tokenizer(name)
        self.language_model = None
        if needs_head:
            self.language_model = load_language_model(name, device)
            if "masked" in self.language_model.options:
                masked_rows([], self.tokenizer, args.mlm_probability, args.seed)  # refuses a bad tokenizer or share
        config = self.encoder.config
        self.results = {
            "model": records.without_folders(name),
            "model_type": config.model_type,
            "parameters": sum(parameter.numel() for parameter in self.encoder.parameters()),
            "pooling": config.pooling if isinstance(config, SimMIMConfig) else self.encoder.pooling,
            "max_seq_length": self.max_length,
            "tasks": {},
        }

    def measure(self, name: str, task: Task) -> dict[str, Sampled]:
        """Notes the values of a task in `results`, and returns those that can be computed of a sample too."""
        options = {each: getattr(self.args, each) for each in ("batch_size", "mlm_probability", "max_samples", "seed")}
        options |= {"max_length": self.max_length, "language_model": self.language_model}
        start = time.perf_counter()
        values, samples = measure_with_samples(task, self.encoder, self.tokenizer, **options)
        seconds = round(time.perf_counter() - start, 1)
        self.results["tasks"][name] = {"kind": task.kind, **values, "seconds": seconds}
        return samples

    def measure_mteb(self, tasks: list, folder: Path) -> None:
        """Notes the main score of each task; everything else goes to a file a task, in the format of mteb."""
        import mteb
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        options = self.encoder, self.tokenizer, self.max_length, self.args.batch_size

        class Encoder(AbsEncoder):
            mteb_model_meta = ModelMeta.create_empty({"similarity_fn_name": ScoringFunction.COSINE})

            def encode(self, inputs, **kwargs) -> np.ndarray:
                texts = [text for batch in inputs for text in batch["text"]]
                return TextVectors(texts, *options)[texts]  # (texts, dim)

        folder.mkdir(parents=True, exist_ok=True)
        # A cache would give the results of another checkpoint.
        results = mteb.evaluate(Encoder(), tasks, cache=None).task_results
        for result in results:
            result.to_disk(folder / f"{result.task_name}.json")
        self.results["mteb"] = {result.task_name: {"main_score": float(result.get_score())} for result in results}

    def _check_tokenizer(self, name: str) -> None:
        if self.tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of the model `{name}` has no padding token, and none for an end.")
        tokens, vocabulary = len(self.tokenizer), self.encoder.config.vocab_size
        if tokens > vocabulary:
            raise ValueError(
                f"the tokenizer of `{name}` has {tokens} tokens and the model only {vocabulary}: they do not "
                "belong together."
            )
        special = self.tokenizer.num_special_tokens_to_add()
        if self.max_length <= special:
            raise ValueError(
                f"--max_seq_length is {self.args.max_seq_length}: a text has {special} special tokens; give more."
            )


class Evaluation:
    """One run of `simmim evaluate`. Whatever can be wrong with the input is found here, before measuring starts.

    Raises:
        ValueError, OSError: input that cannot work; the message names the value and the remedy.
    """

    def __init__(self, args: EvaluationArguments):
        self.args = args
        self.device = _device(args.device)
        self.mteb_tasks = _mteb_tasks(args.mteb) if args.mteb else []
        with refusing("--tasks"):
            self.tasks = load_tasks(args.tasks or (), args.seed)
        needs_head = any(task.needs_head for task in self.tasks.values())
        self.contenders: dict[str, Contender] = {}
        for model in args.model:
            contender = Contender(model, args, self.device, needs_head)
            short = name = contender.results["model"]
            while name in self.contenders:
                name = f"{short} ({len(self.contenders) + 1})"
            self.contenders[name] = contender

    def run(self, argv: Sequence[str] | None = None) -> dict:
        """Measures everything, writes `results.json` and `results.md`, and prints the table.

        Args:
            argv: the words after `simmim` on the command line, to be recorded

        Returns:
            What `results.json` holds: the facts and values of the model; of several those by their names in `models`,
            and in `differences` by name, task and metric what each has more than the first, with its 95 % interval.

        Raises:
            FloatingPointError: a model gives vectors that are not finite.
            OutOfMemory: there was not enough memory.
            NotSaved: a file could not be written.
        """
        remedy = f"Give a smaller --batch_size (now {self.args.batch_size}) or --max_seq_length, or --bf16."
        with folders.writing(self.args.output_dir), memory.remedied(remedy):
            return self._measure(argv)

    def _measure(self, argv: Sequence[str] | None) -> dict:
        args, samples = self.args, {}
        self.differences: dict[str, dict[str, dict]] = {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            for (name, contender), (title, task) in itertools.product(self.contenders.items(), self.tasks.items()):
                found = contender.measure(title, task)
                first = samples.setdefault(title, found)
                if found is not first:
                    pairs = {key: paired_difference(first[key], found[key], args.seed) for key in found}
                    of_task = {key: pair and pair._asdict() for key, pair in pairs.items()}
                    self.differences.setdefault(name, {})[title] = of_task
                self._write(argv)  # a run that is stopped keeps what it has measured
            for name, contender in self.contenders.items() if self.mteb_tasks else ():
                contender.measure_mteb(self.mteb_tasks, self._mteb_folder(name))
                self._write(argv)
        results = self._write(argv)
        print("", plain_table(table_rows(results)), sep="\n")
        return results

    def _mteb_folder(self, name: str) -> Path:
        several = len(self.contenders) > 1
        return Path(self.args.output_dir, "mteb", *([name.replace("/", "_")] if several else []))

    def _write(self, argv: Sequence[str] | None) -> dict:
        args, folder = self.args, Path(self.args.output_dir)
        libraries = ["evaluate", "numpy", "scipy", "scikit-learn", *(["mteb"] if self.mteb_tasks else [])]
        measured = {name: contender.results for name, contender in self.contenders.items()}
        one = next(iter(measured.values()))
        results = {
            **({} if argv is None else {"command": records.command(argv)}),
            "seed": args.seed,
            "versions": records.versions() | {name: importlib.metadata.version(name) for name in libraries},
            "precision": "bfloat16" if args.bf16 else "float32",
            "device": str(self.device),
            **(one if len(measured) == 1 else {"models": measured, "differences": self.differences}),
        }
        records.write_json(folder / "results.json", results)
        (folder / "results.md").write_text(markdown(results), encoding="utf-8")
        return results


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # the device `meta` has no values
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device `{name}` cannot be used: {str(error).splitlines()[0]} Give auto, cpu or cuda."
        ) from error
    return device


def _mteb_tasks(names: list[str]) -> list:
    try:
        import mteb
    except ImportError as error:
        raise ValueError("--mteb needs the package mteb, which is not installed: pip install mteb") from error
    try:
        return list(mteb.get_tasks(tasks=names))
    except KeyError as error:
        raise ValueError(f"--mteb: {error.args[0].removeprefix('KeyError: ')}") from error


def models_of(results: dict) -> dict[str, dict]:
    """The facts and values of each model by its name, of the results of `Evaluation.run`."""
    return results.get("models") or {results["model"]: results}


def table_rows(results: dict, shown: Iterable[str] = quantities.QUANTITIES) -> list[tuple[str, ...]]:
    """Task, kind, metric and the value of each model, as text, under a row of titles.

    Behind a value stand its difference to that of the first model, and the ends of the interval of it.

    Args:
        results: of `Evaluation.run`
        shown: the keys of the metrics
    """
    results = records.printable(results)
    models = models_of(results)
    rows = [("task", "kind", "metric", *(models if len(models) > 1 else ["value"]))]
    for part in ("tasks", "mteb"):
        tasks = dict.fromkeys(task for model in models.values() for task in model.get(part, {}))
        for task in tasks:
            values = {name: model.get(part, {}).get(task, {}) for name, model in models.items()}
            differences = {name: results.get("differences", {}).get(name, {}).get(task, {}) for name in models}
            kind = next(iter(values.values())).get("kind", "mteb")
            for key in shown:
                if any(key in of_model for of_model in values.values()):
                    cells = [_cell(values[name], differences[name], key) for name in models]
                    rows.append((task, kind, quantities.title(key), *cells))
    return rows


def plain_table(rows: list[tuple[str, ...]]) -> str:
    """The rows for a terminal; task and kind are not repeated."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, above = [], (None, None)
    for row in rows:
        titles = (" " * len(row[i]) if row[: i + 1] == above[: i + 1] else row[i] for i in range(2))
        left = (cell.ljust(width) for cell, width in zip((*titles, row[2]), widths))
        right = (cell.rjust(width) for cell, width in zip(row[3:], widths[3:]))
        lines.append("  ".join([*left, *right]))
        above = row[:2]
    return "\n".join(lines)


def markdown_table(results: dict, shown: Iterable[str] = quantities.QUANTITIES) -> list[str]:
    """The lines of `table_rows` in Markdown."""
    rows = ([cell.replace("|", "\\|") for cell in row] for row in table_rows(results, shown))
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, f"| --- | --- | --- |{' ---: |' * len(models_of(results))}", *body]


def markdown(results: dict) -> str:
    """`results.md`: what was measured, as a table, and with what."""
    results = records.printable(results)
    models = models_of(results)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    read = {name: f"{m['pooling']} pooling, at most {m['max_seq_length']} tokens" for name, m in models.items()}
    if len(models) > 1:
        read = {name: f"{name}: {how}" for name, how in read.items()}
    facts = f"{'; '.join(read.values())}, {results['precision']} on {results['device']}, seed {results['seed']}; "
    facts += f"{versions}."
    if results.get("differences"):
        facts += (
            f" In brackets: the difference to the first model and its {CONFIDENCE:.0%} interval (paired bootstrap)."
        )
    lines = [f"# Evaluation of {quantities.listed(list(models))}", "", *markdown_table(results), "", facts, ""]
    return "\n".join([*lines, *([f"`{results['command']}`", ""] if "command" in results else [])])


def _cell(values: dict, differences: dict[str, dict | None], key: str) -> str:
    """`0.513 (+0.022: +0.010 to +0.035)`, the difference with its interval where there is one."""
    text, found = _as_text(values[key]) if key in values else "", differences.get(key)
    return f"{text} ({found['value']:+.3f}: {found['low']:+.3f} to {found['high']:+.3f})" if found else text


def _as_text(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
