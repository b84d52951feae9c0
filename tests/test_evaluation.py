"""Sentence vectors, retrieval, similarity and what a run shows."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from matplotlib import image
from transformers import BertConfig

from simmim_hf import SimMIMConfig, SimMIMForPreTraining, reporting
from simmim_hf.corpora import load_tokenizer, tokenize, train_tokenizer
from simmim_hf.evaluation import (
    encode,
    load_scored_pairs,
    mean_reciprocal_rank,
    similarity_spearman,
    tfidf_reciprocal_rank,
    unigram_cross_entropy,
)

TEXTS = [
    "the river runs",
    "a bird",
    "the stone bridge over the quiet river holds",
    "birds sing in the morning",
    "stone",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=120, show_progress=False)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    return SimMIMForPreTraining(SimMIMConfig(text_config=BertConfig(**size, vocab_size=len(tokenizer))))


def test_vectors_are_the_pooled_ones_in_the_order_of_the_texts(model, tokenizer):
    model.train()
    vectors = encode(model, tokenizer, TEXTS, max_length=16, batch_size=2)
    assert model.training, "encoding must not change the mode"
    model.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        pooled = model.base_model(**tokenizer(text, return_tensors="pt")).pooler_output[0].detach()
        np.testing.assert_allclose(vector, pooled / pooled.norm(), atol=1e-6)


def test_reciprocal_rank_counts_ties_against_the_right_document():
    queries = np.eye(3)
    documents = np.array([[1.0, 0, 0], [0, 0.5, 0], [0, 0.5, 0.2]])
    assert mean_reciprocal_rank(queries, documents) == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert mean_reciprocal_rank(queries, documents, k=1) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(queries, np.zeros((3, 3)), k=2) == 0


def test_word_overlap_finds_the_document_that_shares_words():
    assert tfidf_reciprocal_rank(["green apples", "fast cars"], ["apples grow green", "cars drive fast"]) == 1


def test_unigram_cross_entropy_is_that_of_the_counted_tokens(tokenizer):
    train, _ = tokenize(Dataset.from_dict({"text": TEXTS}), tokenizer, 16)
    held_out, _ = tokenize(Dataset.from_dict({"text": ["the bird", "river birds"]}), tokenizer, 16)
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    seen = [token for row in train["input_ids"] for token in row if token in ordinary]
    total, count = 0.0, 0
    for token in (token for row in held_out["input_ids"] for token in row if token in ordinary):
        total -= math.log((seen.count(token) + 1) / (len(seen) + len(ordinary)))
        count += 1
    assert unigram_cross_entropy(train, held_out, tokenizer) == pytest.approx(total / count)


def test_similarity_is_one_hundred_for_scores_in_the_order_of_the_cosines(model, tokenizer, tmp_path):
    first, second = TEXTS[:4], TEXTS[1:]
    cosines = (encode(model, tokenizer, first, 16) * encode(model, tokenizer, second, 16)).sum(1)
    rows = [
        {"sentence1": a, "sentence2": b, "score": float(c)} for a, b, c in zip(first, second, cosines, strict=True)
    ]
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert similarity_spearman(model, tokenizer, load_scored_pairs(str(file)), 16) == pytest.approx(100)


def test_scored_pairs_without_a_column_name_what_they_have(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"sentence1": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match=r"score.*sentence2.*it has \['sentence1', 'text'\]"):
        load_scored_pairs(str(file))
    with pytest.raises(FileNotFoundError, match="no-such"):
        load_scored_pairs(str(tmp_path / "no-such.jsonl"))


def test_static_vectors_of_real_words_beat_chance(tmp_path):
    """The published reference point: real pairs through the whole path."""
    data = Path(__file__).parents[2] / "shared/data"
    if not data.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    tokenizer = load_tokenizer(str(data / "tokenizers/bert-base-uncased"))
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = SimMIMForPreTraining(SimMIMConfig(text_config=BertConfig(**size)))
    pairs = load_scored_pairs(str(data / "stsb_en/dev.jsonl.gz"))
    assert len(pairs) == 1500
    assert 40 < similarity_spearman(model, tokenizer, pairs, 64) < 65  # word overlap alone, for random weights


def test_the_table_shows_what_was_measured_and_its_baselines():
    table = reporting.before_after_table({"mlm_loss": 9.5}, {"mlm_loss": 4.25}, {"mlm_loss": 7.0})
    assert "MLM loss   9.500  4.250     7.000  token frequencies" in table
    assert "Spearman" not in table


def test_the_picture_is_drawn_from_the_log(tmp_path):
    history = [{"step": i, "loss": 5 - i, "mlm_loss": 4 - i, "mlm_accuracy": i / 5} for i in range(1, 4)]
    reporting.plot_training(
        [*history, {"step": 3, "eval_mlm_loss": 1.5}, {"step": 3, "train_loss": 2}], tmp_path / "a.png"
    )
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape[0] > 300 and pixels[..., :3].std() > 0.05
