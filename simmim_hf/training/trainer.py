"""The ordinary Trainer of transformers, which also logs every term of the SimMIM loss."""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.trainer
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerControl, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import logging

from .. import folders, memory, records
from ..data.collator import DataCollatorForSimMIM
from ..model.configuration_simmim import Objective
from ..model.losses import alignment, uniformity
from ..model.objective import TERMS, SimMIMForPreTrainingOutput
from ..options import error_prefix
from . import agreement, card, checkpoints, sampling, sharding
from .arguments import (
    METHOD_OPTIONS,
    SimMIMTrainingArguments,
    check_method_options,
    read_weight_schedule,
    refuse_compiling,
)
from .callbacks import LastStepLogged, SamplerEpoch, SimilarLengthSampler
from .facts import OBJECTIVE_OPTIONS, TRAINING_OPTIONS, precision, run_facts, tokens_read
from .measuring import Meter

logger = logging.get_logger(__name__)

# What the collator reads beside the arguments of the model's forward; `length` groups sequences of similar length.
COLLATOR_COLUMNS = ["text", "negative", "special_tokens_mask", "length", "draw"]
# The options that change when training stops, what is logged and how much memory is used, but not what is learned;
# and what a configuration says of other things than the network.
MEANINGLESS = ("max_skipped_steps", "chunk_size", "gradient_checkpointing")
UNRELATED = ("transformers_version", "architectures", "_name_or_path", "dtype")


