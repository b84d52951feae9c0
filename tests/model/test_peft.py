"""LoRA by peft on the attention of the backbone: adapters alone are trained, kept, and merged into a plain model."""

import pytest
import torch
from helpers import CLOSE, LENGTHS, NO_DROPOUT, padded, ragged_batch, randomize, real_rows, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

from simmim_hf import (
    DataCollatorForSimMIM,
    SimMIMForCausalLM,
    SimMIMForPreTraining,
    SimMIMForSequenceClassification,
    SimMIMTrainer,
)
from simmim_hf.model.configuration_simmim import remote_files
from simmim_hf.model.unpadding import Unpadding

peft = pytest.importorskip("peft", reason="peft is not installed: `pip install simmim_hf[peft]`")

# transformers' own warning about what peft calls.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

TARGETS = {"bert": ["query", "value"], "modernbert": ["Wqkv"], "llama": ["q_proj", "v_proj"]}


def options_of(family, **options):
    return peft.LoraConfig(target_modules=TARGETS[family], r=4, lora_alpha=8, **options)


def classification_batch():
    batch = ragged_batch(LENGTHS)
    labels = torch.tensor([0, 2, 1, 2])
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


CASES = {
    SimMIMForSequenceClassification: ({"num_labels": 3}, {"task_type": "SEQ_CLS"}, classification_batch),
    SimMIMForPreTraining: ({}, {}, lambda: ragged_batch(LENGTHS)),
}
each_pair = pytest.mark.parametrize(
    ("model_class", "family"),
    [(SimMIMForSequenceClassification, "bert"), *((SimMIMForPreTraining, family) for family in TARGETS)],
)


@pytest.fixture
def folder(family, tmp_path):
    """Of a pre-trained model of a family."""
    tiny_model(family, temperature=0.5).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def with_adapters(model_class, family, folder):
    """A model with new adapters, and the batch for it."""
    loading, options, batch = CASES[model_class]
    torch.manual_seed(0)
    model = model_class.from_pretrained(folder, **loading)
    return peft.get_peft_model(model, options_of(family, **options)).eval(), batch()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_chunk_size_reaches_the_model_below_the_adapters(tmp_path, chunk_size):
    model = peft.get_peft_model(tiny_model(), options_of("bert"))
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    SimMIMTrainer(model, args, DataCollatorForSimMIM(tiny_tokenizer()), chunk_size=chunk_size)
    assert model.get_base_model().chunk_size == chunk_size


def outputs(model, batch):
    with torch.no_grad():
        out = model(**batch)
    return [value for value in out.to_tuple() if torch.is_tensor(value)]


def is_trainable(name):
    return "lora_" in name or "classifier.modules_to_save" in name


@each_pair
def test_only_adapters_and_a_new_head_are_trained(model_class, family, folder):
    model, batch = with_adapters(model_class, family, folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert all(parameter.requires_grad == is_trainable(name) for name, parameter in model.named_parameters())
    optimizer, losses = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-2), []
    for _ in range(8):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != is_trainable(name), name


@each_pair
def test_saved_adapters_give_the_same_outputs_on_a_fresh_model(model_class, family, folder, tmp_path):
    model, batch = with_adapters(model_class, family, folder)
    fresh = outputs(model, batch)
    randomize(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad), scale=0.3)
    expected = outputs(model, batch)
    assert not torch.allclose(expected[0], fresh[0], atol=1e-3), "the adapters do nothing"
    model.save_pretrained(tmp_path / "adapters")
    saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert all("lora_" in name or "classifier" in name for name in saved)

    base = model_class.from_pretrained(folder, **CASES[model_class][0])
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    for actual, value in zip(outputs(loaded, batch), expected, strict=True):
        assert torch.equal(actual, value)


@each_pair
def test_merged_adapters_are_a_plain_checkpoint(model_class, family, folder, tmp_path):
    model, batch = with_adapters(model_class, family, folder)
    randomize(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad), scale=0.3)
    expected = outputs(model, batch)
    merged = model.merge_and_unload()
    assert type(merged) is model_class
    merged.save_pretrained(tmp_path / "merged")
    assert {file.name for file in (tmp_path / "merged").iterdir()} >= {*remote_files(), "config.json"}
    loaded, info = model_class.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for some in (merged, loaded):
        assert not any("lora_" in name for name, _ in some.named_parameters())
        for actual, value in zip(outputs(some, batch), expected, strict=True):
            torch.testing.assert_close(actual, value, **CLOSE)
    if model_class is SimMIMForPreTraining:
        assert loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight
    AutoModel.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize("family", TARGETS)
