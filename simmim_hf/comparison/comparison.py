"""`simmim compare`: objectives side by side, from the same weights on the same text for the same budget."""

import contextlib
import dataclasses
import gc
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .. import folders, memory, records
from ..data import tokenization
from ..data.corpora import Corpus
from ..evaluation.language_modelling import load_language_model, unigram_cross_entropy
from ..evaluation.metrics import tfidf_reciprocal_rank
from ..evaluation.run_task import EvalSettings, measure
from ..evaluation.tasks import Task, load_tasks
from ..model.configuration_simmim import OBJECTIVES, VECTOR_OPTIONS, WEIGHTS, SimMIMConfig, current_options
from ..model.modeling_simmim import SimMIMForPreTraining
from ..options import build, error_prefix, is_number, option, reason
from ..pretraining.build import TokenizedText, build_model, build_trainer, get_tokenizer, read_text, tokenize_text
from ..pretraining.checks import check
from ..pretraining.options import PRETRAINING, DataArguments, default_dropout, fill_defaults
from ..training import sharding
from ..training.checkpoints import claimed, in_all_processes, last_checkpoint, remove_checkpoint
from ..training.signals import Interrupted, StopAtSignal
from ..training.trainer import SimMIMTrainer
from . import budget, report, statistics
from .arms import check_arms, config_options, refuse_decided
from .held_out import HeldOut, Recorder

logger = logging.get_logger(__name__)

# What `simmim compare` without a budget spends on an arm and seed: on the built-in corpus, on other text one pass.
BUILT_IN_BUDGET = 300_000
FEWEST_STEPS = 10
CURVE_SEQUENCES = 256
LOG_LINES = 20
HELD_OUT = "held-out text"  # the task that every comparison has
# What may be in the folder after a start that was refused.
BEFORE_TRAINING = ("initial", "trial")
ONCE_MENDED = "When there is room and it can be written,"


@dataclass
class ComparisonArguments:
    """What is compared, for how much, and by what."""

    _argument_group_name = "comparison"

    objectives: list[str] | None = option(
        None, f"Arms by the name of their objective: {', '.join(OBJECTIVES)}. Default: all, or those of --arms."
    )
    arms: str | None = option(
        None, "A YAML file of more arms: a name, and below it any options of `simmim pretrain`, such as temperature."
    )
    seeds: int = option(2, "Runs of each arm, from --seed on; each has its own initial weights and data order.")
    budget_tokens: float | None = option(
        None,
        "Tokens that the encoder reads in each run: a text counts as often as the objective looks at it. Default: as "
        f"many as the text has; {BUILT_IN_BUDGET:,} on the built-in corpus.",
    )
    budget_text: float | None = option(
        None, "Instead: tokens of text in each run, counted once however often the objective looks at them."
    )
    budget_flops: float | None = option(None, "Instead: floating-point operations of each run.")
    tasks: list[str] | None = option(None, "What the encoders are evaluated on: tasks of `simmim evaluate`.")

    def __post_init__(self) -> None:
        if not is_number(self.seeds, least=1, kind=int):
            raise ValueError(f"--seeds is {self.seeds!r}: give 1 or more; an interval needs 2.")
        units = ("tokens", "text", "flops")
        self.budget = budget.Budget.of(**{unit: getattr(self, f"budget_{unit}") for unit in units})


