"""Sentence vectors, of SimMIM and of other encoders."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomize, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from simmim_hf import SimMIMForMaskedLM, SimMIMForPreTraining, SimMIMModel
from simmim_hf.evaluation import encode
from simmim_hf.evaluation.encoding import load_encoder

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1 w2", "w3 w3"]


def test_vectors_are_the_pooled_ones_in_the_order_of_the_texts():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.train()
    vectors = encode(model, TEXTS, tokenizer, max_length=16, batch_size=2)
    assert model.training, "encoding must not change the mode"
    model.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        pooled = model.base_model(**tokenizer(text, return_tensors="pt")).pooler_output[0].detach()
        np.testing.assert_allclose(vector, pooled / pooled.norm(), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_plain_encoder_gives_what_it_gives_inside_simmim(tmp_path, pooling):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    BertForMaskedLM(BertConfig(**size, vocab_size=64)).eval().save_pretrained(tmp_path)
    plain = load_encoder(str(tmp_path), pooling)
    simmim = SimMIMForPreTraining.from_backbone(str(tmp_path), pooling=pooling)
    expected = encode(simmim, TEXTS, tiny_tokenizer(), 16)
    for batch_size in (1, 3, 64):
        vectors = encode(plain, TEXTS, tiny_tokenizer(), 16, batch_size)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    longer = encode(plain, TEXTS, tiny_tokenizer(), 16, normalize=False)
    np.testing.assert_allclose(longer / np.linalg.norm(longer, axis=1, keepdims=True), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True, "include_prompt": True}, "max"),
        ({}, "mean"),
        ({"pooling_mode": ["cls", "mean"]}, "the pooling cls + mean, which is unknown"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True}, "mean + mean_sqrt_len"),
        (None, "by a module `Dense`, which is unknown here"),
    ],
)
def test_a_sentence_transformer_tells_its_pooling(tmp_path, options, pooling):
    """In the words of its versions; what is unknown is refused, unless another pooling is asked for."""
    BertForMaskedLM(tiny_model().config.text_config).save_pretrained(tmp_path)
    kinds = {"": "base.modules.transformer.Transformer", "1_Pooling": "models.Pooling", "2_Dense": "models.Dense"}
    kinds = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(kinds[: 2 if options is not None else 3]))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(options or {}))
    folder = str(tmp_path)
    if pooling in ("mean", "cls", "max"):
        assert load_encoder(folder).pooling == SimMIMForPreTraining.from_backbone(folder).config.pooling == pooling
    else:
        for load in (load_encoder, SimMIMForPreTraining.from_backbone):
            with pytest.raises(ValueError, match=re.escape(pooling)):
                load(folder)
    assert load_encoder(folder, "max").pooling == "max"
    assert SimMIMForPreTraining.from_backbone(folder, pooling="max").config.pooling == "max"


def test_a_checkpoint_keeps_its_own_pooling(tmp_path):
    tiny_model("roberta", pooling="max").save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).config.pooling == "max"
    assert load_encoder(str(tmp_path), "cls").config.pooling == "cls"
    assert load_encoder(str(tmp_path)).max_length == 62


def test_attention_pooling_is_that_of_a_checkpoint_that_learned_it(tmp_path):
    model = tiny_model(pooling="attention")
    model.save_pretrained(tmp_path / "learned")
    tiny_model().save_pretrained(tmp_path / "mean")
    learned = load_encoder(str(tmp_path / "learned"))
    assert learned.pooler.query.equal(model.simmim.pooler.query)
    texts, options = [TEXTS, tiny_tokenizer(), 16], {"normalize": False}
    other = encode(load_encoder(str(tmp_path / "learned"), "mean"), *texts, **options)
    expected = encode(SimMIMModel.from_pretrained(tmp_path / "learned", pooling="mean"), *texts, **options)
    np.testing.assert_allclose(other, expected, atol=1e-5)
    with pytest.raises(ValueError, match="has not learned what counts: choose mean, cls or max"):
        load_encoder(str(tmp_path / "mean"), "attention")


@pytest.mark.parametrize("pooling", ["attention", "max"])
def test_another_pooling_keeps_the_token_table_without_which_there_are_no_vectors(pooling, tmp_path):
    model = randomize(tiny_model(pooling="attention", pooled_layers="table_and_last"))
    model.save_pretrained(tmp_path)
    expected = encode(SimMIMModel.from_pretrained(tmp_path, pooling=pooling), TEXTS, tiny_tokenizer())
    np.testing.assert_allclose(
        encode(load_encoder(str(tmp_path), pooling), TEXTS, tiny_tokenizer()), expected, atol=1e-5
    )
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "lexicon" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights.*pooler\.lexicon"):
        load_encoder(str(tmp_path))


# As a user calls it


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("saved"))
    tiny_model(pooling="cls").save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 5
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_and_texts_are_enough(saved):
    model = SimMIMModel.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    expected = encode(model, TEXTS, tokenizer, max_length=5)
    assert abs(encode(model, TEXTS, tokenizer, max_length=16) - expected).max() > 1e-3, "the third text is longer"
    for found in (encode(saved, TEXTS), encode(Path(saved), TEXTS), encode(model, TEXTS), model.encode(TEXTS)):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    heads = SimMIMForPreTraining.from_pretrained(saved)
    np.testing.assert_allclose(heads.encode(TEXTS), expected, atol=1e-6)


def test_one_text_gives_one_vector_and_none_gives_none(saved):
    model = SimMIMModel.from_pretrained(saved)
    vector = model.encode(TEXTS[0])
    assert vector.shape == (32,)
    np.testing.assert_allclose(vector, model.encode(TEXTS)[0], atol=1e-6)
    assert model.encode([]).shape == (0, 32)


def test_a_model_from_nowhere_needs_a_tokenizer():
    with pytest.raises(ValueError, match="Give `tokenizer`"):
        tiny_model().encode(TEXTS)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "attention"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("layers", ["last", "first_last", "table_and_last"])
def test_what_is_saved_is_a_sentence_transformer(pooling, similarity, layers, tmp_path):
    """With the pooling and the length of the model, and what is set there survives being saved from there."""
    from sentence_transformers import SentenceTransformer

    model = randomize(tiny_model("modernbert", pooling=pooling, similarity=similarity, pooled_layers=layers))
    model.save_pretrained(tmp_path / "ours")
    tiny_tokenizer().save_pretrained(tmp_path / "ours")
    expected = encode(model, TEXTS, tiny_tokenizer(), normalize=similarity == "cosine")
    theirs = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert theirs.similarity_fn_name == similarity
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=1e-5)
    theirs.prompts = {"query": "w1 "}
    theirs.save_pretrained(str(tmp_path / "theirs"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
    assert again.prompts["query"] == "w1 "
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)


def test_a_class_without_vectors_says_nothing_of_them(tmp_path):
    SimMIMForMaskedLM(tiny_model().config).save_pretrained(tmp_path)
    assert not (tmp_path / "modules.json").exists()
