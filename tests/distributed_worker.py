"""What each process of test_distributed.py runs: `accelerate launch ... distributed_worker.py FOLDER`.

A process writes what it found to FOLDER. The test makes the same models and batches by the functions here, and with
them the reference.
"""

import datetime
import itertools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments

from simmim_hf import SimMIMConfig, SimMIMForPreTraining, SimMIMTrainer
from simmim_hf.training import checkpoints
from simmim_hf.training.signals import Interrupted, StopAtSignal

ROWS, LENGTH, VOCAB, MASK, PAD = 8, 12, 60, 4, 0
SIGNALLED = ("on_step_begin", "on_prediction_step")
STRATEGIES = ("group_by_length", "random")
PRESETS = ("clm", "mlm", "simcse", "simmim", "fused", "spans", "snippets")

# name -> (objective, options of the config or `chunk_size`, options of `make_batch`, rows of the first process of two)
IN_CHUNKS = {f"{name} in chunks": (name, {"chunk_size": 3}, {}, 5) for name in PRESETS}
CASES = {name: (name, {}, {}, 4) for name in PRESETS} | IN_CHUNKS
CASES["5 + 3 rows"] = ("simmim", {}, {}, 5)
CASES["hard negatives"] = ("simmim", {}, {"negatives": (3, 3)}, 4)
CASES["unequal hard negatives"] = ("fused", {}, {"negatives": (1, 4)}, 3)
CASES["hard negatives of one process"] = ("simmim", {}, {"negatives": (2, 0)}, 4)
CASES["decoupled, symmetric"] = ("simmim", {"contrastive_loss": "decoupled", "symmetric": True}, {}, 5)
CASES["symmetric with negatives"] = ("simmim", {"symmetric": True}, {"negatives": (2, 1)}, 5)
CASES["projection, max, dot"] = (
    "simmim",
    {"projection_dim": 7, "pooling": "max", "similarity": "dot", "temperature": 1.0},
    {},
    4,
)
CASES["nothing corrupted in one process"] = ("simmim", {}, {"uncorrupted": range(4, 8)}, 4)
CASES["one row each"] = ("simmim", {}, {"rows": 2}, 1)
CASES["spans, decoupled, hard negatives"] = ("spans", {"contrastive_loss": "decoupled"}, {"negatives": (2, 1)}, 5)
CASES["spans, an original and its masked copy"] = ("spans", {"corrupted_views": "copy"}, {}, 3)
CASES["spans, one row each"] = ("spans", {}, {"rows": 2}, 1)
CASES["local negatives"] = ("simmim", {"gather_negatives": False}, {}, 5)


def make_model(objective: str = "simmim", chunk_size: int | None = None, **options) -> SimMIMForPreTraining:
    """A tiny BERT without dropout in float64, the same in every process."""
    torch.manual_seed(0)
    text_config = {
        **{"model_type": "bert", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": PAD},
    }
    config = SimMIMConfig.from_objective(objective, text_config=text_config, **options)
    model = SimMIMForPreTraining(config).double().train()
    model.chunk_size = chunk_size
    return model


def make_batch(rows: int = ROWS, negatives: tuple[int, int] = (0, 0), uncorrupted=(), seed: int = 1) -> dict:
    """Ragged rows of 3 to 12 tokens with 1 to 5 corrupted positions each; `negatives` are those of each process."""
    generator = torch.Generator().manual_seed(seed)

    def sequences(count):
        lengths = torch.tensor([LENGTH, *torch.randint(3, LENGTH, (max(count - 1, 0),), generator=generator)][:count])
        mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        return torch.randint(5, VOCAB, (count, LENGTH), generator=generator) * mask, mask

    ids, mask = sequences(rows)
    order = torch.rand(ids.shape, generator=generator).masked_fill(mask == 0, 2.0).argsort(1).argsort(1)
    corrupted = order < torch.minimum(mask.sum(1) - 1, torch.arange(rows) % 5 + 1)[:, None]
    corrupted[list(uncorrupted)] = False
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~corrupted, -100)}
    batch["masked_input_ids"] = ids.masked_fill(corrupted, MASK)
    # The other view of each row: the next row of the batch, as it is corrupted.
    for name, view in (("input_ids", "masked_input_ids"), ("attention_mask", "attention_mask"), ("labels", "labels")):
        batch[f"positive_{name}"] = batch[view].roll(1, 0)
    if sum(negatives):
        batch["negative_input_ids"], batch["negative_attention_mask"] = sequences(sum(negatives))
    return batch


def part(batch: dict, first: int, last: int, negatives: slice) -> dict:
    """Some rows of a batch, without the columns that are padding in all of them."""
    cut = {}
    for name, tensor in batch.items():
        rows = negatives if name.startswith("negative") else slice(first, last)
        prefix = name.partition("_")[0] + "_" if name.startswith(("negative", "positive")) else ""
        mask = batch[f"{prefix}attention_mask"][rows]
        if len(mask):
            cut[name] = tensor[rows, : mask.sum(1).max()]
    return cut


