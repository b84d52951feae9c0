"""The ordinary Trainer of transformers, which also logs every term of the SimMIM loss."""

import contextlib
import dataclasses
import random
import time
from collections import defaultdict, deque

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from .data_collator import DataCollatorForSimMIM
from .losses import alignment, uniformity

# What the collator reads beside the arguments of the model's forward; `length` groups sequences of similar length.
COLLATOR_COLUMNS = ["text", "negative", "special_tokens_mask", "length"]


class SimilarLengthSampler(LengthGroupedSampler):
    """Batches of similar length in random order, the same for a seed and an epoch even when training is resumed.

    Sequences of one length save padding, and keep the contrastive term from telling pairs apart by their length alone.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.epoch}").getrandbits(63))
        indices = list(super().__iter__())
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        # The longest batch stays first, to run out of memory early or never; a short one stays last.
        full = len(indices) // self.batch_size
        order = [
            0,
            *(1 + torch.randperm(max(full - 1, 0), generator=self.generator)).tolist(),
            *range(full, len(batches)),
        ]
        return iter([index for batch in order[: len(batches)] for index in batches[batch]])


class MaskRatioSchedule(TrainerCallback):
    """Tells a collator with a schedule where training stands; `SimMIMTrainer` adds it by itself."""

    def __init__(self, data_collator: DataCollatorForSimMIM):
        self.data_collator = data_collator

    def on_train_begin(self, args, state, control, **kwargs):
        self.resumed_at = state.global_step
        self.data_collator.set_schedule(state.max_steps * args.gradient_accumulation_steps)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        first = state.global_step * args.gradient_accumulation_steps
        streams = isinstance(getattr(train_dataloader, "dataset", None), torch.utils.data.IterableDataset)
        if streams and state.global_step == self.resumed_at and not args.ignore_data_skip:
            first = 0
        self.data_collator.begin(first)


class SamplerEpoch(TrainerCallback):
    """Tells the sampler the epoch where Trainer does not reach it: behind the skipped batches of a resumed run."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler = getattr(sampler, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch))


