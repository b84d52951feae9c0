"""`simmim evaluate`: tasks in; a table, `results.json` and `results.md` with the metrics of encoders out."""

import importlib.metadata
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import folders, memory, records
from ..data import tokenization
from ..model.configuration_simmim import Pooling, SimMIMConfig
from ..options import error_prefix, is_number, option
from .bootstrap import paired_difference
from .encoding import load_encoder
from .language_modelling import load_language_model, masked_rows
from .results import markdown, plain_table
from .run_task import EvalSettings, Samples, TextVectors, measure_with_samples
from .tasks import BUILT_IN, NEEDED, Task, load_tasks

LARGEST_SEED = 2**32 - 1  # of scikit-learn


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

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            self.model = [self.model]
        if not self.tasks and not self.mteb:
            raise ValueError(f"nothing to measure: give --tasks (built in: {', '.join(BUILT_IN)}) or --mteb.")
        smallest = {"batch_size": 1, "max_samples": 0, "max_seq_length": 1, "seed": 0}
        for name, least in smallest.items():
            value = getattr(self, name)
            if not is_number(value, least, LARGEST_SEED, int):
                raise ValueError(f"--{name} is {value!r}: it must be {least} or more, up to {LARGEST_SEED:,}.")
        has_results = os.path.exists(os.path.join(self.output_dir, "results.json"))
        if has_results and not self.overwrite_output_dir:
            raise ValueError(
                f"--output_dir `{self.output_dir}` already has a results.json. Give another folder, or "
                "--overwrite_output_dir to replace it."
            )


class EvaluatedModel:
    """One of the models that are measured, with all that measuring it needs.

    Args:
        name: folder or Hub id
        needs_head: whether a task asks for its language model

    Raises:
        ValueError, OSError: a model that cannot be measured.
    """

    def __init__(self, name: str, args: EvaluationArguments, device: torch.device, needs_head: bool) -> None:
        self.args = args
        with error_prefix("--model"):
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
        self.settings = EvalSettings(
            self.tokenizer, self.max_length, args.batch_size, args.mlm_probability, args.max_samples, args.seed
        )
        config = self.encoder.config
        pooled = config if isinstance(config, SimMIMConfig) else self.encoder
        self.results = {
            "model": records.without_folders(name),
            "model_type": config.model_type,
            "parameters": sum(parameter.numel() for parameter in self.encoder.parameters()),
            "pooling": pooled.pooling,
            "max_seq_length": self.max_length,
            "tasks": {},
        }

    def measure(self, name: str, task: Task) -> Samples:
        """Records the values of a task in `results`, and returns those that can be computed of a sample too."""
        start = time.perf_counter()
        values, samples = measure_with_samples(task, self.encoder, self.settings, self.language_model)
        seconds = round(time.perf_counter() - start, 1)
        self.results["tasks"][name] = {"kind": task.kind, **values, "seconds": seconds}
        return samples

    def measure_mteb(self, tasks: list, folder: Path) -> None:
        """Records the main score of each task, and writes a file a task in the format of mteb with the others."""
        import mteb
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        encoder = self.encoder
        settings = self.settings

        class Encoder(AbsEncoder):
            mteb_model_meta = ModelMeta.create_empty({"similarity_fn_name": ScoringFunction.COSINE})

            def encode(self, inputs, **kwargs) -> np.ndarray:
                texts = [text for batch in inputs for text in batch["text"]]
                return TextVectors(texts, encoder, settings)[texts]  # (texts, dim)

        folder.mkdir(parents=True, exist_ok=True)
        # A cache would give the results of another checkpoint.
        results = mteb.evaluate(Encoder(), tasks, cache=None).task_results
        scores = {}
        for result in results:
            result.to_disk(folder / f"{result.task_name}.json")
            scores[result.task_name] = {"main_score": float(result.get_score())}
        self.results["mteb"] = scores

    def _check_tokenizer(self, name: str) -> None:
        if self.tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of the model `{name}` has no padding token, and none for an end.")
        tokens = len(self.tokenizer)
        vocab_size = self.encoder.config.vocab_size
        if tokens > vocab_size:
            raise ValueError(
                f"the tokenizer of `{name}` has {tokens} tokens and the model only {vocab_size}: they do not "
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

    def __init__(self, args: EvaluationArguments) -> None:
        self.args = args
        self.device = _device(args.device)
        self.mteb_tasks = _mteb_tasks(args.mteb) if args.mteb else []
        with error_prefix("--tasks"):
            self.tasks = load_tasks(args.tasks or (), args.seed)
        needs_head = any(task.needs_head for task in self.tasks.values())
        self.evaluated_models: dict[str, EvaluatedModel] = {}
        for model in args.model:
            evaluated = EvaluatedModel(model, args, self.device, needs_head)
            short = evaluated.results["model"]
            name = short
            while name in self.evaluated_models:
                name = f"{short} ({len(self.evaluated_models) + 1})"
            self.evaluated_models[name] = evaluated

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
        self.differences: dict[str, dict[str, dict]] = {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
            self._measure_tasks(argv)
            if self.mteb_tasks:
                for name, evaluated in self.evaluated_models.items():
                    evaluated.measure_mteb(self.mteb_tasks, self._mteb_folder(name))
                    self._write(argv)
        results = self._write(argv)
        print("", plain_table(results), sep="\n")
        return results

    def _measure_tasks(self, argv: Sequence[str] | None) -> None:
        """Each model on each task, and how it differs there from the first model."""
        samples_of_first: dict[str, Samples] = {}
        for name, evaluated in self.evaluated_models.items():
            for title, task in self.tasks.items():
                samples = evaluated.measure(title, task)
                if title in samples_of_first:
                    differences = self._differences(samples_of_first[title], samples)
                    self.differences.setdefault(name, {})[title] = differences
                else:
                    samples_of_first[title] = samples
                self._write(argv)  # a run that is stopped keeps what it has measured

    def _differences(self, first: Samples, samples: Samples) -> dict[str, dict | None]:
        """By metric the difference from the first model with its interval; None where the metric is undefined."""
        differences: dict[str, dict | None] = {}
        for key, sampled in samples.items():
            difference = paired_difference(first[key], sampled, self.args.seed)
            differences[key] = None if difference is None else difference._asdict()
        return differences

    def _mteb_folder(self, name: str) -> Path:
        folder = Path(self.args.output_dir, "mteb")
        if len(self.evaluated_models) > 1:
            folder /= name.replace("/", "_")
        return folder

    def _write(self, argv: Sequence[str] | None) -> dict:
        libraries = ["evaluate", "numpy", "scipy", "scikit-learn"]
        if self.mteb_tasks:
            libraries.append("mteb")
        versions = records.versions()
        for name in libraries:
            versions[name] = importlib.metadata.version(name)
        results: dict = {}
        if argv is not None:
            results["command"] = records.command(argv)
        results |= {
            "seed": self.args.seed,
            "versions": versions,
            "precision": "bfloat16" if self.args.bf16 else "float32",
            "device": str(self.device),
        }
        measured = {name: evaluated.results for name, evaluated in self.evaluated_models.items()}
        if len(measured) == 1:
            results |= next(iter(measured.values()))
        else:
            results |= {"models": measured, "differences": self.differences}
        folder = Path(self.args.output_dir)
        records.write_json(folder / "results.json", results)
        (folder / "results.md").write_text(markdown(results), encoding="utf-8")
        return results


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.accelerator.is_available():
            return torch.accelerator.current_accelerator()
        return torch.device("cpu")
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
