"""Measuring as a function: what a script gets, and what it is told where it asks for too much."""

import gzip
import json

import pytest
import torch
from helpers import tiny_model, tiny_tokenizer
from transformers import BertConfig

from simmim_hf import SimMIMConfig, SimMIMForPreTraining
from simmim_hf.data.tokenization import load_tokenizer
from simmim_hf.evaluation import encode
from simmim_hf.evaluation.encoding import load_encoder
from simmim_hf.evaluation.language_modelling import load_language_model, surprises
from simmim_hf.evaluation.run_task import EvalSettings, measure, similarity_spearman
from simmim_hf.evaluation.tasks import Task, load_scored_pairs, load_task
from simmim_hf.metric_catalogue import METRICS

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1 w2", "w3 w3", "w8"]


def test_every_kind_of_task_is_measured_from_a_script(checkpoint, files, few_folds):
    encoder = load_encoder(checkpoint)
    settings = EvalSettings(tiny_tokenizer(), max_length=64, max_samples=5)
    for path in files.values():
        task = load_task(path)
        language_model = load_language_model(checkpoint) if task.needs_head else None
        values = measure(task, encoder, settings, language_model)
        assert values.keys() <= METRICS.keys(), "a table shows what has a title"
        assert all(value is None or isinstance(value, int | float) for value in values.values())
        with_head = tiny_model(clm_weight=1.0, pooling="max")
        again = measure(task, with_head, settings, language_model)
        assert values == again, "a model with a head has the vectors of its encoder"


@pytest.mark.parametrize("kind", ["language modelling", "minimal pairs"])
def test_what_is_predicted_needs_a_language_model(checkpoint, files, kind):
    with pytest.raises(ValueError, match=r"is plain text or minimal pairs: give a language_model"):
        measure(load_task(files[kind]), load_encoder(checkpoint), EvalSettings(tiny_tokenizer(), max_length=64))


def test_a_minimal_pair_is_told_apart_by_what_is_more_probable(checkpoint, files, monkeypatch):
    """Counted for one pair after another; the other way round it is the rest."""
    pairs, tokenizer = load_task(files["minimal pairs"]).test, tiny_tokenizer()
    language_model = load_language_model(checkpoint)
    settings = EvalSettings(tokenizer, max_length=64)
    hits = 0
    for pair in pairs:
        ids = tokenizer([pair["sentence_good"], pair["sentence_bad"]])["input_ids"]
        good, bad = (surprises(language_model, [row], tokenizer, 1)[0] for row in ids)
        hits += good < bad
    assert 0 < hits < len(pairs)
    turned = pairs.rename_columns({"sentence_good": "sentence_bad", "sentence_bad": "sentence_good"})
    for at_once in (1000, 7):
        monkeypatch.setattr("simmim_hf.evaluation.run_task.PAIRS_AT_ONCE", at_once)
        for rows, expected in ((pairs, hits), (turned, len(pairs) - hits)):
            task = Task("pairs", rows)
            values = measure(task, load_encoder(checkpoint), settings, language_model)
            assert values == {"pairs": 20, "minimal_pairs_accuracy": pytest.approx(100 * expected / 20)}


def test_what_is_undefined_is_none(files):
    model = tiny_model(pooling="max")
    with torch.no_grad():
        model.simmim.encoder.encoder.layer[-1].output.LayerNorm.weight.zero_()  # all vectors are the same
    values = measure(load_task(files["similarity"]), model, EvalSettings(tiny_tokenizer(), max_length=64))
    assert values["spearman"] is None and values["pearson"] is None and values["pairs"] == 20


def test_vectors_that_are_not_finite_are_no_result(files):
    model = tiny_model()
    with torch.no_grad():
        model.simmim.encoder.encoder.layer[0].output.dense.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        measure(load_task(files["similarity"]), model, EvalSettings(tiny_tokenizer(), max_length=64))


def test_similarity_is_one_hundred_for_scores_in_the_order_of_the_cosines(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    first, second = TEXTS[:4], TEXTS[1:]
    cosines = (encode(model, first, tokenizer, 16) * encode(model, second, tokenizer, 16)).sum(1)
    rows = [
        {"sentence1": a, "sentence2": b, "score": float(c)} for a, b, c in zip(first, second, cosines, strict=True)
    ]
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert similarity_spearman(model, tokenizer, load_scored_pairs(str(file)), 16) == pytest.approx(100)


def test_static_vectors_of_real_words_beat_chance(shared_data):
    """The published reference point: real pairs through the whole path."""
    tokenizer = load_tokenizer(str(shared_data("tokenizers/bert-base-uncased")))
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = SimMIMForPreTraining(SimMIMConfig(text_config=BertConfig(**size)))
    pairs = load_scored_pairs(str(shared_data("stsb_en/dev.jsonl.gz")))
    assert len(pairs) == 1500
    assert 40 < similarity_spearman(model, tokenizer, pairs, 64) < 65  # word overlap alone, for random weights
