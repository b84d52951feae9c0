"""Training with weights in shards (FSDP2 of torch, ZeRO-3 of DeepSpeed): what is sharded, and what is refused."""

import os

from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..model.modeling_simmim import SimMIMForPreTraining

WHOLE_COPIES = "ddp_cuda.yaml or deepspeed_zero2.yaml of examples/accelerate_configs"


def is_sharded(trainer: Trainer) -> bool:
    """Whether a process holds parts of the weights only, once training has begun."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return trainer.is_fsdp_enabled


def keep_models_whole() -> None:
    """Lets models be built and loaded whole in each process, also under ZeRO-3: DeepSpeed shards one when training
    begins. transformers would shard every model at once, from the moment that arguments or a Trainer are made."""
    unset_hf_deepspeed_config()


def whole_model(trainer: Trainer, folder: str | os.PathLike) -> SimMIMForPreTraining | None:
    """The trained model. Where its weights are in shards: as it is saved in a folder, in the main process, and None in
    the others."""
    if not is_sharded(trainer):
        return trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_world_process_zero():
        return None
    keep_models_whole()
    return SimMIMForPreTraining.from_pretrained(folder).to(trainer.args.device).eval()


def prepare(trainer: Trainer, model: PreTrainedModel) -> None:
    """Chooses what is one shard, where FSDP is asked for and nothing else was chosen: a layer of the backbone.

    Raises:
        ValueError: FSDP or DeepSpeed is asked for where there is none, or with an option that shards cannot serve.
    """
    keep_models_whole()
    asks_for_fsdp = trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if asks_for_fsdp and not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP: accelerate does not shard on a CPU, and would train whole copies without a word. Launch with "
            "ddp_cpu.yaml of examples/accelerate_configs."
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed: accelerate leaves it out on a CPU, and would train whole copies without a word. Launch with "
            "torchrun and --deepspeed, see docs/distributed.md."
        )
    if not is_sharded(trainer):
        return
    if trainer.args.chunk_size:  # processes with different numbers of chunks would gather weights at different times
        raise ValueError(f"chunk_size needs whole weights in each process. Leave it out, or take {WHOLE_COPIES}.")
    if trainer.is_deepspeed_enabled:
        _check_zero3(trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"])
    else:
        _choose_shards(trainer.accelerator.state.fsdp_plugin, model)


def _check_zero3(options: dict) -> None:
    if not options.get("stage3_gather_16bit_weights_on_model_save"):
        raise ValueError(
            "ZeRO-3 would save no weights that from_pretrained opens: set zero3_save_16bit_model: true in the file of "
            "accelerate, or stage3_gather_16bit_weights_on_model_save in that of DeepSpeed."
        )


def _choose_shards(plugin, model: PreTrainedModel) -> None:
    if plugin.transformer_cls_names_to_wrap is not None:
        return
    # Several families call their embeddings undividable too. accelerate shards an embedding that is tied to the
    # output by itself, and one that is in a shard already stops it.
    embedding = model.get_input_embeddings()
    holders = {type(module).__name__ for module in model.modules() if embedding in module.children()}
    plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules or ()) - holders)
