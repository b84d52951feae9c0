"""A mean over tokens that are weighted by a learned score, and the layers whose tokens are pooled."""

import pytest
import torch
from helpers import CLOSE, FAMILIES, batch_of_two_views, padded, ragged_batch, real_rows, tiny_model
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification

from simmim_hf import (
    SimMIMConfig,
    SimMIMForPreTraining,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
    SimMIMModel,
)
from simmim_hf.model.configuration_simmim import OBJECTIVES
from simmim_hf.model.pooling import pool
from simmim_hf.pretraining.options import DEFAULT_OBJECTIVE, ModelArguments

LENGTHS = [9, 1, 5, 14, 5]


def texts():
    return {name: x for name, x in ragged_batch(LENGTHS).items() if name in ("input_ids", "attention_mask")}


def unpadded_vectors(model, batch):
    """(rows, dim), as in training."""
    states, unpadding, *_ = model.token_states(batch["input_ids"], batch["attention_mask"])
    return model.pooler.unpadded(states, unpadding, batch["attention_mask"])


@pytest.mark.parametrize(
    ("family", "side", "layers"),
    [
        *((family, "left", layers) for family in FAMILIES for layers in ("first_last", "table_and_last")),
        *((family, "right", "last") for family in ("bert", "roberta")),
    ],
)
def test_unpadded_equals_padded_equals_the_formula(family, side, layers):
    model = tiny_model(family, pooling="attention", pooled_layers=layers).simmim
    pad = FAMILIES[family].get("pad_token_id", 0)
    batch = ragged_batch(LENGTHS, side, pad)
    outputs = model(batch["input_ids"], batch["attention_mask"])
    unpadded = unpadded_vectors(model, batch)
    torch.testing.assert_close(unpadded, outputs.pooler_output, **CLOSE)
    for row, vector in zip(real_rows(batch["input_ids"], batch["attention_mask"]), unpadded, strict=True):
        (hidden,) = model(row).last_hidden_state  # (length, hidden)
        if layers == "first_last":
            hidden = (hidden + model(row, output_hidden_states=True).hidden_states[0][0]) / 2
        elif layers == "table_and_last":
            lexicon = model.pooler.lexicon
            states = (hidden - hidden.mean(-1, keepdim=True)) / (
                hidden.var(-1, correction=0, keepdim=True) + 1e-5
            ).sqrt()
            states = states * lexicon.state_scale + lexicon.state_bias
            hidden = torch.cat([lexicon.norm(lexicon.table(row[0])), states], dim=1)
        of_lexicon = [model.pooler.lexicon.query] if layers == "table_and_last" else []
        weights = (hidden @ torch.cat([*of_lexicon, model.pooler.query])).exp()
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


def test_the_token_table_begins_as_a_bag_of_words_with_a_little_of_the_states():
    text_config = tiny_model().config.text_config
    config = SimMIMConfig(text_config=text_config, pooled_layers="table_and_last", token_table_dim=24)
    lexicon = SimMIMModel(config).pooler.lexicon
    assert lexicon.table.weight.std() > 0 and lexicon.norm.weight.eq(1).all()
    assert lexicon.state_scale.eq(lexicon.STATE_SCALE).all() and not lexicon.state_bias.any()
    with pytest.raises(ValueError, match="`token_table_dim` is 0: give a width of 1 or more"):
        SimMIMConfig(token_table_dim=0)


def test_a_vector_is_as_wide_as_the_configuration_says():
    options = {"pooled_layers": "table_and_last", "token_table_dim": 24, "projection_dim": 8}
    model = tiny_model(**options)
    config = model.config
    assert config.embedding_dim == config.hidden_size + 24 and tiny_model().config.embedding_dim == config.hidden_size
    assert model.simmim(**texts()).pooler_output.shape == (len(LENGTHS), config.embedding_dim)
    assert model(**batch_of_two_views(LENGTHS, LENGTHS)).original_embeds.shape == (len(LENGTHS), 8)
    classifier = SimMIMForSequenceClassification(SimMIMConfig(**{**config.to_dict(), "num_labels": 3}))
    assert classifier(**texts()).logits.shape == (len(LENGTHS), 3)
    tagger = SimMIMForTokenClassification(config)  # which makes no vectors
    assert tagger.classifier.in_features == config.hidden_size


