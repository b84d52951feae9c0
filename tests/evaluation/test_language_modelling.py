"""Language modelling as a measurement, against one sequence at a time."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import CAUSAL, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from simmim_hf import SimMIMForMaskedLM
from simmim_hf.data.tokenization import tokenize
from simmim_hf.evaluation.language_modelling import (
    load_language_model,
    masked_rows,
    next_token_rows,
    one_mask_rows,
    predict_tokens,
    surprises,
    unigram_cross_entropy,
)


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, 64, (length,), generator=generator).tolist() for length in (9, 3, 1, 6, 12)]
    return [[2, *row, 3] for row in rows]


def test_masked_loss_is_the_mean_over_fixed_positions(ids):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    masked_lm = SimMIMForMaskedLM(model.config).eval()
    masked_lm.load_state_dict(model.state_dict())
    rows = masked_rows(ids, tokenizer, 0.3, seed=1)
    total, right, count = 0.0, 0, 0
    for row, labels in rows:
        logits = model(input_ids=torch.tensor(row)[None]).logits[0].detach()
        for position in np.flatnonzero(labels != -100):
            total -= logits[position].log_softmax(-1)[labels[position]].item()
            right += logits[position].argmax().item() == labels[position]
            count += 1
    for batch_size in (1, 2, 64):
        loss, accuracy = predict_tokens(masked_lm, rows, batch_size, "")
        assert loss == pytest.approx(total / count, rel=1e-5) and accuracy == right / count
    assert count >= len(ids)


def test_masks_depend_on_the_text_and_the_seed_alone(ids):
    def by_text(order, seed=1):
        rows = masked_rows([ids[i] for i in order], tiny_tokenizer(), 0.3, seed)
        return {i: (row.tolist(), labels.tolist()) for i, (row, labels) in zip(order, rows, strict=True)}

    assert by_text([0, 1, 2, 3, 4]) == by_text([4, 2, 0, 1, 3])
    assert by_text([0, 3]).items() <= by_text([0, 1, 2, 3, 4]).items()
    assert by_text([0, 1, 2, 3, 4]) != by_text([0, 1, 2, 3, 4], seed=2)


def test_pseudo_perplexity_masks_each_token_in_turn(ids):
    model, tokenizer = SimMIMForMaskedLM(tiny_model().config).eval(), tiny_tokenizer()
    total = 0.0
    for row in ids:
        for position in range(1, len(row) - 1):
            masked = torch.tensor([*row[:position], tokenizer.mask_token_id, *row[position + 1 :]])
            total -= model(input_ids=masked[None]).logits[0, position].log_softmax(-1)[row[position]].item()
    rows = one_mask_rows(ids, tokenizer)
    assert len(rows) == sum(len(row) - 2 for row in ids)
    assert predict_tokens(model, rows, 7, "")[0] == pytest.approx(total / len(rows), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_next_tokens_are_read_from_left_to_right(family, ids, tmp_path):
    tiny_model(family, clm_weight=1.0).save_pretrained(tmp_path)
    language_model = load_language_model(str(tmp_path))
    assert list(language_model.options) == ["masked", "causal"]
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    total = 0.0
    for row in ids:
        row = torch.tensor(row)
        total += decoder(input_ids=row[None], labels=row[None]).loss.item() * (len(row) - 1)
    options = language_model.options["causal"]
    loss, _ = predict_tokens(language_model.model, next_token_rows(ids), 3, "", **options)
    assert loss == pytest.approx(total / sum(len(row) - 1 for row in ids), rel=1e-4)


@pytest.mark.parametrize("options", [{}, CAUSAL], ids=["both directions", "left to right"])
def test_a_surprise_is_that_of_the_whole_text(ids, options, tmp_path):
    """The sum over its tokens of what is lost by each: of one text what `predict_tokens` tells as a mean."""
    tiny_model(**options).save_pretrained(tmp_path)
    language_model, tokenizer = load_language_model(str(tmp_path)), tiny_tokenizer()
    found = surprises(language_model, ids, tokenizer, 7)
    for row, surprise in zip(ids, found, strict=True):
        rows = next_token_rows([row]) if options else one_mask_rows([row], tokenizer)
        direction = language_model.options["causal" if options else "masked"]
        loss, _ = predict_tokens(language_model.model, rows, 64, "", **direction)
        count = len(row) - 1 if options else len(row) - 2
        assert surprise == pytest.approx(loss * count, rel=1e-5)


def test_few_logits_at_a_time_change_nothing(ids, monkeypatch):
    model = SimMIMForMaskedLM(tiny_model().config).eval()
    rows = one_mask_rows(ids, tiny_tokenizer())
    whole = predict_tokens(model, rows, 64, "")
    monkeypatch.setattr("simmim_hf.evaluation.language_modelling.LOGITS_AT_ONCE", 1000)
    assert predict_tokens(model, rows, 64, "") == pytest.approx(whole, rel=1e-5)


def test_unigram_cross_entropy_is_that_of_the_counted_tokens():
    tokenizer = tiny_tokenizer()
    train, _ = tokenize(Dataset.from_dict({"text": ["w1 w2 w3", "w2", "w3 w3 w9 w1"]}), tokenizer, 16)
    held_out, _ = tokenize(Dataset.from_dict({"text": ["w2 w3", "w7 w1"]}), tokenizer, 16)
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    seen = [token for row in train["input_ids"] for token in row if token in ordinary]
    total, count = 0.0, 0
    for token in (token for row in held_out["input_ids"] for token in row if token in ordinary):
        total -= math.log((seen.count(token) + 1) / (len(seen) + len(ordinary)))
        count += 1
    assert unigram_cross_entropy(train, held_out, tokenizer) == pytest.approx(total / count)
