"""Checkpoints in the pipelines of transformers."""

import pytest
import torch
from heads import tiny_head
from helpers import CLOSE, MASK_ID, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer, pipeline

from simmim_hf import (
    SimMIMForMaskedLM,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
    SimMIMModel,
)


@pytest.fixture(params=["bert", "distilbert"])
def folder(request, tmp_path):
    """A checkpoint with a tokenizer that always gives token_type_ids, also for a backbone that has none."""
    tiny_model(request.param).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    assert "token_type_ids" in tokenizer("w1 w2")
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_fill_mask_pipeline(folder):
    answers = pipeline("fill-mask", model=folder, top_k=3)("w1 w2 [MASK] w4")
    encoded = AutoTokenizer.from_pretrained(folder)("w1 w2 [MASK] w4", return_tensors="pt")
    logits = SimMIMForMaskedLM.from_pretrained(folder)(**encoded).logits[0]
    position = (encoded["input_ids"][0] == MASK_ID).nonzero().item()
    best = logits[position].softmax(-1).topk(3)
    assert [answer["token"] for answer in answers] == best.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_feature_extraction_pipeline(folder):
    texts = ["w1 w2 w3 w4", "w5"]
    features = pipeline("feature-extraction", model=folder)(texts)
    assert [len(feature[0]) for feature in features] == [6, 3]
    encoded = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    out = SimMIMModel.from_pretrained(folder)(**encoded)
    for feature, hidden, vector in zip(features, out.last_hidden_state, out.pooler_output):
        feature = torch.tensor(feature[0])
        torch.testing.assert_close(feature, hidden[: len(feature)], **CLOSE)
        torch.testing.assert_close(feature.mean(0), vector, **CLOSE)


def save_with_tokenizer(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_text_classification_pipeline(tmp_path):
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = tiny_head(SimMIMForSequenceClassification, num_labels=2, **names)
    classify = pipeline("text-classification", model=save_with_tokenizer(model, tmp_path))
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    answers = classify(texts, batch_size=3, top_k=None)
    for text, answer in zip(texts, answers, strict=True):
        expected = model(**tiny_tokenizer()(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert {a["label"]: pytest.approx(a["score"], abs=1e-5) for a in answer} == dict(
            zip(("bad", "good"), expected)
        )


def test_zero_shot_classification_pipeline(tmp_path):
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    options = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    model = tiny_head(SimMIMForSequenceClassification, num_labels=3, **options)
    classify = pipeline("zero-shot-classification", model=save_with_tokenizer(model, tmp_path))
    answer = classify("w1 w2 w3", candidate_labels=["w4", "w5"], hypothesis_template="w6 {}")
    assert set(answer["labels"]) == {"w4", "w5"} and sum(answer["scores"]) == pytest.approx(1)
    pairs = [tiny_tokenizer()("w1 w2 w3", f"w6 {label}", return_tensors="pt") for label in answer["labels"]]
    expected = torch.cat([model(**pair).logits[:, 0] for pair in pairs]).softmax(0)
    torch.testing.assert_close(torch.tensor(answer["scores"]), expected.detach())


def test_token_classification_pipeline(tmp_path):
    names = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}
    model = tiny_head(SimMIMForTokenClassification, num_labels=2, **names)
    tag = pipeline("token-classification", model=save_with_tokenizer(model, tmp_path), ignore_labels=[])
    answer = tag("w1 w2 w3")
    assert [token["word"] for token in answer] == ["w1", "w2", "w3"]
    labels = model(**tiny_tokenizer()("w1 w2 w3", return_tensors="pt")).logits[0, 1:-1].argmax(-1).tolist()
    assert [token["entity"] for token in answer] == [names["id2label"][label] for label in labels]


def test_a_classifier_still_gives_features(tmp_path):
    """A fine-tuned checkpoint opens as a bare encoder too."""
    model = tiny_head(SimMIMForSequenceClassification)
    extract = pipeline("feature-extraction", model=save_with_tokenizer(model, tmp_path), return_tensors=True)
    expected = model.simmim(**tiny_tokenizer()("w1 w2", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(extract("w1 w2"), expected)