def test_large_scores_stay_finite():
    model = tiny_model(pooling="attention").simmim
    with torch.no_grad():
        model.pooler.query *= 1e4
    batch = ragged_batch(LENGTHS)
    unpadded = unpadded_vectors(model, batch)
    assert unpadded.isfinite().all()
    torch.testing.assert_close(unpadded, model(batch["input_ids"], batch["attention_mask"]).pooler_output, **CLOSE)


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


@pytest.mark.parametrize("layers", ["last", "first_last"])
def test_a_checkpoint_with_a_token_table_may_go_on_without(layers, tmp_path):
    tiny_model(pooling="attention", pooled_layers="table_and_last").save_pretrained(tmp_path)
    other = SimMIMForPreTraining.from_backbone(tmp_path, pooled_layers=layers).simmim
    expected = tiny_model(pooling="attention", pooled_layers=layers).simmim
    torch.testing.assert_close(other(**texts()).pooler_output, expected(**texts()).pooler_output, **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_two_layers_in_every_pooling(pooling):
    model, batch = tiny_model(pooling=pooling, pooled_layers="first_last").simmim, texts()
    outputs = model(**batch)
    assert outputs.hidden_states is None  # only on request
    first, *_, last = model(**batch, output_hidden_states=True).hidden_states
    torch.testing.assert_close(outputs.pooler_output, pool((first + last) / 2, batch["attention_mask"], pooling))
    torch.testing.assert_close(unpadded_vectors(model, batch), outputs.pooler_output, **CLOSE)
    torch.testing.assert_close(outputs.last_hidden_state, tiny_model().simmim(**batch).last_hidden_state)


@pytest.mark.parametrize("layers", ["last", "first_last"])
def test_a_backbone_that_gives_its_layers_goes_on_giving_them(layers):
    model = tiny_model(backbone={"output_hidden_states": True}, pooled_layers=layers).simmim
    assert len(model(**texts()).hidden_states) == 3
    assert model(**texts(), output_hidden_states=False).hidden_states is None


def test_a_bag_of_words_has_one_layer():
    one, two = (
        tiny_model(backbone={"num_hidden_layers": 0}, pooled_layers=layers) for layers in ("last", "first_last")
    )
    batch = texts()
    torch.testing.assert_close(one.simmim(**batch).pooler_output, two.simmim(**batch).pooler_output)


@pytest.mark.parametrize("layers", ["first_last", "table_and_last"])
def test_two_layers_learn_and_are_chunked_exactly(layers):
    batch = batch_of_two_views(LENGTHS, LENGTHS)
    whole, chunked = (tiny_model(pooling="attention", pooled_layers=layers) for _ in "ab")
    chunked.chunk_size = 2
    for model in (whole, chunked):
        model(**batch).loss.backward()
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **CLOSE, msg=name)


def test_the_token_table_serves_the_vectors_alone(tmp_path):
    model, batch = tiny_model(pooled_layers="table_and_last").train(), batch_of_two_views(LENGTHS, LENGTHS)
    table = model.simmim.pooler.lexicon.table.weight
    model(**batch).mlm_loss.backward()
    assert table.grad is None or not table.grad.any()
    model(**batch).contrastive_loss.backward()
    assert table.grad.abs().max() > 0
    without = tiny_model(pooled_layers="table_and_last", contrastive_weight=0.0).simmim.pooler.lexicon
    assert not any(parameter.requires_grad for parameter in without.parameters())
    with pytest.raises(ValueError, match="give `input_ids`, not `inputs_embeds`"):
        model.simmim(inputs_embeds=torch.randn(1, 3, model.config.hidden_size))
    model.save_pretrained(tmp_path)
    reader = AutoModelForMaskedLM.from_pretrained(tmp_path)  # which makes no vectors
    assert reader(inputs_embeds=torch.randn(1, 3, model.config.hidden_size)).logits.isfinite().all()


def test_the_token_table_grows_with_the_vocabulary():
    model, batch = tiny_model(pooled_layers="table_and_last"), texts()
    expected, size = model.simmim(**batch).pooler_output, model.config.vocab_size
    model.resize_token_embeddings(size + 3)
    assert model.simmim.pooler.lexicon.table.num_embeddings == model.config.vocab_size == size + 3
    torch.testing.assert_close(model.simmim(**batch).pooler_output, expected)
    assert model.simmim(torch.tensor([[size + 2]])).pooler_output.isfinite().all()


