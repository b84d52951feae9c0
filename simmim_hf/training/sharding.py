"""Training with weights in shards (FSDP2 of torch, through accelerate): what is sharded, and what is refused."""

import os

from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config


def is_sharded(trainer: Trainer) -> bool:
    """Whether a process holds parts of the weights only, once training has begun."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return trainer.is_fsdp_enabled


def keep_models_whole() -> None:
    """Lets models be built and loaded whole in each process, also under ZeRO-3: DeepSpeed shards one when training
    begins. transformers would shard every model at once, from the moment that arguments or a Trainer are made."""
    unset_hf_deepspeed_config()


def prepare(trainer: Trainer, model: PreTrainedModel) -> None:
    """Chooses what is one shard, where FSDP is asked for and nothing else was chosen: a layer of the backbone.

    Raises:
        ValueError: FSDP is asked for where there is none, or with an option that it cannot serve.
    """
    asked = trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if not asked:
        return
    if not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP: accelerate does not shard on a CPU, and would train whole copies without a word. Launch with "
            "ddp_cpu.yaml of examples/accelerate_configs."
        )
    if trainer.args.chunk_size:  # processes with different numbers of chunks would gather weights at different times
        raise ValueError(
            "FSDP: chunk_size needs whole weights. Leave it out, or take ddp_cuda.yaml or deepspeed_zero2.yaml of "
            "examples/accelerate_configs."
        )
    plugin, embedding = trainer.accelerator.state.fsdp_plugin, model.get_input_embeddings()
    if plugin.transformer_cls_names_to_wrap is None:
        # Several families call their embeddings undividable too. accelerate shards an embedding that is tied to the
        # output by itself, and one that is in a shard already stops it.
        holders = {type(module).__name__ for module in model.modules() if embedding in module.children()}
        plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules or ()) - holders)
