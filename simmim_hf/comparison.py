"""`simmim compare`: objectives side by side, from the same weights on the same text for the same budget."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from . import comparison_figures, comparison_report, costs, reporting
from .arms import check_arms, normalise, refuse_decided
from .cli import pretraining_parser, words_of
from .configuration_simmim import OBJECTIVES, WEIGHTS
from .evaluation import Evaluation, EvaluationArguments, tfidf_reciprocal_rank, unigram_cross_entropy
from .held_out import HeldOut
from .language_modelling import load_language_model
from .modeling_simmim import SimMIMForPreTraining
from .pretraining import Pretraining, option
from .trainer import TimeLimit

logger = logging.get_logger(__name__)

# What `simmim compare` without a budget spends on an arm and seed: on the built-in corpus, on other text one pass.
BUILT_IN_BUDGET = 300_000
FEWEST_STEPS = 10
CURVE_POINTS, CURVE_SEQUENCES, CONFLICT_POINTS, LOG_LINES = 8, 256, 10, 20
CALIBRATION_STEPS = 12
HELD_OUT = "held-out text"  # the task that every comparison has
# What a start that was refused may have left in the folder.
BEFORE_TRAINING = {"initial", "calibration"}
# The part of a budget of seconds that is planned for; the rest is for a machine that gets slower.
PLANNED_SHARE = 0.95


@dataclass
class ComparisonArguments:
    """What is compared, for how much, and by what."""

    objectives: list[str] | None = option(
        None, f"Arms by the name of their objective: {', '.join(OBJECTIVES)}. Default: all, or those of --arms."
    )
    arms: str | None = option(
        None, "A YAML file of more arms: a name, and below it any options of `simmim pretrain`, such as temperature."
    )
    seeds: int = option(2, "Runs of each arm, from --seed on; each has its own initial weights and data order.")
    budget_tokens: float | None = option(
        None,
        "Tokens of text that each run reads, counted once however often the objective looks at them. Default: one "
        f"pass over the text; {BUILT_IN_BUDGET:,} of the built-in corpus.",
    )
    budget_flops: float | None = option(None, "Instead: floating-point operations of each run.")
    budget_seconds: float | None = option(None, "Instead: seconds of training of each run.")
    tasks: list[str] | None = option(None, "What the encoders are evaluated on: tasks of `simmim evaluate`.")


@dataclass(frozen=True)
class Budget:
    """What each run may use: an amount of `tokens`, `flops` or `seconds`."""

    unit: str
    amount: float

    @classmethod
    def of(cls, **amounts: float | None) -> "Budget | None":
        """The one that is given, or None. Raises a ValueError for two, or for one that is not above 0."""
        given = {unit: amount for unit, amount in amounts.items() if amount is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(f'--budget_{unit}' for unit in given)}: give one budget.")
        for unit, amount in given.items():
            if not 0 < amount < math.inf:
                raise ValueError(f"--budget_{unit} is {amount:g}: it must be above 0.")
            return cls(unit, amount)
        return None


# ---------------------------------------------------------------------------------------------- callbacks


class Recorder(TrainerCallback):
    """Measures an arm on its way, and notes in the log how long it has trained, without the time of measuring."""

    def __init__(self, trainer, held_out: HeldOut | None, tokens: list[int], title: str):
        self.trainer, self.held_out, self.tokens = trainer, held_out, tokens
        self.bar = functools.partial(
            tqdm, desc=title, unit="tok", unit_scale=True, disable=held_out is None or trainer.args.disable_tqdm
        )

    def on_train_begin(self, args, state, control, **kwargs):
        before = [entry["training_seconds"] for entry in state.log_history if "training_seconds" in entry]
        self.started = time.monotonic() - (before[-1] if before else 0)
        steps = np.linspace(0, state.max_steps, CURVE_POINTS + 1).round().astype(int)
        self.due = {int(step) for step in steps if step >= state.global_step}
        self.bar = self.bar(total=self.tokens[-1], initial=self.tokens[state.global_step])
        if state.global_step == 0:
            self._measure(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(self.tokens[state.global_step] - self.bar.n)
        self._measure(state, control)

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["training_seconds"] = time.monotonic() - self.started

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()

    def _measure(self, state, control) -> None:
        if state.global_step not in self.due or self.held_out is None:
            return
        begun = time.monotonic()
        figures = self.held_out.measure(self.trainer.accelerator.unwrap_model(self.trainer.model))
        spent = time.monotonic() - begun
        self.started += spent
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TimeLimit):
                callback.extend(spent)
        log_is_due = control.should_log
        self.trainer.log({f"held_out_{name}": value for name, value in figures.items()})
        control.should_log = log_is_due


class StepClock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.ends.append(time.monotonic())


# ---------------------------------------------------------------------------------------------- the comparison


class Comparison:
    """Arms, each from the same weights on the same text in the same order for the same budget, with several seeds.

    The order is the same as long as an arm leaves the size of the batches and how they are drawn as they are.

    Everything is in `output_dir`: `initial/seed-N` has the weights that all arms start from, `runs/ARM/seed-N` an arm
    that was trained, and `result.json` in it says that it is finished. Run again, only what is missing is done, and a
    run that was killed goes on from its last checkpoint.

    A budget of tokens decides the steps of a run by the lengths of the texts that it will read: the first number of
    steps that reaches the budget, so that two arms differ by less than a batch. The other budgets are turned into
    tokens by what an arm costs a token: its operations (`costs.training_flops`), averaged over batches from all over
    the text; or its seconds, measured over a dozen steps with learning rate 0 before the first run, of which 95 % are
    planned for, so that the learning rate has come down to its end when the time is up. Training stops at the last
    second in any case; the report says when it stopped early.

    Args:
        arms: name -> options of `simmim pretrain`, with `objective`
        options: options of `simmim pretrain` for all arms, above all `train_file`
        output_dir: a new folder, or that of the same comparison
        seeds: runs of each arm; the first has the seed in `options`, or 42
        budget_tokens, budget_flops, budget_seconds: what each run may use; one of them, or the default
        tasks: what `simmim evaluate` takes as `--tasks`

    Raises:
        ValueError, FileNotFoundError: what cannot work, before anything is trained; the message names the remedy.
    """

    def __init__(
        self,
        arms: dict[str, dict],
        options: dict | None = None,
        output_dir: str = "simmim-comparison",
        seeds: int = 2,
        budget_tokens: float | None = None,
        budget_flops: float | None = None,
        budget_seconds: float | None = None,
        tasks: list[str] | None = None,
    ):
        self.arms, self.folder = check_arms(arms), Path(output_dir)
        refuse_decided(options or {})
        self.options = normalise(words_of({**(options or {}), "output_dir": None}))
        if seeds < 1:
            raise ValueError(f"--seeds is {seeds}: give 1 or more; an interval needs 2.")
        budget = Budget.of(tokens=budget_tokens, flops=budget_flops, seconds=budget_seconds)
        self.is_new = not (self.folder / "comparison.json").is_file()
        if self.is_new and self.folder.is_dir() and not {*os.listdir(self.folder)} <= BEFORE_TRAINING:
            raise ValueError(f"--output_dir `{output_dir}` is not empty and holds no comparison: give another folder.")
        self.seeds = [self.options.get("seed", 42) + i for i in range(seeds)]
        self.text_cache, self.failures = {}, {}
        self.record = {
            "options": self.options,
            "arms": self.arms,
            "seeds": self.seeds,
            "budget": budget and dataclasses.asdict(budget),
            "tasks": tasks or [],
        }
        self._check_record("options", "budget", "tasks")
        self.base = self._base_run(self.seeds[0])
        self.is_main, self.device = self.base.args.process_index == 0, self.base.args.device
        self.hardware = reporting.hardware(self.base.args)
        train, held_out = self.base.trainer.train_dataset, self.base.trainer.eval_dataset
        tokens = sum(train["length"][:])
        self.record["text"] = {"sequences": len(train), "tokens": tokens, "held_out_sequences": len(held_out)}
        self.record["processes"] = self.base.args.world_size
        self._check_record("text", "processes")
        self.budget = budget or Budget("tokens", BUILT_IN_BUDGET if self.base.built_in else tokens)
        batch_size = self.base.args.per_device_eval_batch_size
        few = np.linspace(0, len(held_out) - 1, min(CURVE_SEQUENCES, len(held_out))).astype(int)
        self.held_out = HeldOut(held_out, self.base.collator, batch_size)
        self.curve_text = HeldOut(held_out.select(few), self.base.collator, batch_size)
        with without_progress_bars():
            self._save_initial_weights()
            self.rates = self._rates()
            self.evaluation = self._evaluation(tasks or (["docstrings"] if self.base.built_in else []))
        if self.is_main:
            write_json(self.folder / "comparison.json", self.record)

    # The folder

    def _initial(self, seed: int) -> Path:
        return self.folder / "initial" / f"seed-{seed}"

    def _run_folder(self, arm: str, seed: int) -> Path:
        return self.folder / "runs" / arm / f"seed-{seed}"

    def _check_record(self, *names: str) -> None:
        """Refuses a folder in which another comparison was begun; more arms and more seeds are welcome."""
        path = self.folder / "comparison.json"
        if not path.is_file():
            return
        old, new = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(self.record))
        pairs = {name: (old.get(name), new[name]) for name in names}
        pairs |= {f"the arm `{arm}`": (options, new["arms"].get(arm)) for arm, options in old["arms"].items()}
        if old["seeds"] != new["seeds"][: len(old["seeds"])]:
            pairs["seeds"] = old["seeds"], new["seeds"]
        for name, (before, now) in pairs.items():
            if before == now:
                continue
            if isinstance(before, dict) and isinstance(now, dict):
                changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
                before, now = ({k: side.get(k) for k in changed} for side in (before, now))
            raise ValueError(
                f"`{self.folder}` holds another comparison: {name} was {json.dumps(before)} and is now "
                f"{json.dumps(now)}. Give another --output_dir, or the same options."
            )
        self.record = {**old, **self.record}

    # Runs

    def _pretraining(self, options: dict) -> Pretraining:
        options = {"report_to": "none", "max_minutes": math.inf, "overwrite_output_dir": True, **options}
        arguments = pretraining_parser().parse_args_into_dataclasses(words_of(options), look_for_args_file=False)
        return Pretraining(*arguments, text_cache=self.text_cache)

    def _base_run(self, seed: int) -> Pretraining:
        """A run that is never trained: it reads the text, and makes the initial weights of a seed."""
        options = {k: v for k, v in self.options.items() if k not in ("conflict_steps", "weight_schedule")}
        if not self.is_new or seed != self.seeds[0]:
            options["tokenizer_name"] = str(self._initial(self.seeds[0]))
        return self._pretraining({**options, "seed": seed, "output_dir": str(self.folder / "initial")})

    def _save_initial_weights(self) -> None:
        for seed in self.seeds:
            initial, writing = self._initial(seed), self.folder / "initial" / "writing"
            if not in_all_processes(self.is_new or not initial.is_dir()):
                continue
            run = self.base if seed == self.seeds[0] else self._base_run(seed)
            if self.is_main:
                for left_over in (writing, initial):
                    shutil.rmtree(left_over, ignore_errors=True)
                run.model.save_pretrained(writing)
                run.tokenizer.save_pretrained(writing)
                os.replace(writing, initial)
            in_all_processes(None)
            discard(run)
        discard(self.base)  # also where the weights of all seeds were saved before

    def _evaluation(self, tasks: list[str]) -> Evaluation | None:
        """The tasks, read and checked; which model they are asked of is set later."""
        if not tasks:
            return None
        options = {"seed": self.seeds[0], "device": str(self.device), "overwrite_output_dir": True}
        options |= {"max_seq_length": self.base.max_length, "output_dir": str(self.folder)}
        return Evaluation(EvaluationArguments(model=str(self._initial(self.seeds[0])), tasks=tasks, **options))

    def _arm_run(self, arm: str, seed: int, **more) -> Pretraining:
        """The run of an arm, not yet trained."""
        initial = str(self._initial(seed))
        options = {"learning_rate": self.base.args.learning_rate, **self.options, **self.arms[arm]}
        options |= {"model_name_or_path": initial, "tokenizer_name": initial, "text_config": None, "seed": seed}
        options |= {"output_dir": str(self._run_folder(arm, seed)), **more}
        if not self._is_joint(arm):
            options.pop("conflict_steps", None)
        try:
            return self._pretraining(options)
        except ValueError as error:
            raise ValueError(f"the arm `{arm}`: {error}") from error

    def _weights(self, arm: str) -> dict[str, float]:
        """The weights of an arm's terms."""
        options = {**self.options, **self.arms[arm]}
        return {name: {**OBJECTIVES[options["objective"]], **options}[name] for name in WEIGHTS}

    def _is_joint(self, arm: str) -> bool:
        weights = self._weights(arm)
        return bool(weights["mlm_weight"] and weights["contrastive_weight"])

    def _rates(self) -> dict[str, float]:
        """What each arm costs for a token of text, in the unit of the budget. Makes every arm once, to see that it
        can be made and that its budget is enough."""
        rates = self.record.setdefault("rates", {})
        for arm in self.arms:
            run = self._arm_run(arm, self.seeds[0], output_dir=str(self.folder / "calibration"))
            if arm not in rates:
                rates[arm] = self._rate(run, arm)
            steps = self._plan(run, rates[arm])[0]
            if steps < FEWEST_STEPS:
                raise ValueError(
                    f"--budget_{self.budget.unit} {self.budget.amount:g} is enough for {steps} steps of the arm "
                    f"`{arm}`: give {FEWEST_STEPS / steps:.0f} times as much or more, or smaller batches "
                    "(--per_device_train_batch_size)."
                )
            discard(run)
        if self.is_main:
            shutil.rmtree(self.folder / "calibration", ignore_errors=True)
        return rates

    def _rate(self, run: Pretraining, arm: str) -> float:
        if self.budget.unit == "tokens":
            return 1.0
        if self.budget.unit == "flops":
            return costs.flops_per_token(run.trainer)
        clock, folder = StepClock(), str(self.folder / "calibration")
        options = {"learning_rate": 0.0, "max_steps": CALIBRATION_STEPS, "save_strategy": "no"}
        run = self._arm_run(arm, self.seeds[0], output_dir=folder, **options)
        tokens = list(itertools.islice(costs.tokens_of_steps(run.trainer), CALIBRATION_STEPS))
        quieten(run.trainer, clock).train()
        discard(run)
        # The first steps warm up.
        seconds = (clock.ends[-1] - clock.ends[1]) / sum(tokens[2:])
        return in_all_processes(seconds / PLANNED_SHARE)

    def _plan(self, run: Pretraining, rate: float) -> tuple[int, list[int]]:
        """How many steps the budget pays for, and the tokens that are read before each of them and after the last."""
        counts, tokens = costs.tokens_of_steps(run.trainer), [0]
        while tokens[-1] * rate < self.budget.amount:
            tokens.append(tokens[-1] + next(counts))
        return len(tokens) - 1, tokens

    # Running

    def run(self, argv: list[str] | None = None) -> dict:
        """Does what is missing and writes the report.

        Args:
            argv: the command line behind `simmim`, to be recorded

        Returns:
            What `results.json` holds.
        """
        for seed in self.seeds:
            with without_progress_bars():
                self._measure_initial_weights(seed)
            for arm in self.arms:
                if in_all_processes((self._run_folder(arm, seed) / "result.json").is_file()):
                    continue
                try:
                    with without_progress_bars():
                        self._run(arm, seed)
                except Exception as error:
                    if dist.is_initialized():
                        raise  # the other processes would wait for this one
                    logger.exception(f"The arm `{arm}` failed with seed {seed}.")
                    self.failures[arm, seed] = f"{type(error).__name__}: {error}"
                in_all_processes(None)
        results = self._collect(argv)
        if self.is_main:
            results["summary"] = comparison_figures.summary(results)
            write_json(self.folder / "results.json", results)
            comparison_report.write(results, self.folder)
            print(comparison_report.overview(results))
            print(f"The whole report: {self.folder / 'report.html'} and report.md; all figures: results.json.")
        in_all_processes(None)
        return results

    def _run(self, arm: str, seed: int) -> None:
        folder = self._run_folder(arm, seed)
        checkpoint, state = last_checkpoint(folder)
        spent = max((entry.get("training_seconds", 0.0) for entry in state.log_history), default=0.0)
        limit = (self.budget.amount - spent) / 60 if self.budget.unit == "seconds" else math.inf
        run = self._arm_run(arm, seed, max_minutes=limit)
        trainer = run.trainer
        steps, tokens = self._plan(run, self.rates[arm])
        run.args.max_steps = steps
        # The log has what a picture needs; a checkpoint falls on a line of the log, which then is complete in it.
        if "logging_steps" not in self.options:
            run.args.logging_steps = max(1, steps // LOG_LINES)
            run.args.save_steps = math.ceil(run.args.save_steps / run.args.logging_steps) * run.args.logging_steps
        if self._is_joint(arm) and trainer.conflict_steps is None and self.budget.unit != "seconds":
            trainer.conflict_steps = max(1, steps // CONFLICT_POINTS)
        trainer.floating_point_ops = functools.partial(costs.flops_of_step, trainer)
        costs.reset_peak_memory(self.device)
        title = f"{arm}, seed {seed}"
        outcome = {"status": "finished"}
        try:
            if state.global_step < steps:
                recorder = Recorder(trainer, self.curve_text if self.is_main else None, tokens, title)
                quieten(trainer, recorder).train(resume_from_checkpoint=checkpoint)
                state = trainer.state
            else:  # killed between its last step and its result
                run.model.load_state_dict(SimMIMForPreTraining.from_pretrained(checkpoint).state_dict())
        except FloatingPointError as error:
            # A loss that is not finite is a result. Whatever else goes wrong is tried again next time.
            outcome, state = {"status": "failed", "reason": str(error)}, trainer.state
        memory = costs.peak_memory(self.device)
        if outcome["status"] == "finished":
            trainer.save_model()
        if self.is_main:
            if outcome["status"] == "finished":
                outcome["figures"] = self._figures(run.model, folder)
            outcome |= {
                "planned_steps": steps,
                "steps": state.global_step,
                "tokens": tokens[state.global_step],
                "flops": state.total_flos,
                "seconds": max((entry.get("training_seconds", 0.0) for entry in state.log_history), default=0.0),
                "peak_memory_bytes": memory,
                "parameters": run.model.num_parameters(),
                "curve": _logged(state.log_history, tokens, "held_out_"),
                "conflict": _logged(state.log_history, tokens, "gradient_cosine", *CONFLICT_NORMS),
            }
            write_json(folder / "result.json", outcome)
            for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(path)
        trainer.accelerator.free_memory()
        discard(run)

    def _figures(self, model: SimMIMForPreTraining, folder: Path) -> dict[str, dict[str, float]]:
        """Every figure of a model that is saved in a folder, by task."""
        figures = {HELD_OUT: self.held_out.measure(model)}
        if self.evaluation is not None:
            self.evaluation.model = model
            if self.evaluation.language_model is not None:
                self.evaluation.language_model = load_language_model(str(folder))
                self.evaluation.language_model.model.to(self.device)
            for name, task in self.evaluation.tasks.items():
                figures[name] = self.evaluation.measure(task)
            # On a GPU they would count in the peak memory of the next arm.
            self.evaluation.model = None
            if self.evaluation.language_model is not None:
                self.evaluation.language_model.model.to("cpu")
        return figures

    def _measure_initial_weights(self, seed: int) -> None:
        path = self._initial(seed) / "result.json"
        if self.is_main and not path.is_file():
            model = SimMIMForPreTraining.from_pretrained(self._initial(seed)).to(self.device)
            write_json(path, {"figures": self._figures(model, path.parent)})

    def _collect(self, argv: list[str] | None) -> dict:
        """All results so far; what is missing is a failure of this time."""
        runs = []
        for arm in self.arms:
            for seed in self.seeds:
                path = self._run_folder(arm, seed) / "result.json"
                result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                failure = {"status": "failed", "reason": self.failures.get((arm, seed), "not run yet")}
                runs.append({"arm": arm, "seed": seed, **(result or failure)})
        initial = [
            json.loads((self._initial(seed) / "result.json").read_text(encoding="utf-8")) for seed in self.seeds
        ]
        pretrained = "model_name_or_path" in self.options
        return {
            **({} if argv is None else {"command": reporting.command(argv)}),
            "versions": reporting.versions(),
            "hardware": self.hardware,
            "options": reporting.without_folders(self.options),
            **{name: self.record[name] for name in ("arms", "seeds", "text", "processes")},
            "weights": {arm: self._weights(arm) for arm in self.arms},
            "budget": dataclasses.asdict(self.budget),
            "initial": {
                "name": "starting weights" if pretrained else "random weights",
                "runs": [{"seed": seed, **result} for seed, result in zip(self.seeds, initial, strict=True)],
            },
            "runs": runs,
            "references": self._references() if self.is_main else {},
        }

    def _references(self) -> dict[str, dict[str, tuple[str, float]]]:
        """What needs no training, by task and figure."""
        texts = self.base.trainer.train_dataset, self.base.trainer.eval_dataset
        frequencies = unigram_cross_entropy(*texts, self.base.tokenizer)
        references = {HELD_OUT: {"mlm_loss": ("token frequencies", frequencies)}}
        if self.evaluation is not None and "docstrings" in self.evaluation.tasks:
            pairs = self.evaluation.tasks["docstrings"].test
            found = tfidf_reciprocal_rank(list(pairs["query"]), list(pairs["document"]))
            references["docstrings"] = {"mrr@10": ("TF-IDF", found)}
        return references


CONFLICT_NORMS = ("mlm_gradient_norm", "contrastive_gradient_norm")


def _logged(history: list[dict], tokens: list[int], *prefixes: str) -> list[dict]:
    """The entries of a log that have quantities with these prefixes, which are taken off, against tokens read."""
    rows = []
    for entry in history:
        found = {name.removeprefix("held_out_"): v for name, v in entry.items() if name.startswith(prefixes)}
        if found:
            rows.append({"step": entry["step"], "tokens": tokens[entry["step"]], **found})
    return rows


def last_checkpoint(folder: Path) -> tuple[str | None, TrainerState]:
    """The newest checkpoint that was written to its end, and its state; None and a new state where there is none."""
    steps = sorted((int(path.name.split("-")[1]) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")), reverse=True)
    for step in steps:
        path = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return str(path), TrainerState.load_from_json(str(path / "trainer_state.json"))
    return None, TrainerState()


def in_all_processes(value):
    """The value of the main process; waits until all processes are here."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def without_progress_bars():
    """Without those of transformers, which shows one for each loading and saving."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def quieten(trainer, *callbacks: TrainerCallback):
    """The trainer with these callbacks instead of those that print."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def discard(run: Pretraining) -> None:
    """Gives the weights of a run back, which its trainer and callbacks hold in circles."""
    trainer = run.trainer
    run.model = trainer.model = trainer.model_wrapped = trainer.callback_handler.model = None


def write_json(path: Path, content: dict) -> None:
    """Writes all of a file or nothing; what is no number, such as the loss of an arm that diverged, becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _finite(value):
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