def test_sequences_are_still_read_without_padding(family, folder, monkeypatch):
    model, batch = with_adapters(SimMIMForPreTraining, family, folder)
    randomize(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad), scale=0.3)
    model(**batch)  # tries once what the backbone can do
    unpaddings, from_mask = [], Unpadding.from_mask
    monkeypatch.setattr(Unpadding, "from_mask", lambda mask: unpaddings.append(from_mask(mask)) or unpaddings[-1])
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    unpadded = model(**batch)
    unpadded_gradients = torch.autograd.grad(unpadded.loss, adapters)
    layers = model.config.num_hidden_layers
    assert unpaddings[-1].calls == layers and len(unpaddings[-1].indices) == 2 * sum(LENGTHS)
    model.base_model.model.simmim._can_unpad = False
    reference = model(**batch)
    assert unpaddings[-1].calls == 0
    torch.testing.assert_close(unpadded.loss, reference.loss, **CLOSE)
    reference_gradients = torch.autograd.grad(reference.loss, adapters)
    for actual, expected in zip(unpadded_gradients, reference_gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_adapters_for_generation(family, tmp_path):
    tiny_model(family, clm_weight=1).save_pretrained(tmp_path)
    base = SimMIMForCausalLM.from_pretrained(tmp_path)
    ids, options = torch.tensor([[7, 8, 9]]), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 64}
    expected = base.generate(ids, **options)
    model = peft.get_peft_model(base, options_of(family, task_type="CAUSAL_LM")).eval()
    assert torch.equal(model.generate(input_ids=ids, **options), expected), "new adapters change nothing"
    assert model(input_ids=ids, labels=ids).loss.isfinite()


# In the Trainer.


def arguments(folder, **options):
    return TrainingArguments(
        folder,
        **{"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-2, "report_to": [], **options},
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1,
    )


@pytest.mark.parametrize("trainer_class", [Trainer, SimMIMTrainer])
def test_pretraining_goes_on_with_adapters(trainer_class, tmp_path):
    tiny_model("bert", NO_DROPOUT, temperature=0.5).save_pretrained(tmp_path / "base")
    model, _ = with_adapters(SimMIMForPreTraining, "bert", tmp_path / "base")
    batch = ragged_batch(LENGTHS * 2)
    rows = [{"input_ids": row[0].tolist()} for row in real_rows(batch["input_ids"], batch["attention_mask"])]
    trainer = trainer_class(
        model=model,
        args=arguments(tmp_path / "run", gradient_accumulation_steps=2, max_steps=3),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForSimMIM(tiny_tokenizer(), seed=0),
        processing_class=tiny_tokenizer(),
    )
    assert not trainer.model_accepts_loss_kwargs
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_classifier_learns_with_adapters(tmp_path):
    tiny_model("bert", NO_DROPOUT).save_pretrained(tmp_path / "base")
    model, _ = with_adapters(SimMIMForSequenceClassification, "bert", tmp_path / "base")
    ids = padded([[5 + number % 3, 20 + number, 30] for number in range(12)], 0)
    rows = [{"input_ids": row, "attention_mask": torch.ones(3).long(), "labels": row[0] - 5} for row in ids]
    trainer = Trainer(
        model, arguments(tmp_path / "run", max_steps=30, save_strategy="no"), train_dataset=rows, eval_dataset=rows
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    expected = trainer.model.eval().merge_and_unload()
    expected.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert type(loaded) is SimMIMForSequenceClassification
    torch.testing.assert_close(loaded(ids).logits, expected(ids).logits)


def test_saved_adapters_have_the_mode_of_their_configuration(tmp_path):
    model = peft.get_peft_model(tiny_model(), options_of("bert"))
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none")
    SimMIMTrainer(model, args, DataCollatorForSimMIM(tiny_tokenizer())).save_model()
    saved = [tmp_path / "run" / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    assert len({path.stat().st_mode for path in saved}) == 1