def parts(case: str, processes: int = 2) -> list[dict]:
    """The batches of two processes, or of four, of which each two share what is one's of two."""
    _, _, options, split = CASES[case]
    batch, (first, second) = make_batch(**options), options.get("negatives", (0, 0))
    rows = len(batch["input_ids"])
    if processes == 4:
        bounds = [0, split // 2, split, (split + rows) // 2, rows]
        return [part(batch, start, end, slice(0)) for start, end in itertools.pairwise(bounds)]
    return [part(batch, 0, split, slice(0, first)), part(batch, split, rows, slice(first, first + second))]


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run_case(case: str, rank: int) -> dict:
    objective, options, _, _ = CASES[case]
    model = make_model(objective, **options)
    ddp = DistributedDataParallel(model)
    for _ in range(2):  # a parameter that was not used in the first step stops the second one
        model.zero_grad()
        outputs = ddp(**parts(case, dist.get_world_size())[rank])
        outputs.loss.backward()
    terms = ("loss", "mlm_loss", "contrastive_loss", "clm_loss", "mlm_accuracy", "contrastive_accuracy")
    return {
        "terms": {name: outputs[name].detach() for name in terms if outputs.get(name) is not None},
        "gradients": gradients(model),
    }


def evaluate_on_one_process(rank: int) -> float | None:
    """Without gradients a process is alone: no other has to take part."""
    model = make_model()
    if rank == 0:
        with torch.no_grad():
            loss = model.eval()(**make_batch()).loss.item()
    dist.barrier()
    return loss if rank == 0 else None


# ------------------------------------------------------------------------------------------------------- the Trainer


class Record(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(gradients(model))


class Recorder:
    """A collator that remembers the batches it made."""

    def __init__(self):
        self.ids = []

    def __call__(self, features):
        self.ids.append([feature["id"] for feature in features])
        rows = [feature["id"] for feature in features]
        return {name: tensor[rows] for name, tensor in make_batch(rows=40).items()}


def train(
    folder, batches, callbacks=(), collator=None, resume=None, objective="fused", method=None, **options
) -> SimMIMTrainer:
    """SimMIMTrainer on ready batches; `callbacks` are classes or instances, `method` options of SimMIMTrainer."""
    defaults = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    defaults |= {"per_device_train_batch_size": 1, "max_grad_norm": 0.0, "save_strategy": "no", "logging_steps": 1}
    defaults["remove_unused_columns"] = False
    arguments = TrainingArguments(**{**defaults, **options})
    trainer = SimMIMTrainer(
        model=make_model(objective),
        args=arguments,
        train_dataset=batches,
        eval_dataset=batches,
        data_collator=collator or (lambda features: features[0]),
        callbacks=list(callbacks),
        **(method or {}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def micro_batches(processes: int = 2) -> list[dict]:
    """Batches with unequal numbers of rows, tokens and corrupted positions: two for each process."""
    batch = make_batch(rows=8 * processes)
    starts = range(0, len(batch["input_ids"]), 16)
    bounds = [(start + first, start + last) for start in starts for first, last in ((0, 2), (2, 8), (8, 11), (11, 16))]
    return [part(batch, first, last, slice(0)) for first, last in bounds]


ACCUMULATE = {"gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential", "learning_rate": 1e-3}


def accumulate(folder, rank: int, objective: str) -> dict:
    """A step of two micro-batches, each in chunks."""
    record, batches = Record(), micro_batches(dist.get_world_size())
    options = {"objective": objective, "method": {"chunk_size": 2}, "max_steps": 1}
    trainer = train(folder, batches, [record], **options, **ACCUMULATE)
    return {"gradients": record.steps[0], "log": trainer.state.log_history[0]}


def resume(folder, rank: int, strategy: str) -> dict:
    """The batches of a run over three epochs, and of its continuation from the middle of the second one."""
    data = [{"id": i, "input_ids": [5] * (3 + i % 7)} for i in range(40)]
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": strategy, "num_train_epochs": 3}
    options |= {"save_strategy": "steps", "save_steps": 7}
    found = {}
    for name, checkpoint in (("whole", None), ("resumed", str(Path(folder, "checkpoint-7")))):
        collator = Recorder()
        trainer = train(folder, data, collator=collator, resume=checkpoint, **options)
        found[name] = {"ids": collator.ids, "losses": [row["loss"] for row in trainer.state.log_history[:-1]]}
    return found


class Signalled(TrainerCallback):
    """Sends the second process a signal, in a step or in an evaluation."""

    def __init__(self, rank: int, event: str):
        self.sends = rank == 1
        setattr(self, event, self._send)

    def _send(self, *args, **kwargs):
        if self.sends:
            signal.raise_signal(signal.SIGTERM)
            self.sends = False


def signalled(folder, rank: int, event: str) -> tuple[int, list[str] | str]:
    """A signal reaches the second process only: what both know of it, and the checkpoints or that evaluation ended."""
    stop = StopAtSignal()
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}
    with stop.listening():
        try:
            train(folder, micro_batches(), [Signalled(rank, event), stop], **options)
        except Interrupted:
            return stop.received, "evaluation"
    return stop.received, [path.name for path in checkpoints.checkpoints_in(folder)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    processes = dist.get_world_size()
    cases = CASES if processes == 2 else IN_CHUNKS
    jobs = {case: lambda case=case: run_case(case, rank) for case in cases}
    for preset in PRESETS:
        name = f"accumulate {preset}"
        jobs[name] = lambda preset=preset, name=name: accumulate(folder / name, rank, preset)
    if processes == 2:
        jobs["evaluation"] = lambda: evaluate_on_one_process(rank)
        for strategy in STRATEGIES:
            jobs[strategy] = lambda strategy=strategy: resume(folder / strategy, rank, strategy)
        for event in SIGNALLED:
            jobs[event] = lambda event=event: signalled(folder / event, rank, event)
    found = {}
    for name, job in jobs.items():
        try:
            found[name] = job()
        except Exception:
            found[name] = traceback.format_exc()
        torch.save(found, folder / f"{rank}.pt")
        errors = [None] * dist.get_world_size()
        try:  # after an error in one process only, the processes no longer match: stop here
            dist.all_gather_object(errors, json.dumps(isinstance(found[name], str)))
        except Exception:
            break
        if len(set(errors)) > 1:
            break
    dist.destroy_process_group()
