"""`simmim evaluate`: tasks in; a table, `results.json` and `results.md` of what an encoder is worth out."""

import importlib.metadata
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import quantities, records
from ..data import tokenization
from ..model.configuration_simmim import Pooling, SimMIMConfig
from ..options import option
from .encoding import load_encoder
from .language_modelling import load_language_model, masked_rows
from .measure import TextVectors, measure
from .tasks import BUILT_IN, NEEDED, load_tasks


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model: str = option(help="Folder or Hub id of a SimMIM checkpoint, or of any encoder.")
    output_dir: str = option("simmim-evaluated", "Folder for results.json and results.md.")
    tasks: list[str] | None = option(
        None,
        "Files, folders with train and test files, Hub datasets (owner/name or owner/name:configuration), or a "
        f"built-in task ({', '.join(BUILT_IN)}). The columns tell the kind: {NEEDED}.",
    )
    mteb: list[str] | None = option(None, "Names of tasks of the mteb package, which has to be installed.")
    pooling: Pooling | None = option(
        None, "How tokens become a sentence vector. Default: that of a SimMIM checkpoint, mean for others."
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
        if not self.tasks and not self.mteb:
            raise ValueError(f"nothing to measure: give --tasks (built in: {', '.join(BUILT_IN)}) or --mteb.")
        for name, least in (("batch_size", 1), ("max_samples", 0), ("max_seq_length", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}: it must be {least} or more.")
        if os.path.exists(os.path.join(self.output_dir, "results.json")) and not self.overwrite_output_dir:
            raise ValueError(
                f"--output_dir `{self.output_dir}` already has a results.json. Give another folder, or "
                "--overwrite_output_dir to replace it."
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
        self.tasks = load_tasks(args.tasks or (), args.seed)
        self.tokenizer = tokenization.load_tokenizer(args.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # padding is masked, so that any token will do
        self.encoder = load_encoder(args.model, args.pooling).to(self.device)
        self.max_length = min(args.max_seq_length, self.encoder.max_length)
        self._check_tokenizer()
        self.language_model = None
        if any(task.kind == "language modelling" for task in self.tasks.values()):
            self.language_model = load_language_model(args.model, self.device)
            if "masked" in self.language_model.options:
                masked_rows([], self.tokenizer, args.mlm_probability, args.seed)  # refuses a bad tokenizer or share
        os.makedirs(args.output_dir, exist_ok=True)  # found out here rather than when everything is measured

    def run(self, argv: Sequence[str] | None = None) -> dict:
        """Measures everything, writes `results.json` and `results.md`, and prints the table.

        Args:
            argv: the words after `simmim` on the command line, to be recorded

        Returns:
            What `results.json` holds.

        Raises:
            FloatingPointError: the model gives vectors that are not finite.
        """
        args, config = self.args, self.encoder.config
        libraries = ["evaluate", "numpy", "scipy", "scikit-learn", *(["mteb"] if self.mteb_tasks else [])]
        results = {
            **({} if argv is None else {"command": records.command(argv)}),
            "seed": args.seed,
            "versions": records.versions() | {name: importlib.metadata.version(name) for name in libraries},
            "model": records.without_folders(args.model),
            "model_type": config.model_type,
            "parameters": sum(parameter.numel() for parameter in self.encoder.parameters()),
            "pooling": config.pooling if isinstance(config, SimMIMConfig) else self.encoder.pooling,
            "max_seq_length": self.max_length,
            "precision": "bfloat16" if args.bf16 else "float32",
            "device": str(self.device),
            "tasks": {},
        }
        options = {name: getattr(args, name) for name in ("batch_size", "mlm_probability", "max_samples", "seed")}
        options |= {"max_length": self.max_length, "language_model": self.language_model}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            for name, task in self.tasks.items():
                start = time.perf_counter()
                values = measure(task, self.encoder, self.tokenizer, **options)
                seconds = round(time.perf_counter() - start, 1)
                results["tasks"][name] = {"kind": task.kind, **values, "seconds": seconds}
                self._write(results)  # a run that is stopped keeps what it has measured
            if self.mteb_tasks:
                results["mteb"] = self._measure_mteb()
                self._write(results)
        print("", plain_table(table_rows(results)), sep="\n")
        return results

    def _measure_mteb(self) -> dict[str, dict]:
        """The main score of each task; everything else goes to a file a task, in the format of mteb."""
        import mteb
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        options = self.encoder, self.tokenizer, self.max_length, self.args.batch_size

        class Encoder(AbsEncoder):
            mteb_model_meta = ModelMeta.create_empty({"similarity_fn_name": ScoringFunction.COSINE})

            def encode(self, inputs, **kwargs) -> np.ndarray:
                texts = [text for batch in inputs for text in batch["text"]]
                return TextVectors(texts, *options)[texts]  # (texts, hidden)

        folder = Path(self.args.output_dir, "mteb")
        folder.mkdir(parents=True, exist_ok=True)
        # A cache would give the results of another checkpoint.
        results = mteb.evaluate(Encoder(), self.mteb_tasks, cache=None).task_results
        for result in results:
            result.to_disk(folder / f"{result.task_name}.json")
        return {result.task_name: {"main_score": float(result.get_score())} for result in results}

    def _check_tokenizer(self) -> None:
        tokens, vocabulary, args = len(self.tokenizer), self.encoder.config.vocab_size, self.args
        if tokens > vocabulary:
            raise ValueError(
                f"the tokenizer of `{args.model}` has {tokens} tokens and the model only {vocabulary}: they do not "
                "belong together."
            )
        special = self.tokenizer.num_special_tokens_to_add()
        if self.max_length <= special:
            raise ValueError(
                f"--max_seq_length is {args.max_seq_length}: a text has {special} special tokens; give more."
            )

    def _write(self, results: dict) -> None:
        folder = Path(self.args.output_dir)
        records.write_json(folder / "results.json", results)
        (folder / "results.md").write_text(markdown(results), encoding="utf-8")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
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


def table_rows(results: dict) -> list[tuple[str, str, str, str]]:
    """Task, kind, metric and value, as text, under a row of titles; for the results of `Evaluation.run`."""
    rows = [("task", "kind", "metric", "value")]
    for name, values in [*results["tasks"].items(), *results.get("mteb", {}).items()]:
        known = [key for key in quantities.QUANTITIES if key in values]
        rows += [(name, values.get("kind", "mteb"), quantities.title(key), _as_text(values[key])) for key in known]
    return rows


def plain_table(rows: list[tuple[str, ...]]) -> str:
    """The rows for a terminal; task and kind are not repeated."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, above = [], (None, None)
    for row in rows:
        cells = (" " * len(row[i]) if row[: i + 1] == above[: i + 1] else row[i] for i in range(2))
        *left, value = (*cells, *row[2:])
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(left, widths)), value.rjust(widths[-1])]))
        above = row[:2]
    return "\n".join(lines)


def markdown(results: dict) -> str:
    """`results.md`: what was measured, as a table, and with what."""
    rows = ([cell.replace("|", "\\|") for cell in row] for row in table_rows(results))
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = f"{results['pooling']} pooling, at most {results['max_seq_length']} tokens, {results['precision']} on "
    facts += f"{results['device']}, seed {results['seed']}; {versions}."
    lines = [f"# Evaluation of {results['model']}", "", header, "| --- | --- | --- | ---: |", *body, "", facts, ""]
    return "\n".join([*lines, *([f"`{results['command']}`", ""] if "command" in results else [])])


def _as_text(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
