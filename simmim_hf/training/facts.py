"""What a run is and what it did, as its records and its card state it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from transformers import Trainer
from transformers.utils import logging

from .. import records
from ..data.collator import DataCollatorForSimMIM
from ..metric_catalogue import METRICS
from ..model.configuration_simmim import SimMIMConfig
from .arguments import METHOD_OPTIONS

logger = logging.get_logger(__name__)

# What is kept of the runs before one that goes on from their weights.
OF_A_RUN = ["command", "seed", "steps", "planned_steps", "epochs", "tokens_read", "train_seconds", "precision"]
OF_A_RUN += ["hardware", "processes", "versions", "initial_weights", "objective"]

# The options that a card lists; `config.json` and `training_args.json` beside it have them all.
BACKBONE_OPTIONS = [
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
]
OBJECTIVE_OPTIONS = [name for name in SimMIMConfig.__annotations__ if name != "text_config"]
STEPS = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
RATE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay")
OPTIMIZER = ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha")
ORDER = ("train_sampling_strategy", "dataloader_drop_last")
MEMORY = ("gradient_checkpointing", "bf16", "fp16")
TRAINING_OPTIONS = [*STEPS, *RATE, *OPTIMIZER, *ORDER, *MEMORY, "seed", "data_seed", *METHOD_OPTIONS]
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}


def tokens_read(log_history: list[dict]) -> int:
    """The tokens that the encoder had read by the end of a Trainer's log, over all processes and without padding."""
    return next((entry["tokens_read"] for entry in reversed(log_history) if "tokens_read" in entry), 0)


def run_facts(trainer: Trainer) -> dict:
    """What a Trainer knows of its run, by the keys of `results.json`; what it does not know is left out."""
    args = trainer.args
    state = trainer.state
    collator = trainer.data_collator
    model = trainer.accelerator.unwrap_model(trainer.model)
    seconds = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    held_out_metrics = {f"eval_{name}": name for name in METRICS}
    evaluations = [entry for entry in state.log_history if entry.keys() & held_out_metrics.keys()]
    measured = evaluations[-1] if evaluations else {}
    corruption = []
    if isinstance(collator, DataCollatorForSimMIM):
        corruption = [field.name for field in dataclasses.fields(collator) if field.name != "tokenizer"]
    held_out = trainer.eval_dataset
    if isinstance(held_out, dict):
        held_out = None
    sets = {"train_sequences": trainer.train_dataset, "held_out_sequences": held_out}
    facts = {
        "seed": args.seed,
        "versions": records.versions(),
        "parameters": model.num_parameters(),
        "backbone": options_of(model.config.text_config, BACKBONE_OPTIONS),
        "objective": options_of(model.config, OBJECTIVE_OPTIONS),
        "vector_size": model.config.embedding_dim,
        "corruption": options_of(collator, corruption),
        "training": options_of(args, TRAINING_OPTIONS),
        "precision": precision(trainer),
        "hardware": records.hardware(args),
        "processes": args.world_size,
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "epochs": state.epoch,
        "tokens_read": tokens_read(state.log_history) or None,
        "train_seconds": round(seconds[-1], 1) if seconds else None,
        "data": {name: len(rows) for name, rows in sets.items() if hasattr(rows, "__len__")},
        "after": {name: measured[logged] for logged, name in held_out_metrics.items() if logged in measured},
        "evaluated_at_step": measured.get("step"),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def options_of(owner, names: Iterable[str]) -> dict:
    """The options that are set, without folders of this machine."""
    values = {name: getattr(owner, name, None) for name in names}
    return records.without_folders({name: value for name, value in values.items() if value not in (None, {}, [])})


def precision(trainer: Trainer) -> str:
    """The type of the weights, and that of autocast."""
    weights = str(trainer.accelerator.unwrap_model(trainer.model).dtype).removeprefix("torch.")
    precision = weights
    autocast = AUTOCAST.get(trainer.accelerator.mixed_precision)
    if autocast:
        precision = f"{autocast} autocast over {weights} weights"
    if trainer.args.tf32:
        precision += ", TensorFloat-32 matrix products"
    return precision


def earlier_runs(checkpoint: Path) -> dict[str, list[dict]]:
    """`earlier_runs`: what is known of the runs that made a checkpoint, in their order."""
    try:
        facts = records.read_json(checkpoint / "results.json")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        logger.warning(f"How the initial weights were trained is not known: {error}")
        return {}
    kept = {name: facts[name] for name in OF_A_RUN if name in facts}
    if "steps" not in kept or "versions" not in kept:
        return {}
    return {"earlier_runs": [*facts.get("earlier_runs", []), kept]}
