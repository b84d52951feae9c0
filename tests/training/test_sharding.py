"""FSDP and ZeRO-3: what is one shard, and what is refused."""

from types import SimpleNamespace

import pytest
from helpers import tiny_model
from transformers import TrainingArguments

from simmim_hf import SimMIMTrainer
from simmim_hf.training import sharding


def sharded(**options) -> SimpleNamespace:
    """What `prepare` knows of a Trainer on devices with FSDP, which no CPU has."""
    args = SimpleNamespace(fsdp=True, **{"chunk_size": None, **options})
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    return SimpleNamespace(args=args, is_fsdp_enabled=True, is_deepspeed_enabled=False, accelerator=accelerator)


def zero3(**options) -> SimpleNamespace:
    """What `prepare` knows of a Trainer with ZeRO-3."""
    args = SimpleNamespace(fsdp=False, chunk_size=None)
    plugin = SimpleNamespace(zero_stage=3, deepspeed_config={"zero_optimization": {"stage": 3, **options}})
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    return SimpleNamespace(args=args, is_fsdp_enabled=False, is_deepspeed_enabled=True, accelerator=accelerator)


@pytest.mark.parametrize(
    ("family", "layer"),
    [("bert", "BertLayer"), ("modernbert", "ModernBertEncoderLayer"), ("llama", "LlamaDecoderLayer")],
)
def test_a_shard_is_a_layer_and_never_holds_the_embedding(family, layer):
    trainer = sharded()
    sharding.prepare(trainer, tiny_model(family))
    assert trainer.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == [layer]


def test_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk_size needs whole weights"):
        sharding.prepare(sharded(chunk_size=2), tiny_model())


def test_zero3_saves_weights_that_open():
    sharding.prepare(zero3(stage3_gather_16bit_weights_on_model_save=True), tiny_model())
    with pytest.raises(ValueError, match="zero3_save_16bit_model: true"):
        sharding.prepare(zero3(), tiny_model())


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_cpu_does_not_train_whole_copies_without_a_word(tmp_path, monkeypatch, variable):
    if variable == "ACCELERATE_USE_DEEPSPEED":
        pytest.importorskip("deepspeed", reason="needs deepspeed, which is no dependency: pip install deepspeed")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="on a CPU, and would train whole copies"):
        SimMIMTrainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