class TimeLimit(TrainerCallback):
    """Ends training after a number of minutes, as if the last step had been reached."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        over = torch.tensor(float(time.monotonic() - self.start >= self.seconds), device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(over, 0)
        if over:
            control.should_training_stop = True


class Meter:
    """Weighted means of named quantities since they were last read, over all processes."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor | float] = defaultdict(float)
        self.weights: dict[str, torch.Tensor | float] = defaultdict(float)

    def add(self, values: dict[str, torch.Tensor], weight: torch.Tensor | int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.detach().float() * weight
            self.weights[name] = self.weights[name] + weight

    def read(self, accelerator) -> dict[str, float]:
        if not self.sums:
            return {}
        names = list(self.sums)
        local = torch.stack(
            [torch.as_tensor(part[n], dtype=torch.float32) for n in names for part in (self.sums, self.weights)]
        )
        total = accelerator.reduce(local.to(accelerator.device), reduction="sum").view(-1, 2).tolist()
        self.__init__()
        return {name: sum / weight for name, (sum, weight) in zip(names, total, strict=True) if weight}


class SimMIMTrainer(Trainer):
    """`Trainer` for `SimMIMForPreTraining`, with the same arguments.

    It logs, beside the loss, each term, the accuracy of the masked and of the contrastive prediction, alignment and
    uniformity (Wang & Isola 2020) and the real tokens per second (tokens of the original sequences over all processes,
    without padding, each counted once); it evaluates the same quantities; it weights the micro-batches of gradient
    accumulation by their numbers of corrupted positions and sequences, so that accumulation is exact for every term;
    it stops at a loss that is not finite, before the optimizer sees it; and it saves the collator's settings with
    every checkpoint.

    Args:
        chunk_size: how many sequences go through the encoder at a time; a batch of any size needs the memory of one
            chunk, with the same gradients and a second forward. Default: the whole batch.
    """

    def __init__(self, *args, chunk_size: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.torch_compile:
            raise ValueError(
                "torch_compile: batches without padding have new lengths at every step, and each would be compiled "
                "anew, which takes longer than training. Leave it out."
            )
        if chunk_size is not None:
            if chunk_size < 1:
                raise ValueError(f"chunk_size={chunk_size}: give the number of sequences in a chunk, 1 or more.")
            self.accelerator.unwrap_model(self.model).chunk_size = chunk_size
        self._training_meter, self._evaluation_meter = Meter(), Meter()
        self._tokens, self._tokens_since = 0, None
        self._shares: deque[dict[str, float]] = deque()
        self._evaluation_collator = self.data_collator
        self.add_callback(SamplerEpoch())
        if isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            # Accelerate would cut batches of different lengths in the first process and send them to the others.
            self.accelerator.dataloader_config.dispatch_batches = False
        ratio = getattr(self.data_collator, "mlm_probability", None)
        if isinstance(ratio, tuple):
            self._evaluation_collator = dataclasses.replace(self.data_collator, mlm_probability=ratio[1])
            self.add_callback(MaskRatioSchedule(self.data_collator))

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *COLLATOR_COLUMNS]))

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return SimilarLengthSampler(sampler.batch_size * self.args.world_size, sampler.lengths, seed)
        return sampler

    def get_eval_dataloader(self, eval_dataset=None):
        with self._with_evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._with_evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def _with_evaluation_collator(self):
        training_collator, self.data_collator = self.data_collator, self._evaluation_collator
        try:
            yield
        finally:
            self.data_collator = training_collator

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._shares = deque(self._shares_of(batches) if len(batches) > 1 else [])
        return batches, num_items

    def _shares_of(self, batches: list[dict]) -> list[dict[str, float]]:
        """For each micro-batch and term its part of all things averaged over, times the number of micro-batches."""
        counted = [_counts(batch) for batch in batches]
        counts = torch.stack([torch.stack(list(counts.values())) for counts in counted]).float()
        counts = self.accelerator.reduce(counts.to(self.accelerator.device), reduction="sum")
        shares = len(batches) * counts / counts.sum(0).clamp(min=1)
        return [dict(zip(counted[0], row, strict=True)) for row in shares.tolist()]

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        terms = {name: outputs.get(name) for name in ("mlm_loss", "contrastive_loss", "clm_loss")}
        terms = {name: term for name, term in terms.items() if term is not None}
        loss = outputs.loss
        if model.training and self._shares:
            config, share = self.accelerator.unwrap_model(model).config, self._shares.popleft()
            # Trainer divides by the number of micro-batches afterwards.
            loss = sum(getattr(config, _weight_of(name)) * share[name] * term for name, term in terms.items())
        self._observe(model.training, inputs, outputs, terms)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _observe(self, training: bool, inputs: dict, outputs, terms: dict[str, torch.Tensor]) -> None:
        meter = self._training_meter if training else self._evaluation_meter
        counts = _counts(inputs)
        for name, term in terms.items():
            meter.add({name: term}, counts[name])
        if outputs.mlm_accuracy is not None:
            meter.add({"mlm_accuracy": outputs.mlm_accuracy}, counts["mlm_loss"])
        if outputs.original_embeds is not None:
            quantities = {
                "contrastive_accuracy": outputs.contrastive_accuracy,
                "alignment": alignment(outputs.original_embeds, outputs.masked_embeds),
            }
            if len(outputs.original_embeds) > 1:
                quantities["uniformity"] = uniformity(outputs.original_embeds)
            meter.add(quantities, counts["contrastive_loss"])
        if training:
            self._tokens = self._tokens + counts["tokens"]

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self._tokens_since is None:
            self._tokens_since = time.monotonic()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}: training stopped before this step "
                f"changed the weights, and earlier checkpoints in {self.args.output_dir} stay. Lower the learning "
                f"rate (now {self._get_learning_rate():g}), set a longer warm-up, or raise the temperature."
            )
        return loss

    # Logging and saving

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._training_meter.read(self.accelerator)
            tokens = self.accelerator.reduce(torch.as_tensor(self._tokens, device=self.accelerator.device))
            seconds = time.monotonic() - (self._tokens_since or time.monotonic())
            if seconds > 0:
                logs["tokens_per_second"] = round(tokens.item() / seconds)
            self._tokens, self._tokens_since = 0, None
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        self._evaluation_meter = Meter()
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, value in self._evaluation_meter.read(self.accelerator).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.data_collator, DataCollatorForSimMIM):
            self.data_collator.save_pretrained(output_dir or self.args.output_dir)


def _weight_of(term: str) -> str:
    return term.replace("_loss", "_weight")


def _counts(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each term of the loss averages over in a batch: corrupted positions, sequences, next tokens."""
    ids, labels = inputs["input_ids"], inputs.get("labels")
    mask = inputs["attention_mask"] if inputs.get("attention_mask") is not None else torch.ones_like(ids)
    return {
        "mlm_loss": ((labels != -100) & mask.bool()).sum() if labels is not None else mask.new_zeros(()),
        "contrastive_loss": torch.tensor(len(mask), device=mask.device),
        "clm_loss": (mask.sum(1) - 1).clamp(min=0).sum(),
        "tokens": mask.sum(),
    }