@pytest.mark.parametrize("layers", ["first_last", "table_and_last"])
def test_two_layers_travel_and_a_checkpoint_that_is_continued_keeps_its_own(layers, tmp_path):
    model, batch = tiny_model(pooled_layers=layers), texts()
    model.save_pretrained(tmp_path)
    expected = model.simmim(**batch).pooler_output
    for auto_class in (AutoModel, AutoModelForMaskedLM):
        again = auto_class.from_pretrained(tmp_path).base_model
        torch.testing.assert_close(again(**batch).pooler_output, expected)
    options = ModelArguments(model_name_or_path=str(tmp_path)).config_options()
    continued = SimMIMForPreTraining.from_backbone(tmp_path, **options)
    torch.testing.assert_close(continued.simmim(**batch).pooler_output, expected)
    assert ModelArguments().config_options()["pooled_layers"] == OBJECTIVES[DEFAULT_OBJECTIVE]["pooled_layers"]


@pytest.mark.parametrize(
    ("family", "pooling", "side"),
    [
        *(("bert", pooling, "left") for pooling in ("mean", "cls", "max")),
        *(("bert", "cls", "right"), ("modernbert", "max", "right"), ("llama", "mean", "right")),
    ],
)
def test_pooling_does_not_see_padding(family, pooling, side):
    model, batch = tiny_model(family, pooling=pooling), ragged_batch(LENGTHS, side)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        vectors = model.base_model(**inputs).pooler_output
        for vector, ids in zip(vectors, real_rows(batch["input_ids"], batch["attention_mask"])):
            native = model.simmim.encoder(input_ids=ids, is_causal=False).last_hidden_state[0]
            expected = {"mean": native.mean(0), "cls": native[0], "max": native.amax(0)}[pooling]
            torch.testing.assert_close(vector, expected, **CLOSE)
        torch.testing.assert_close(model(**batch).original_embeds, vectors, **CLOSE)


def test_max_pooling_of_negative_values():
    hidden = -1 - torch.rand(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]])
    pooled = pool(hidden, mask, "max")
    torch.testing.assert_close(pooled, torch.stack([hidden[0, :2].amax(0), hidden[1, 2]]))
    assert pool(hidden.bfloat16(), mask, "max").isfinite().all()


def test_mean_pooling_in_half_precision_holds_long_sums():
    hidden = torch.full((1, 2049, 2), 60.0, dtype=torch.float16)
    torch.testing.assert_close(pool(hidden, torch.ones(1, 2049), "mean"), hidden[:, 0])
    hidden = torch.full((1, 513, 2), 1.0, dtype=torch.bfloat16)
    torch.testing.assert_close(pool(hidden, torch.ones(1, 513), "mean"), hidden[:, 0], rtol=0, atol=0)


def test_a_head_that_reads_tokens_has_the_backbone_keep_no_layers():
    model, seen = tiny_model(pooled_layers="first_last"), []
    model.simmim.encoder.register_forward_hook(lambda *args: seen.append(args[-1].hidden_states))
    vectors = model.simmim(**texts()).pooler_output
    assert model(**texts()).logits.isfinite().all() and vectors is not None
    assert seen[0] is not None and seen[1] is None


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_encoder_learns_as_if_there_were_no_contrastive_term(chunk_size):
    options = {"pooling": "attention", "pooled_layers": "table_and_last", "contrastive_gradient": "pooler"}
    joint, alone = tiny_model(**options), tiny_model(**options)
    joint.chunk_size, batch = chunk_size, batch_of_two_views(LENGTHS, LENGTHS)
    joint(**batch).loss.backward()
    alone(**batch).mlm_loss.backward()
    for (name, one), other in zip(joint.named_parameters(), alone.parameters(), strict=True):
        if "pooler" in name:
            assert one.grad.abs().max() > 0 and not other.grad.any(), name
        else:
            torch.testing.assert_close(one.grad, other.grad, **CLOSE, msg=name)


def test_an_encoder_that_learns_nothing_is_left_as_it_is():
    options = {"pooled_layers": "table_and_last", "contrastive_gradient": "pooler"}
    model = tiny_model(**options, mlm_weight=0.0).train()
    model(**batch_of_two_views(LENGTHS, LENGTHS)).loss.backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {
        f"simmim.pooler.lexicon.{name}"
        for name in ("table.weight", "norm.weight", "norm.bias", "state_scale", "state_bias")
    }
    assert all(parameter.requires_grad for parameter in tiny_model(**options).simmim.encoder.parameters())
    with pytest.raises(ValueError, match="has nothing to learn: give `pooled_layers='table_and_last'`"):
        tiny_model(contrastive_gradient="pooler")