class Comparison:
    """Arms, each from the same weights on the same text in the same order for the same budget, with several seeds.

    The order is the same as long as an arm leaves the size of the batches and how they are drawn as they are.

    Everything is in `output_dir`: `initial/seed-N` has the weights that all arms start from, `runs/ARM/seed-N` an arm
    that was trained, and `result.json` in it says that it is finished. Run again, only what is missing is done, and a
    run that was killed goes on from its last checkpoint.

    `prepare` reads the text and refuses what cannot work, `run` trains; without a `prepare` before it, `run` prepares.
    A signal that comes in `run` while `signals.listening()` ends it with a checkpoint of the run that is trained.

    A budget decides the steps of a run by the lengths of the texts that it will read: the first number of steps that
    reaches the budget, so that two arms differ by less than a batch. A token of text has its price in each arm, by how
    often the encoder reads it and for how many operations (`budget.training_flops`): a mean over batches from all of
    the text.

    Args:
        arms: name -> options of `simmim pretrain`, with `objective`
        options: options of `simmim pretrain` for all arms, above all `train_file`
        output_dir: a new folder, or that of the same comparison
        settings: `seeds`, `tasks` and one of the budgets of `ComparisonArguments`; the first seed is that in
            `options`, or 42

    Raises:
        ValueError, FileNotFoundError: an option, an arm or the folder cannot be used; the message names the remedy.
    """

    def __init__(
        self,
        arms: dict[str, dict],
        options: dict | None = None,
        output_dir: str | os.PathLike = "simmim-comparison",
        **settings,
    ) -> None:
        self.arms = check_arms(arms)
        self.folder = Path(output_dir)
        self.options = {name: value for name, value in current_options(options or {}).items() if value is not None}
        refuse_decided(self.options)
        self.settings = ComparisonArguments(**settings)
        self.is_new = not (self.folder / "comparison.json").is_file()
        if self.is_new and folders.is_used(self.folder, *BEFORE_TRAINING):
            raise ValueError(f"--output_dir `{output_dir}` is not empty and holds no comparison: give another folder.")
        first_seed = self.options.get("seed", 42)
        self.seeds = [first_seed + i for i in range(self.settings.seeds)]
        self.record: dict[str, Any] = {
            "options": records.without_secrets(self.options),
            "arms": records.without_secrets(self.arms),
            "seeds": self.seeds,
            "budget": self.settings.budget and dataclasses.asdict(self.settings.budget),
            "tasks": self.settings.tasks or [],
        }
        self._check_record("options", "budget", "tasks")
        self.model_args, self.data_args, self.args = self._shared_arguments()
        self.is_main = self.args.process_index == 0
        self.device = self.args.device
        self.signals = StopAtSignal()
        self.failures: dict[tuple[str, int], str] = {}
        self._tokenized: dict[tuple, TokenizedText] = {}
        self.is_prepared = False
        self.claim = contextlib.ExitStack()  # of the folder, from `prepare` to the end of `run`

    def prepare(self) -> None:
        """Reads the text, saves the weights that the arms start from, and makes a Trainer of every arm.

        From here to the end of `run` no other command writes into the folder.

        Raises:
            ValueError, OSError: what cannot work; the message names the remedy.
            NotSaved: a file could not be written.
        """
        with contextlib.ExitStack() as claim:
            claim.enter_context(claimed(self.folder))
            self.corpus, self.tokenizer = self._read_corpus()
            model = build_model(self.model_args, self.tokenizer)
            self.vector_options = self._vector_options(model.config)
            self.max_length = min(self.data_args.max_seq_length, model.simmim.max_length)
            self.tokenizer.model_max_length = self.max_length
            self.text = self._tokenize(self.data_args, self.max_length)  # in single passages, also if arms pair them
            self.held_out, self.curve_text = self._masked_texts(model)
            self._record_text()
            self.budget = self.settings.budget or self._default_budget()
            with without_progress_bars(), folders.writing(self.folder):
                self._save_initial_weights()
                self.rates = self._rates()
                self.tasks = self._load_tasks()
            if self.is_main:
                records.write_json(self.folder / "comparison.json", self.record)
            self.claim = claim.pop_all()
        self.is_new = False
        self.is_prepared = True

    def run(self, argv: list[str] | None = None) -> dict:
        """Trains and measures what is missing, and writes the report.

        Args:
            argv: the words after `simmim` on the command line, to be recorded

        Returns:
            The content of `results.json`.

        Raises:
            Interrupted: a signal came while `signals.listening()`.
            NotSaved: a file could not be written; the same comparison goes on from what was saved before.
            ValueError, OSError: as `prepare`, where that was not called before.
        """
        if not self.is_prepared:
            self.prepare()
        try:
            with self.claim, folders.writing(self.folder):
                for seed in self.seeds:
                    self._measure_initial_weights(seed)
                    for arm in self.arms:
                        self._run_if_missing(arm, seed)
                results = self._collect(argv)
                if self.is_main:
                    self._write_results(results)
                in_all_processes(None)  # the others wait for the files
        except Interrupted as end:
            finished = [self._is_finished(*run) for run in itertools.product(self.arms, self.seeds)]
            raise Interrupted(
                f"{self.signals.name}: ended with {sum(finished)} of {len(finished)} runs finished. The same command "
                "goes on."
            ) from end
        except folders.NotSaved as error:
            raise folders.NotSaved(f"{error} {ONCE_MENDED} the same command goes on.") from error
        finally:
            self.is_prepared = False  # another command may write into the folder now
        return results

    # Preparing

    def _shared_arguments(self) -> tuple:
        """The arguments that all arms share."""
        options = {name: value for name, value in self.options.items() if name != "weight_schedule"}
        if not self.is_new:
            options["tokenizer_name"] = str(self._initial(self.seeds[0]))
        return self._arguments({**options, "seed": self.seeds[0], "output_dir": str(self.folder / "initial")})

    def _read_corpus(self) -> tuple[Corpus, PreTrainedTokenizerBase]:
        """The text of all arms, and the tokenizer, which may be trained on it."""
        set_seed(self.seeds[0])
        with self.args.main_process_first(desc="reading the corpus"):
            corpus = read_text(self.data_args, self.seeds[0])
            tokenizer = get_tokenizer(self.model_args, corpus.train, show_progress=self.is_main)
        return corpus, tokenizer

    def _vector_options(self, config: SimMIMConfig) -> dict[str, Any]:
        """How vectors are made where an arm does not say it: as by the model that all start from, or by default."""
        if not self.model_args.model_name_or_path:
            return {name: getattr(SimMIMConfig, name) for name in VECTOR_OPTIONS}
        return {name: getattr(config, name) for name in VECTOR_OPTIONS}

    def _masked_texts(self, model: SimMIMForPreTraining) -> tuple[HeldOut, HeldOut]:
        """The held-out text, masked alike for every arm, and the part of it that is measured during training."""
        trainer = build_trainer(model, self.tokenizer, self.text, self.data_args, self.args)
        collator = trainer.data_collator
        batch_size = self.args.per_device_eval_batch_size
        held_out = self.text.held_out
        few = np.linspace(0, len(held_out) - 1, min(CURVE_SEQUENCES, len(held_out))).astype(int)  # rows of it
        curve_text = HeldOut(held_out.select(few), collator, batch_size)
        return HeldOut(held_out, collator, batch_size), curve_text

    def _record_text(self) -> None:
        """Notes how much text there is, and refuses a folder in which it was another text."""
        self.record["text"] = {
            "sequences": len(self.text.train),
            "tokens": sum(self.text.train["length"][:]),
            "held_out_sequences": len(self.text.held_out),
        }
        self.record["processes"] = self.args.world_size
        self._check_record("text", "processes")

    def _default_budget(self) -> budget.Budget:
        """One pass over the text; a fixed number of tokens of the built-in corpus."""
        if self.data_args.built_in:
            return budget.Budget("tokens", BUILT_IN_BUDGET)
        return budget.Budget("tokens", self.record["text"]["tokens"])

    def _load_tasks(self) -> dict[str, Task]:
        names = self.settings.tasks or (["docstrings"] if self.data_args.built_in else [])
        with error_prefix("--tasks"):
            tasks = load_tasks(names, self.seeds[0])
        if any(task.needs_head for task in tasks.values()):
            load_language_model(str(self._initial(self.seeds[0])))  # refuses a model without a head
        return tasks

    def _tokenize(self, data_args: DataArguments, max_length: int, passages: int = 1) -> TokenizedText:
        """The text as the arms with these options read it, tokenised once for all of them."""
        key = max_length, data_args.long_texts, passages
        if key not in self._tokenized:
            with self.args.main_process_first(desc="tokenising"):
                self._tokenized[key] = tokenize_text(
                    self.corpus.train, self.corpus.held_out, self.tokenizer, data_args, max_length, passages
                )
        return self._tokenized[key]

    def _arguments(self, options: dict) -> tuple:
        """The arguments of `simmim pretrain` from options, checked; on every text with the same defaults."""
        defaults = {
            "report_to": "none",
            "overwrite_output_dir": True,
            "first_sentence_probability": 0.0,
            "token_table_dim": SimMIMConfig.token_table_dim,
        }
        arguments = build(PRETRAINING, {**defaults, **options})
        fill_defaults(*arguments)
        check(*arguments)
        return arguments

    def _initial(self, seed: int) -> Path:
        return self.folder / "initial" / f"seed-{seed}"

    def _run_folder(self, arm: str, seed: int) -> Path:
        return self.folder / "runs" / arm / f"seed-{seed}"

    def _check_record(self, *names: str) -> None:
        """Refuses a folder in which another comparison was begun; more arms and more seeds are welcome."""
        path = self.folder / "comparison.json"
        if not path.is_file():
            return
        old = records.without_secrets(records.read_json(path))
        old["options"] = current_options(old["options"])
        old["arms"] = {arm: current_options(options) for arm, options in old["arms"].items()}
        new = json.loads(json.dumps(self.record))  # tuples become lists, as in the file
        pairs = {name: (old.get(name), new[name]) for name in names}
        for arm, options in old["arms"].items():
            pairs[f"the arm `{arm}`"] = (options, new["arms"].get(arm))
        if old["seeds"] != new["seeds"][: len(old["seeds"])]:
            pairs["seeds"] = (old["seeds"], new["seeds"])
        for name, (before, now) in pairs.items():
            if before != now:
                was, is_now = _differing_parts(before, now)
                raise ValueError(
                    f"`{self.folder}` holds another comparison: {name} was {json.dumps(was)} and is now "
                    f"{json.dumps(is_now)}. Give another --output_dir, or the same options."
                )
        self.record = {**old, **self.record}

    def _save_initial_weights(self) -> None:
        writing = self.folder / "initial" / "writing"
        for seed in self.seeds:
            initial = self._initial(seed)
            if not in_all_processes(self.is_new or not initial.is_dir()):
                continue
            set_seed(seed)
            model = build_model(self.model_args, self.tokenizer)
            if self.is_main:
                for left_over in (writing, initial):
                    shutil.rmtree(left_over, ignore_errors=True)
                model.save_pretrained(writing)
                self.tokenizer.save_pretrained(writing)
                os.replace(writing, initial)
            in_all_processes(None)

    def _options_of(self, arm: str, seed: int) -> dict:
        """The options of `simmim pretrain` for a run of an arm, which begins with the initial weights of a seed."""
        options = {"learning_rate": self.args.learning_rate, **self.options, **self.arms[arm]}
        wanted = config_options(options)
        for name, default in self.vector_options.items():  # the objective of an arm may choose them too
            options[name] = wanted.get(name, default)
        if not (self.options.get("model_name_or_path") or self.options.get("text_config")):
            # The initial weights look like a model of the user's own, which would keep its dropout.
            options.setdefault("dropout", default_dropout(wanted))
        options["model_name_or_path"] = str(self._initial(seed))
        options["text_config"] = None
        options["seed"] = seed
        options["output_dir"] = str(self._run_folder(arm, seed))
        return options

    def _trainer(self, arm: str, seed: int, **more) -> SimMIMTrainer:
        """The Trainer of an arm, from the initial weights of a seed; `more` are options of `simmim pretrain`."""
        initial = str(self._initial(seed))
        try:
            model_args, data_args, args = self._arguments({**self._options_of(arm, seed), **more})
            set_seed(seed)
            tokenizer = tokenization.load_tokenizer(initial)
            model = build_model(model_args, tokenizer)
            max_length = min(data_args.max_seq_length, model.simmim.max_length)
            tokenizer.model_max_length = max_length
            text = self._tokenize(data_args, max_length, model.config.passages_per_row)
            return build_trainer(model, tokenizer, text, data_args, args, trainer_class=budget.MeasuredTrainer)
        except ValueError as error:
            raise ValueError(f"the arm `{arm}`: {error}") from error

    def _weights(self, arm: str) -> dict[str, float]:
        """The weights of an arm's terms."""
        options = config_options({**self.options, **self.arms[arm]})
        return {name: options[name] for name in WEIGHTS}

    def _rates(self) -> dict[str, budget.Rate]:
        """The rate of each arm. An arm that cannot be built is refused here, and a budget that is too small."""
        recorded = self.record.setdefault("rates", {})  # those of an earlier start keep its plans
        rates = {}
        trial = self.folder / "trial"
        for arm in self.arms:
            trainer = self._trainer(arm, self.seeds[0], output_dir=str(trial))
            if arm not in recorded:
                costs = budget.sampled_rates(trainer)
                recorded[arm] = {"readings": costs["tokens"], "cost": costs[self.budget.unit]}
            rates[arm] = budget.Rate(**recorded[arm])
            steps = len(self.budget.plan(trainer, rates[arm])) - 1
            if steps < FEWEST_STEPS:
                raise ValueError(
                    f"--budget_{self.budget.unit} {self.budget.amount:g} is enough for {steps} steps of the arm "
                    f"`{arm}`: give {self.budget.amount * FEWEST_STEPS / steps:.2g} or more, or smaller batches "
                    "(--per_device_train_batch_size)."
                )
        if self.is_main:
            shutil.rmtree(trial, ignore_errors=True)
        return rates

    # Running

    def _run_if_missing(self, arm: str, seed: int) -> None:
        """Trains and measures an arm. An error is noted in `failures`, and the next arm has its turn."""
        if in_all_processes(self._is_finished(arm, seed)):
            return
        try:
            with without_progress_bars(), folders.writing(self.folder):
                self._run_arm(arm, seed)
        except (Interrupted, folders.NotSaved):
            raise
        except Exception as error:
            if dist.is_initialized():
                raise  # the other processes would wait for this one
            trace = None if isinstance(error, memory.OutOfMemory) else error
            logger.error(f"The arm `{arm}` failed with seed {seed}: {reason(error)}", exc_info=trace)
            self.failures[arm, seed] = f"{type(error).__name__}: {error}"
        in_all_processes(None)

    def _is_finished(self, arm: str, seed: int) -> bool:
        return (self._run_folder(arm, seed) / "result.json").is_file()

    def _run_arm(self, arm: str, seed: int) -> None:
        folder = self._run_folder(arm, seed)
        tokens = self.budget.plan(self._trainer(arm, seed), self.rates[arm])  # those read before each step
        steps = len(tokens) - 1
        trainer = self._trainer(arm, seed, **self._schedule(steps))
        gc.collect()  # the weights of earlier runs: a Trainer is part of a reference cycle
        budget.reset_peak_memory(self.device)
        divergence = self._train(trainer, tokens, title=f"{arm}, seed {seed}")
        state = trainer.state
        cost = {
            "planned_steps": steps,
            "steps": state.global_step,
            "tokens": tokens[state.global_step],
            "flops": state.total_flos,
            "seconds": _training_seconds(state),
            "peak_memory_bytes": budget.peak_memory(self.device),
        }
        if divergence is None:
            trainer.save_model()
            model = sharding.whole_model(trainer, folder)
        else:
            model = trainer.accelerator.unwrap_model(trainer.model)
        if self.is_main and model is not None:  # only other processes may have none
            outcome: dict[str, Any] = {"status": "failed", "reason": divergence}
            if divergence is None:
                outcome = {"status": "finished", "figures": self._measure(model, folder)}
            parameters = model.num_parameters()
            curve = _curve(state.log_history, tokens)
            records.write_json(folder / "result.json", {**outcome, **cost, "parameters": parameters, "curve": curve})
            for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                remove_checkpoint(path)
        trainer.accelerator.free_memory()

    def _train(self, trainer: SimMIMTrainer, tokens: list[int], title: str) -> str | None:
        """Trains an arm from its last checkpoint on; the reason where it diverged, else None.

        A loss that is not finite is a result. Any other error is tried again next time.

        Raises:
            Interrupted: a signal came; there is a checkpoint.
        """
        checkpoint = last_checkpoint(Path(trainer.args.output_dir))
        if checkpoint:
            state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
            if state.global_step >= len(tokens) - 1:  # killed between its last step and its result
                trained = SimMIMForPreTraining.from_pretrained(checkpoint)
                trainer.accelerator.unwrap_model(trainer.model).load_state_dict(trained.state_dict())
                trainer.state = state
                return None
        # All processes gather the weights that one of them measures.
        measures = self.is_main or sharding.is_sharded(trainer)
        recorder = Recorder(trainer, self.curve_text if measures else None, tokens, title)
        try:
            quieten(trainer, recorder, self.signals).train(resume_from_checkpoint=checkpoint)
            if self.signals.came(self.device):
                raise Interrupted
        except FloatingPointError as error:
            return str(error)
        except Interrupted:
            trainer.ensure_checkpoint()
            raise
        return None

    def _schedule(self, steps: int) -> dict:
        """The options of a run of so many steps."""
        options = {"max_steps": steps}
        if "logging_steps" not in self.options:
            # The log has the points of a plot. A checkpoint falls on a line of the log, which then is complete in it.
            every = max(1, steps // LOG_LINES)
            options["logging_steps"] = every
            options["save_steps"] = math.ceil(self.args.save_steps / every) * every
        return options

    def _measure(self, model: SimMIMForPreTraining, folder: Path) -> dict[str, dict[str, float]]:
        """Every metric of a model that is saved in a folder, by task."""
        metrics = {HELD_OUT: self.held_out.measure(model)}
        language_model = None
        if any(task.needs_head for task in self.tasks.values()):
            language_model = load_language_model(str(folder), self.device)
        settings = EvalSettings(self.tokenizer, self.max_length, seed=self.seeds[0])
        for name, task in self.tasks.items():
            if self.signals.received:  # only the main process is here
                raise Interrupted
            metrics[name] = measure(task, model, settings, language_model)
        return metrics

    def _measure_initial_weights(self, seed: int) -> None:
        path = self._initial(seed) / "result.json"
        sharding.keep_models_whole()
        if not self.is_main or path.is_file():
            return
        with without_progress_bars():
            model = SimMIMForPreTraining.from_pretrained(path.parent).to(self.device)
            records.write_json(path, {"figures": self._measure(model, path.parent)})

    def _collect(self, argv: list[str] | None) -> dict:
        """All results so far; a run without one counts as failed."""
        runs = []
        for arm, seed in itertools.product(self.arms, self.seeds):
            result = {"status": "failed", "reason": self.failures.get((arm, seed), "not run yet")}
            if self._is_finished(arm, seed):
                result = records.read_json(self._run_folder(arm, seed) / "result.json")
            runs.append({"arm": arm, "seed": seed, **result})
        initial = [{"seed": seed, **records.read_json(self._initial(seed) / "result.json")} for seed in self.seeds]
        pretrained = "model_name_or_path" in self.options
        results = {} if argv is None else {"command": records.command(argv)}
        return {
            **results,
            "versions": records.versions(),
            "hardware": records.hardware(self.args),
            "tokens": "read",
            "options": records.without_folders(self.record["options"]),
            "arms": self.record["arms"],
            "seeds": self.record["seeds"],
            "text": self.record["text"],
            "processes": self.record["processes"],
            "weights": {arm: self._weights(arm) for arm in self.arms},
            "budget": dataclasses.asdict(self.budget),
            "initial": {"name": "starting weights" if pretrained else "random weights", "runs": initial},
            "runs": runs,
            "references": self._references() if self.is_main else {},
        }

    def _write_results(self, results: dict) -> None:
        """Adds the statistics to the results, writes both and the report, and prints the overview."""
        metrics = statistics.metrics_of(results)
        results["summary"] = statistics.summary(metrics)
        records.write_json(self.folder / "results.json", results)
        report.write(results, metrics, self.folder)
        print(report.overview(results, metrics))
        print(f"The whole report: {self.folder / 'report.html'} and report.md; all metrics: results.json.")

    def _references(self) -> dict[str, dict[str, tuple[str, float]]]:
        """What needs no training, by task and metric."""
        frequencies = unigram_cross_entropy(self.text.train, self.text.held_out, self.tokenizer)
        references = {HELD_OUT: {"mlm_loss": ("token frequencies", frequencies)}}
        if "docstrings" in self.tasks:
            pairs = self.tasks["docstrings"].test
            found = tfidf_reciprocal_rank(list(pairs["query"]), list(pairs["document"]))
            references["docstrings"] = {"mrr@10": ("TF-IDF", found)}
        return references


def _differing_parts(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values, and of two dicts only the entries in which they differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one, other
    changed = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return {name: one.get(name) for name in changed}, {name: other.get(name) for name in changed}


def _training_seconds(state: TrainerState) -> float:
    return max((entry.get("training_seconds", 0.0) for entry in state.log_history), default=0.0)


def _curve(history: list[dict], tokens: list[int]) -> list[dict]:
    """The entries of a log that have metrics of held-out text, against tokens read."""
    rows = []
    prefix = "held_out_"
    for entry in history:
        found = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
        if found:
            rows.append({"step": entry["step"], "tokens": tokens[entry["step"]], **found})
    return rows


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Without those of transformers, which shows one for each loading and saving."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def quieten(trainer: SimMIMTrainer, *callbacks: TrainerCallback) -> SimMIMTrainer:
    """The trainer with these callbacks instead of those that print."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer
