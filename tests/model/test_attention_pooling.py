"""A mean over tokens that are weighted by a learned score."""

import pytest
import torch
from helpers import FAMILIES, batch_of_two_views, padded, ragged_batch, real_rows, tiny_model
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification

from simmim_hf import SimMIMConfig, SimMIMForPreTraining, SimMIMModel

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = [9, 1, 5, 14, 5]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_equals_padded_equals_the_formula(family, side):
    model = tiny_model(family, pooling="attention").simmim
    pad = FAMILIES[family].get("pad_token_id", 0)
    batch = ragged_batch(LENGTHS, side, pad)
    outputs = model(batch["input_ids"], batch["attention_mask"])
    packed = model.pooler.packed(*model.encode(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"])
    torch.testing.assert_close(packed, outputs.pooler_output, **CLOSE)
    for row, vector in zip(real_rows(batch["input_ids"], batch["attention_mask"]), packed, strict=True):
        (hidden,) = model(row).last_hidden_state  # (length, hidden)
        weights = (hidden @ model.pooler.query).exp()
        torch.testing.assert_close(vector, (weights[:, None] * hidden).sum(0) / weights.sum(), **CLOSE)


def test_it_begins_as_the_mean():
    config = {
        "text_config": {"vocab_size": 64, **{"hidden_size": 32, "num_attention_heads": 2}, "num_hidden_layers": 1}
    }
    torch.manual_seed(0)
    model = SimMIMModel(SimMIMConfig(**config, pooling="attention")).eval()
    batch = ragged_batch(LENGTHS)
    hidden = model(batch["input_ids"], batch["attention_mask"])
    real = batch["attention_mask"][..., None]
    mean = (hidden.last_hidden_state * real).sum(1) / real.sum(1)
    torch.testing.assert_close(hidden.pooler_output, mean, **CLOSE)


def test_large_scores_stay_finite():
    model = tiny_model(pooling="attention").simmim
    with torch.no_grad():
        model.pooler.query *= 1e4
    batch = ragged_batch(LENGTHS)
    packed = model.pooler.packed(*model.encode(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"])
    assert packed.isfinite().all()
    torch.testing.assert_close(packed, model(batch["input_ids"], batch["attention_mask"]).pooler_output, **CLOSE)


def test_the_query_learns_from_the_contrastive_term_alone():
    model = tiny_model(pooling="attention").train()
    model(**batch_of_two_views(LENGTHS, LENGTHS)).loss.backward()
    assert model.simmim.pooler.query.grad.abs().max() > 0
    for weights in ({"contrastive_weight": 0.0}, {"contrastive_weight": 0.0, "clm_weight": 1.0}):
        assert not tiny_model(pooling="attention", **weights).simmim.pooler.query.requires_grad


def test_it_travels_through_every_class(tmp_path):
    model = tiny_model(pooling="attention")
    model.save_pretrained(tmp_path / "one")
    for auto_class in (AutoModelForMaskedLM, AutoModelForTokenClassification):
        other = auto_class.from_pretrained(tmp_path / "one")
        assert not other.simmim.pooler.query.requires_grad  # no loss of this class reaches it
        other.save_pretrained(tmp_path / auto_class.__name__)
        again = AutoModel.from_pretrained(tmp_path / auto_class.__name__)
        assert torch.equal(again.pooler.query, model.simmim.pooler.query)
    assert SimMIMForPreTraining.from_pretrained(tmp_path / "one").simmim.pooler.query.requires_grad


def test_a_checkpoint_with_another_pooling_starts_from_its_mean(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    other = SimMIMForPreTraining.from_backbone(tmp_path, pooling="attention")
    ids = padded([[5, 6, 7], [8]], 0)
    mask = padded([[1, 1, 1], [1]], 0)
    torch.testing.assert_close(other.simmim(ids, mask).pooler_output, model.simmim(ids, mask).pooler_output, **CLOSE)