class SimMIMTrainer(Trainer):
    """`Trainer` for `SimMIMForPreTraining`, with the same arguments.

    It logs, beside the loss, each term, the accuracy of the masked and of the contrastive prediction, alignment and
    uniformity (Wang & Isola 2020) and the tokens that the encoder reads, in all and per second (of every view, over
    all processes, without padding); it evaluates the same metrics; it weights the micro-batches of gradient
    accumulation by their numbers of corrupted positions and sequences, so that accumulation is exact for every term;
    it skips a step whose loss or gradient is not finite, and stops at too many in a row; its checkpoints are whole or
    absent, `resume_from_checkpoint=True` takes the newest whole one, and each has the collator's settings, the
    training arguments as JSON, and a record of what the run depends on; and its model card states what is known.

    Args:
        model, data_collator, train_dataset, eval_dataset, processing_class, model_init: as in `Trainer`
        args: `SimMIMTrainingArguments`, or transformers' own; the Trainer keeps a copy, `self.args`
        chunk_size, weight_schedule, max_skipped_steps: as in `SimMIMTrainingArguments`, and instead of what stands
            there
        options: the others of `Trainer`, such as `compute_metrics`, `callbacks` and `optimizers`
    """

    args: TrainingArguments
    control: TrainerControl
    data_collator: Any
    _signature_columns: list[str]
    _is_finite: torch.Tensor | bool
    # What `simmim pretrain` recorded for the card; without it the card states what the Trainer itself knows.
    results: dict | None = None
    _is_saving = False
    _is_counted = True
    _has_trained = False  # or is training: the model is prepared for it

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list], dict] | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        *,
        chunk_size: int | None = None,
        weight_schedule: dict[str, list[tuple[float, float]]] | None = None,
        max_skipped_steps: int | None = None,
        **options,
    ) -> None:
        # On a CPU, oneDNN keeps what it compiled for the last 1,024 shapes. Batches without padding have new ones at
        # every step: memory grew by hundreds of megabytes. One step needs fewer than 64. It is read at the first use.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, processing_class, model_init, **options
        )
        if self.args.n_gpu > 1:
            logger.warning(
                f"One of the {self.args.n_gpu} GPUs is used: DataParallel would give each only its own negatives. "
                "`accelerate launch` or `torchrun --nproc_per_node` use all."
            )
            self.args._n_gpu = 1
            self._train_batch_size = self.args.train_batch_size
        refuse_compiling(self.args)
        self.args = copy.copy(self.args)  # other Trainers may share them
        self.args.dataloader_pin_memory &= self.args.device.type != "cpu"  # or torch warns
        given = {"chunk_size": chunk_size, "weight_schedule": weight_schedule, "max_skipped_steps": max_skipped_steps}
        for name in METHOD_OPTIONS:  # transformers' own arguments do not have them
            default = getattr(self.args, name, getattr(SimMIMTrainingArguments, name))
            setattr(self.args, name, given[name] if given[name] is not None else default)
        self.args.weight_schedule = read_weight_schedule(self.args.weight_schedule)
        check_method_options(self.args, self._unwrapped_model().config)
        sharding.prepare(self, self._unwrapped_model())
        if self.args.chunk_size is not None:
            self._unwrapped_model().chunk_size = self.args.chunk_size
        schedule = self.args.weight_schedule or {}
        if any(not weight for points in schedule.values() for _, weight in points) and self.args.world_size > 1:
            self.args.ddp_find_unused_parameters = True  # a term that is left out has parameters without a gradient
        self._training_meter = Meter()
        self._evaluation_meter = Meter()
        self._tokens = 0
        self._tokens_since: float | None = None
        self._skipped = 0
        self._shares: deque[dict[str, float]] = deque()
        self.add_callback(SamplerEpoch())
        self.add_callback(LastStepLogged())
        self.add_callback(agreement.SameWeights(self))
        if isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            # Accelerate would cut batches of different lengths in the first process and send them to the others.
            self.accelerator.dataloader_config.dispatch_batches = False

    def init_hf_repo(self, *args, **kwargs) -> None:
        with error_prefix("--push_to_hub"):  # the Hub cannot be reached, or wants a token: said before training
            super().init_hf_repo(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *COLLATOR_COLUMNS]))

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.data_seed
            if seed is None:
                seed = self.args.seed
            # A column of a dataset takes far longer to give its numbers one by one.
            lengths = list(sampler.lengths[:])
            return SimilarLengthSampler(sampler.batch_size * self.args.world_size, lengths, seed)
        return sampler

    def _get_eval_sampler(self, eval_dataset) -> Sampler | None:
        sampler = super()._get_eval_sampler(eval_dataset)
        if isinstance(sampler, LengthGroupedSampler):  # in another random order each time
            return sampling.ShortestFirstSampler(list(sampler.lengths[:]))
        return sampler

    def get_train_dataloader(self) -> DataLoader:
        collator = self.data_collator
        if isinstance(collator, DataCollatorForSimMIM):
            self.data_collator = sampling.PassCollator(collator)
        try:
            return sampling.share_batches(super().get_train_dataloader())
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        with self._without_drop_last():
            return sampling.keep_batches_whole(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        with self._without_drop_last():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def _without_drop_last(self) -> Iterator[None]:
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False  # it is for training
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_batch_samples(self, epoch_iterator, num_batches, device) -> tuple[list, torch.Tensor | int | None]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._shares = deque(self._shares_of(batches) if len(batches) > 1 else [])
        return batches, num_items

    def _shares_of(self, batches: list[dict]) -> list[dict[str, float]]:
        """For each micro-batch and term its part of all things averaged over, times the number of micro-batches."""
        model = self._unwrapped_model()
        objective = self.current_objective()
        counted = [model.counts(objective, **batch) for batch in batches]
        counts = torch.stack([torch.stack(list(counts.values())) for counts in counted]).float()  # (batches, terms)
        counts = self.accelerator.reduce(counts.to(self.accelerator.device), reduction="sum")
        shares = len(batches) * counts / counts.sum(0).clamp(min=1)
        return [dict(zip(counted[0], row, strict=True)) for row in shares.tolist()]

    def objective_at(self, share: float) -> Objective:
        """That of the configuration, with the weights that the schedule has after a share of the training."""
        weights = {}
        for name, points in (self.args.weight_schedule or {}).items():
            shares, values = zip(*points, strict=True)
            weights[name] = float(np.interp(share, shares, values))
        return dataclasses.replace(self._unwrapped_model().config.objective, **weights)

    def current_objective(self) -> Objective:
        return self.objective_at(self.state.global_step / max(self.state.max_steps, 1))

    def _unwrapped_model(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model)
        # peft keeps attributes that are set on it to itself.
        if hasattr(model, "get_base_model"):
            return model.get_base_model()
        return model

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ) -> torch.Tensor | tuple[torch.Tensor, SimMIMForPreTrainingOutput]:
        unwrapped = self._unwrapped_model()
        is_training = unwrapped.training  # an engine of DeepSpeed says True in evaluation too
        objective = unwrapped.config.objective  # evaluation keeps it
        if is_training:
            objective = self.current_objective()
        outputs = model(**inputs, objective=objective)
        terms = {name: outputs[name] for name in TERMS if outputs.get(name) is not None}
        loss = outputs.loss
        if is_training and self._shares:
            share = self._shares.popleft()
            # Trainer divides by the number of micro-batches afterwards.
            loss = unwrapped.weighted_sum({name: share[name] * term for name, term in terms.items()}, objective)
        self._observe(is_training, outputs)
        if is_training:
            self._tokens = self._tokens + outputs.num_tokens
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _observe(self, training: bool, outputs) -> None:
        # A training step that is not finite is skipped; a batch of evaluation may only keep step with other processes.
        meter = self._training_meter if training else self._evaluation_meter
        is_counted = outputs.loss.isfinite() if training else self._is_counted
        for name, count in outputs.counts.items():
            meter.add({name: outputs[name]}, count, is_counted)
        if outputs.original_embeds is not None:
            rows = len(outputs.original_embeds)
            meter.add({"alignment": alignment(outputs.original_embeds, outputs.masked_embeds)}, rows, is_counted)
            rows_in_pairs = rows if rows > 1 else 0
            meter.add({"uniformity": uniformity(outputs.original_embeds)}, rows_in_pairs, is_counted)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self._tokens_since is None:
            self._tokens_since = time.monotonic()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._is_finite = loss.isfinite() & self._is_finite
        return loss

    def _get_grad_norm(self, model, grad_norm=None) -> float | None:
        """The norm of the whole gradient; takes a gradient away that is not finite, or of a loss that is not."""
        norm = super()._get_grad_norm(model, grad_norm)
        is_finite = bool(self._is_finite) and (norm is None or math.isfinite(norm))
        wrong = self.accelerator.reduce(torch.tensor(float(not is_finite), device=self.args.device), reduction="sum")
        self._is_finite = True
        if not wrong:
            self._skipped_in_a_row = 0
            return norm
        model.zero_grad()  # without one, the optimizer leaves the weights and its state as they are
        self._skipped += 1
        self._skipped_in_a_row += 1
        self._skipped_at = self.state.global_step + 1
        allowed = self.args.max_skipped_steps
        if self.is_deepspeed_enabled:  # it has made its step by now
            allowed = 0
        self._stop_unless_finite(allowed)
        return norm

    def _finalize_training(self, *args, **kwargs) -> TrainOutput:
        self._stop_unless_finite(1)  # what ends in several such steps has not come back to its way
        return super()._finalize_training(*args, **kwargs)

    def _stop_unless_finite(self, skipped: int) -> None:
        if self._skipped_in_a_row > skipped:
            raise FloatingPointError(
                f"The loss or its gradient is not finite at step {self._skipped_at}, nor in the "
                f"{self._skipped_in_a_row - 1} before it (--max_skipped_steps): they changed no weights, and the "
                f"checkpoints in {self.args.output_dir} stay. Lower the learning rate (now "
                f"{self._get_learning_rate():g}), set a longer warm-up, or raise the temperature."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._training_meter.read(self.accelerator)
        if "loss" in logs or "train_runtime" in logs:  # the latter when training has ended
            tokens = self.accelerator.reduce(torch.as_tensor(self._tokens, device=self.accelerator.device)).item()
            logs["tokens_read"] = tokens_read(self.state.log_history) + tokens
            seconds = time.monotonic() - (self._tokens_since or time.monotonic())
            if "loss" in logs and seconds > 0:
                logs["tokens_per_second"] = round(tokens / seconds)
            self._tokens = 0
            self._tokens_since = None
            if self._skipped:
                logs["skipped_steps"] = self._skipped
                self._skipped = 0
        # With `start_time` transformers would add its own tokens per second, over the whole run, to each entry.
        super().log(logs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """The loss and what is logged beside it, over the rows of all processes: the same for any number of them.

        Each batch is one process's own, with the negatives in it. Nothing is gathered but sums and counts, and the
        model is not prepared for evaluation: accelerate would return it to `train()` as it is, without
        DistributedDataParallel, and the processes would train a model each.

        Raises:
            ValueError: the model is not ready, which only training makes it.
        """
        self._evaluation_meter = Meter()
        args = self.args
        is_plain = prediction_loss_only and not (args.fp16_full_eval or args.bf16_full_eval)
        if not self._has_trained and args.world_size > 1 and (self._trains_in_parts or not is_plain):
            raise ValueError(
                "evaluate() before train() would leave a model that several processes cannot train together: give "
                "--eval_on_start instead, which evaluates when training has prepared it."
            )
        remedy = f"Give a smaller --per_device_eval_batch_size (now {args.per_device_eval_batch_size})."
        with memory.remedied(remedy):
            if is_plain:
                output = self._evaluate_batches(dataloader)
            else:
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
                )
        measured = self._evaluation_meter.read(self.accelerator)
        if is_plain:
            terms = {name: measured[name] for name in TERMS if name in measured}
            measured["loss"] = float(self._unwrapped_model().weighted_sum(terms))
        for name, value in measured.items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    @property
    def _trains_in_parts(self) -> bool:
        """Whether a process alone lacks weights, gradients or the state of the optimizer."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @torch.no_grad()
    def _evaluate_batches(self, dataloader) -> EvalLoopOutput:
        """Reads all batches of this process, which notes what they add to the mean over all processes."""
        model = self.model_wrapped if self._trains_in_parts else self.model
        model.eval()
        if hasattr(self.optimizer, "eval"):  # such as a schedule-free one
            self.optimizer.eval()
        self.callback_handler.eval_dataloader = dataloader
        own_batches = sampling.batches_of_process(dataloader)
        for step, inputs in enumerate(dataloader):
            self._is_counted = step < own_batches
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                self.compute_loss(model, inputs)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self._is_counted = True
        return EvalLoopOutput(None, None, {}, num_samples=self.num_examples(dataloader))

    @functools.cached_property
    def record(self) -> dict:
        """What this run depends on: its `meaning`, without which it would be another run, and where it ran."""
        config = self._unwrapped_model().config
        backbone = config.text_config.to_dict()
        text = {"training": self.train_dataset, "held-out": self.eval_dataset}
        args = self.args
        collator = self.data_collator
        corruption = []
        if isinstance(collator, DataCollatorForSimMIM):
            corruption = [field.name for field in dataclasses.fields(collator) if field.name != "tokenizer"]
        training = {name: getattr(args, name, None) for name in TRAINING_OPTIONS if name not in MEANINGLESS}
        meaning = {
            "backbone": {name: backbone[name] for name in backbone if name not in UNRELATED},
            "objective": {name: getattr(config, name) for name in OBJECTIVE_OPTIONS},
            "corruption": {name: getattr(collator, name) for name in corruption},
            "training": {**training, "precision": precision(self), "processes": args.world_size},
            "text": {name: records.fingerprint(rows) for name, rows in text.items()},
        }
        ran = {"versions": records.versions(), "hardware": records.hardware(args), "revision": records.git_revision()}
        return {"meaning": records.without_folders(meaning), **ran}

    def train(self, resume_from_checkpoint=None, *args, **kwargs) -> TrainOutput:
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoints.to_resume(resume_from_checkpoint, self.args.output_dir)
        self._is_finite = True
        self._skipped_in_a_row = 0
        agreement.check_start(self)
        self._has_trained = True
        with memory.remedied(less_memory(self.args)):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args, **kwargs) -> None:
        # A checkpoint of the last step may be resumed, and Trainer would take one step more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        if self._is_saving:
            return os.path.join(folder, folders.SAVING)
        return folder

    def _save_checkpoint(self, model, trial) -> None:
        run = Path(self._get_output_dir(trial))
        target = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        written = run / folders.SAVING / target.name
        if self.is_local_process_zero():
            shutil.rmtree(written.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            with checkpoints.saving(run):
                super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(target)
            with checkpoints.saving(run):
                if self.args.should_save:
                    self._publish_checkpoint(written, target)
        except Exception:
            shutil.rmtree(written.parent, ignore_errors=True)  # a disk that is full has room again
            raise
        finally:
            self._is_saving = False
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _publish_checkpoint(self, written: Path, target: Path) -> None:
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))  # again, for the name of the best one
        records.write_json(written / checkpoints.RECORD, self.record)
        checkpoints.seal(written)
        checkpoints.publish(written, target)
        best = Path(self.state.best_model_checkpoint or target)
        checkpoints.rotate(target.parent, self.args.save_total_limit, keep={target, best})

    def _save(self, output_dir=None, state_dict=None) -> None:
        if not self.args.should_save:
            super()._save(output_dir, state_dict)  # a sharded model is gathered by all processes
            return
        folder = Path(output_dir or self.args.output_dir)
        written = folder / folders.SAVING / "model"
        shutil.rmtree(written, ignore_errors=True)
        try:
            if state_dict is not None:  # gathered from shards, where a tied weight has become a second tensor
                tied = self._unwrapped_model().all_tied_weights_keys
                state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
            with _without_pickled_arguments():
                super()._save(str(written), state_dict)
            arguments = records.without_secrets(self.args.to_dict())
            with open(written / "training_args.json", "w", encoding="utf-8") as file:
                json.dump(records.without_folders(arguments), file, indent=2)
            if isinstance(self.data_collator, DataCollatorForSimMIM):
                self.data_collator.save_pretrained(written)
            checkpoints.replace_model(written, folder)
        finally:
            shutil.rmtree(written.parent, ignore_errors=True)

    def ensure_checkpoint(self) -> None:
        """Saves the last step, where no checkpoint has it: an evaluation was interrupted."""
        step = self.state.global_step
        target = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if step and not checkpoints.in_all_processes(target.is_dir()):
            self._save_checkpoint(self.model, trial=None)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._is_saving:  # the upload goes on in the background, and the folder is about to be renamed
            return
        # transformers copies the configuration, but not the code to which it refers.
        self.accelerator.unwrap_model(self.model).config.save_pretrained(self.args.output_dir)
        with _without_pickled_arguments():
            super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes README.md and the training curves into `output_dir`, as `push_to_hub` does.

        A README.md that a person has edited stays as it is.

        Args:
            language: ISO 639 codes.
            license: an identifier of the Hub, such as `apache-2.0`.
            tags: beside those of the objective.
            model_name: the title. Default: the name on the Hub, or that of the folder.
            finetuned_from: the Hub id of the model from which training started.
            dataset_tags: the Hub ids of the training data.
            tasks, dataset, dataset_args: options of transformers' card, which this one does not need.
        """
        if self.is_world_process_zero():
            facts = dict(self.results or run_facts(self))
            if finetuned_from:
                facts["base_model"] = finetuned_from
            if dataset_tags:
                facts["data"] = {**facts.get("data", {}), "datasets": _as_list(dataset_tags)}
            card.write_trainer_card(
                self, facts, name=model_name, license=license, language=_as_list(language), tags=_as_list(tags)
            )


@contextlib.contextmanager
def _without_pickled_arguments() -> Iterator[None]:
    """transformers pickles the arguments beside what it saves and uploads; in here, to nowhere.

    A pickle can execute code when it is opened, this one holds the access token, and nothing reads it. Trainer has no
    option that leaves it out, only this name of its module.
    """
    transformers.trainer.TRAINING_ARGS_NAME = os.devnull  # which is absolute: joined with a folder it stays that
    try:
        yield
    finally:
        transformers.trainer.TRAINING_ARGS_NAME = TRAINING_ARGS_NAME


def less_memory(args: TrainingArguments) -> str:
    """What makes a step of training take less memory."""
    return (
        f"Give a smaller --chunk_size (now {getattr(args, 'chunk_size', None)}), which changes no gradient, a smaller "
        f"--per_device_train_batch_size (now {args.per_device_train_batch_size}) with --gradient_accumulation_steps, "
        "--gradient_checkpointing or --bf16."
    )


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
