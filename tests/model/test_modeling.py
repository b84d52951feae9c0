"""One encoder, two views: sharing, terms, tying, saving, pooling, pipelines and starting from native checkpoints."""

import copy
import json
import pickle

import pytest
import torch
from helpers import (
    CAUSAL,
    CLOSE,
    FAMILIES,
    LENGTHS,
    MASK_ID,
    SAVED,
    VOCAB,
    assert_same_gradients,
    files_in,
    gradients,
    ragged_batch,
    randomize,
    text_config,
    tied,
    tiny_model,
)
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertModel,
    PreTrainedModel,
)

from simmim_hf import SimMIMConfig, SimMIMForMaskedLM, SimMIMForPreTraining, SimMIMModel

ONLY = {
    "mlm_loss": {"mlm_weight": 1, "contrastive_weight": 0, "clm_weight": 0},
    "contrastive_loss": {"mlm_weight": 0, "contrastive_weight": 1, "clm_weight": 0},
    "clm_loss": CAUSAL,
}


# Siamese: one encoder.


def test_there_is_one_encoder():
    model = tiny_model("bert")
    inner = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config.model_type == "bert"]
    assert inner == [model.base_model.encoder]
    assert len({p.data_ptr() for p in model.simmim.parameters()}) == len(list(model.simmim.parameters()))
    assert sum(p.numel() for p in model.simmim.parameters()) == sum(
        p.numel() for p in BertModel(text_config(), add_pooling_layer=False).parameters()
    )


def test_every_parameter_of_the_encoder_moves_both_views():
    model, batch = tiny_model("bert"), ragged_batch(LENGTHS)
    with torch.no_grad():
        before = model(**batch)
        for name, parameter in model.simmim.named_parameters():
            saved = parameter.clone()
            parameter += 0.1 * torch.randn_like(parameter)
            after = model(**batch)
            parameter.copy_(saved)
            if "key.bias" in name:  # adds the same to every score of a query, which softmax does not see
                continue
            for view in ("original_embeds", "masked_embeds"):
                assert (after[view] - before[view]).abs().max() > 1e-5, f"{name} does not move {view}"


def test_equal_views_have_equal_vectors():
    model, batch = tiny_model("bert"), ragged_batch(LENGTHS)
    out = model(**{**batch, "masked_input_ids": batch["input_ids"]})
    torch.testing.assert_close(out.original_embeds, out.masked_embeds, rtol=0, atol=1e-6)
    swapped = model(**{**batch, "input_ids": batch["masked_input_ids"], "masked_input_ids": batch["input_ids"]})
    straight = model(**batch)
    torch.testing.assert_close(swapped.original_embeds, straight.masked_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(swapped.masked_embeds, straight.original_embeds, rtol=0, atol=1e-6)


def test_both_views_send_gradients():
    """No stop-gradient: the gradient of the contrastive loss is that of its two views, each held fixed in turn."""
    model, batch = tiny_model("bert", mlm_weight=0, temperature=0.5), ragged_batch(LENGTHS)
    out = model(**batch)
    for view in (out.original_embeds, out.masked_embeds):
        (gradient,) = torch.autograd.grad(out.contrastive_loss, view, retain_graph=True)
        assert gradient.abs().max() > 1e-5


def test_forward_leaves_the_batch_alone():
    model, batch = tiny_model("bert", clm_weight=1), ragged_batch(LENGTHS)
    copies = {name: tensor.clone() for name, tensor in batch.items()}
    model(**batch)
    assert all(torch.equal(batch[name], copy) for name, copy in copies.items())


# The terms.


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_joint_gradient_is_the_weighted_sum_of_its_terms(family):
    weights = {"mlm_weight": 0.3, "contrastive_weight": 1.7, "clm_weight": 0.6}
    joint, batch = tiny_model(family, temperature=0.5, **weights), ragged_batch(LENGTHS)
    out = joint(**batch)
    actual = gradients(joint, out.loss)
    expected = {name: torch.zeros_like(gradient) for name, gradient in actual.items()}
    total = 0.0
    for name, options in ONLY.items():
        single = tiny_model(family, temperature=0.5, **options).requires_grad_(True)
        single.load_state_dict(joint.state_dict())
        term = single(**batch)
        torch.testing.assert_close(term.loss, out[name], **CLOSE)
        weight = weights[name.replace("loss", "weight")]
        total += weight * term.loss
        for parameter, gradient in gradients(single, term.loss).items():
            expected[parameter] += weight * gradient
    torch.testing.assert_close(out.loss, total, **CLOSE)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize(
    ("objective", "terms", "encoder_tokens", "head_tokens"),
    [
        ("mlm", {"mlm_loss"}, ["masked"], "corrupted"),
        ("simcse", {"contrastive_loss"}, ["original", "original"], None),
        ("simmim", {"mlm_loss", "contrastive_loss"}, ["original", "masked"], "corrupted"),
        ("clm", {"clm_loss"}, ["original"], "next"),
        ("fused", {"mlm_loss", "contrastive_loss", "clm_loss"}, ["original", "masked", "original"], "both"),
    ],
)
def test_a_term_of_weight_zero_costs_nothing(objective, terms, encoder_tokens, head_tokens):
    model, batch = tiny_model("bert", **_preset(objective)), ragged_batch(LENGTHS)
    model(**batch)
    read, predicted = [], []
    model.get_input_embeddings().register_forward_hook(lambda m, args, out: read.append(args[0].flatten()))
    model.lm_head.dense.register_forward_hook(lambda m, args, out: predicted.append(len(args[0])))
    out = model(**batch)
    assert {name for name in ("mlm_loss", "contrastive_loss", "clm_loss") if out.get(name) is not None} == terms
    assert out.logits is None
    assert (out.original_embeds is None) == ("contrastive_loss" not in terms)
    real = batch["attention_mask"].bool()
    ids = {"original": batch["input_ids"][real], "masked": batch["masked_input_ids"][real]}
    expected = torch.cat([ids[view] for view in encoder_tokens])
    assert torch.equal(torch.cat(read).sort().values, expected.sort().values)
    corrupted, following = int((batch["labels"] != -100).sum()), int(real.sum()) - len(LENGTHS)
    assert (
        predicted
        == {None: [], "corrupted": [corrupted], "next": [following], "both": [corrupted, following]}[head_tokens]
    )


def _preset(objective):
    config = SimMIMConfig.from_objective(objective)
    names = ("mlm_weight", "contrastive_weight", "clm_weight", "positive_view")
    return {name: getattr(config, name) for name in names}


def test_simcse_pulls_towards_another_dropout_mask():
    model = tiny_model("bert", **_preset("simcse"))
    batch = ragged_batch(LENGTHS)
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    torch.testing.assert_close(out.original_embeds, out.masked_embeds, rtol=0, atol=1e-6)
    model.train()
    out = model(**batch)
    assert (out.original_embeds - out.masked_embeds).abs().amax(1).min() > 1e-3
    out.loss.backward()
    with_masked = tiny_model("bert", mlm_weight=1, positive_view="dropout").eval()(**batch)
    torch.testing.assert_close(with_masked.original_embeds, with_masked.masked_embeds, rtol=0, atol=1e-6)
    assert with_masked.mlm_loss is not None


@pytest.mark.parametrize("objective", ["mlm", "simmim", "fused"])
def test_a_missing_view_has_a_clear_error(objective):
    model, batch = tiny_model("bert", **_preset(objective)), ragged_batch(LENGTHS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with pytest.raises(ValueError, match=r"`masked_input_ids` is missing.*DataCollatorForSimMIM"):
        model(input_ids=ids, attention_mask=mask, labels=batch["labels"])
    with pytest.raises(ValueError, match=r"`labels` is missing.*DataCollatorForSimMIM"):
        model(input_ids=ids, attention_mask=mask, masked_input_ids=batch["masked_input_ids"])


def test_no_attention_mask_means_no_padding():
    model, batch = tiny_model("bert", clm_weight=1), ragged_batch([6, 6, 6])
    expected = model(**batch).loss
    del batch["attention_mask"]
    assert model(**batch).loss == expected


def test_token_types_reach_the_encoder():
    model, batch = tiny_model("bert"), ragged_batch(LENGTHS)
    types = torch.zeros_like(batch["input_ids"])
    types[:, 2:] = 1
    plain, typed = model(**batch), model(**batch, token_type_ids=types)
    assert (plain.original_embeds - typed.original_embeds).abs().max() > 1e-3
    model.simmim._can_unpad = False
    torch.testing.assert_close(model(**batch, token_type_ids=types).loss, typed.loss, **CLOSE)
    vectors = model.base_model(batch["input_ids"], batch["attention_mask"], types).pooler_output
    torch.testing.assert_close(vectors, typed.original_embeds, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "llama"])
def test_without_labels_it_is_a_masked_language_model(family, tmp_path):
    model, batch = tiny_model(family), ragged_batch(LENGTHS)
    inputs = {"input_ids": batch["masked_input_ids"], "attention_mask": batch["attention_mask"]}
    out = model(**inputs)
    assert out.logits.shape == (4, 11, VOCAB)
    assert out.loss is None
    model.save_pretrained(tmp_path)
    masked_lm = SimMIMForMaskedLM.from_pretrained(tmp_path).eval()
    trained = masked_lm(**inputs, labels=batch["labels"])
    assert torch.equal(trained.logits, out.logits)
    torch.testing.assert_close(trained.loss, model(**batch).mlm_loss, **CLOSE)
    assert masked_lm(**inputs).loss is None
    assert type(model(**inputs, return_dict=False)) is tuple


# Frozen and tied parameters.


@pytest.mark.parametrize(
    ("objective", "tie", "reload"),
    [
        *((objective, True, True) for objective in ("clm", "mlm", "simcse", "simmim", "fused")),
        *((objective, False, False) for objective in ("simcse", "simmim")),
    ],
)
def test_every_trainable_parameter_gets_a_gradient(objective, tie, reload, tmp_path):
    """What no term reaches is frozen, or DistributedDataParallel would wait for it."""
    model = tiny_model("bert", **_preset(objective), projection_dim=8, tie_word_embeddings=tie)
    if reload:
        model.save_pretrained(tmp_path)
        model = SimMIMForPreTraining.from_pretrained(tmp_path)
    model(**ragged_batch(LENGTHS)).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.requires_grad for p in model.simmim.parameters())
    assert all(p.requires_grad for p in model.projection.parameters()) == (objective in ("simcse", "simmim", "fused"))
    assert model.lm_head.dense.weight.requires_grad == (objective != "simcse")


def test_a_larger_vocabulary_leaves_the_unused_head_frozen():
    model = tiny_model("bert", **_preset("simcse"))
    model.resize_token_embeddings(VOCAB + 6)
    model(**ragged_batch(LENGTHS)).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("family", ["gptj", "gpt_neo", "bloom"])
def test_a_decoder_that_cannot_look_ahead_is_refused_or_announced(family, caplog):
    """Their attention ignores `is_causal=False`: masked tokens would be predicted from the left context alone."""
    names = {"gptj": ("n_embd", "n_layer", "n_head"), "gpt_neo": ("hidden_size", "num_layers", "num_heads")}
    names = names.get(family, ("hidden_size", "n_layer", "n_head"))
    backbone = dict(zip(names, (32, 2, 4))) | {"model_type": family, "vocab_size": VOCAB, "pad_token_id": 0}
    backbone |= {"gptj": {"rotary_dim": 4}, "gpt_neo": {"attention_types": [[["global"], 2]]}}.get(family, {})
    batch = ragged_batch([9, 6])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, 5] = MASK_ID
    try:
        model = randomize(SimMIMForPreTraining(SimMIMConfig(text_config=backbone)))
        model(**batch)
        read = [model.base_model(b["input_ids"], b["attention_mask"]).last_hidden_state for b in (batch, changed)]
    except ValueError as error:
        assert family in str(error)
        return
    assert (read[0] - read[1])[:, :5].abs().max() > 0 or family in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_tied(family, tmp_path):
    model = tiny_model(family)
    assert tied(model)
    model.save_pretrained(tmp_path)
    for auto_class in (AutoModelForPreTraining, AutoModelForMaskedLM):
        assert tied(auto_class.from_pretrained(tmp_path))
    model.resize_token_embeddings(VOCAB + 6)
    assert tied(model)
    assert model.config.vocab_size == model.config.text_config.vocab_size == VOCAB + 6
    assert model.lm_head.decoder.weight.shape[0] == VOCAB + 6
    bias = model.lm_head.decoder.bias
    assert bias is None or len(bias) == VOCAB + 6
    ids = torch.tensor([[VOCAB + 5, 7, VOCAB]])
    logits = model(input_ids=ids).logits
    assert logits.shape == (1, 3, VOCAB + 6)
    model.save_pretrained(tmp_path)
    again = SimMIMForPreTraining.from_pretrained(tmp_path).eval()
    assert tied(again)
    torch.testing.assert_close(again(input_ids=ids).logits, logits, rtol=0, atol=0)
    loss = again(input_ids=ids, masked_input_ids=ids, labels=ids).loss
    assert loss.isfinite()


@pytest.mark.parametrize(("family", "backbone_ties"), [("bert", True), ("llama", False)])
def test_the_own_option_decides_about_tying(family, backbone_ties, tmp_path):
    for tie in (True, False):
        model = tiny_model(family, {"tie_word_embeddings": backbone_ties}, tie_word_embeddings=tie)
        assert tied(model) == tie
        model.save_pretrained(tmp_path / str(tie))
        again = SimMIMForPreTraining.from_pretrained(tmp_path / str(tie))
        assert tied(again) == tie
        ids = torch.tensor([[7, 8, 9]])
        assert torch.equal(again.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


# Saving and loading.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_loads_into_every_class_bit_by_bit(family, tmp_path):
    model = tiny_model(family, projection_dim=8)
    model.save_pretrained(tmp_path)
    assert files_in(tmp_path) == SAVED
    assert "simmim_sdpa" not in (tmp_path / "config.json").read_text()
    batch = ragged_batch(LENGTHS, pad=model.config.pad_token_id)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        loss, logits = model(**batch).loss, model(**inputs).logits
        vectors = model.base_model(**inputs).pooler_output
        for auto_class in (AutoModelForPreTraining, AutoModel, AutoModelForMaskedLM):
            again, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
            assert not info["missing_keys"] and not info["mismatched_keys"], auto_class
            assert not info["unexpected_keys"] and not info["error_msgs"], auto_class
            assert not again.training
            state = model.state_dict() if auto_class is not AutoModel else model.simmim.state_dict()
            for name, tensor in again.state_dict().items():
                assert torch.equal(tensor, state[name]), name
            if auto_class is AutoModelForPreTraining:
                assert type(again) is SimMIMForPreTraining
                assert torch.equal(again(**batch).loss, loss)
            if auto_class is AutoModel:
                assert type(again) is SimMIMModel
                assert torch.equal(again(**inputs).pooler_output, vectors)
            else:
                assert torch.equal(again(**inputs).logits, logits)


@pytest.mark.parametrize(
    "copies", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_model_can_be_copied(copies):
    """For an exponential moving average, `torch.save(model)` and processes that are spawned."""
    model, batch = tiny_model("bert"), ragged_batch(LENGTHS)
    loss = model(**batch).loss
    again = copies(model)
    assert tied(again)
    assert again.get_input_embeddings().weight is not model.get_input_embeddings().weight
    assert torch.equal(again(**batch).loss, loss)


def test_the_encoder_alone_can_be_saved_and_continued(tmp_path):
    """A SimMIMModel has no head: a pre-training model that starts from it says which parts are new."""
    encoder = tiny_model("bert").base_model
    encoder.save_pretrained(tmp_path)
    again, info = SimMIMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("lm_head.") for name in info["missing_keys"])
    assert tied(again)
    for name, tensor in again.simmim.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name])


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_loading_in_bfloat16(family, tmp_path):
    model, batch = tiny_model(family, temperature=0.5, clm_weight=1.0), ragged_batch(LENGTHS)
    model.save_pretrained(tmp_path)
    half = SimMIMForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    expected, out = model(**batch), half(**batch)
    assert half.simmim._can_unpad
    for name in ("loss", "mlm_loss", "contrastive_loss", "clm_loss"):
        assert out[name].dtype == torch.float32
        torch.testing.assert_close(out[name], expected[name], rtol=0.05, atol=0.05)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)
    assert half(input_ids=batch["input_ids"]).logits.dtype == torch.bfloat16


def test_weights_of_the_backbone_are_initialised_by_its_own_rules():
    torch.manual_seed(0)
    config = SimMIMConfig(text_config=text_config("bert", initializer_range=0.5))
    model = SimMIMForPreTraining(config)
    for weight in (model.simmim.encoder.encoder.layer[0].attention.self.query.weight, model.lm_head.dense.weight):
        assert 0.4 < weight.std() < 0.6
    assert not model.lm_head.decoder.bias.any()
    assert (model.lm_head.norm.weight == 1).all()


def test_hidden_states_on_request():
    """Also from an encoder that reads causally, which goes through the unpadded path."""
    for options in ({}, CAUSAL):
        model, batch = tiny_model("bert", **options), ragged_batch(LENGTHS)
        out = model.base_model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        assert len(out.hidden_states) == 3
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(out.hidden_states[-1][real], out.last_hidden_state[real], rtol=0, atol=0)


@pytest.mark.parametrize("objective", [{}, CAUSAL], ids=["bidirectional", "causal"])
def test_given_positions_are_used(objective):
    model, batch = tiny_model("bert", **objective), ragged_batch([6, 6])
    positions = torch.arange(6).expand(2, 6)
    read = model.base_model(batch["input_ids"], position_ids=positions).last_hidden_state
    torch.testing.assert_close(read, model.base_model(batch["input_ids"]).last_hidden_state, **CLOSE)
    shifted = model.base_model(batch["input_ids"], position_ids=positions + 3).last_hidden_state
    assert (shifted - read).abs().max() > 1e-3


def test_inputs_that_the_loss_does_not_read_are_refused():
    with pytest.raises(TypeError, match="does not read position_ids"):
        tiny_model()(**ragged_batch([3, 3]), position_ids=torch.arange(3)[None])


@pytest.mark.parametrize(
    ("options", "views"),
    [({}, 2), ({"contrastive_weight": 0.0}, 1), (CAUSAL, 1), ({"pooled_layers": "first_last"}, 2)],
    ids=["both terms", "masked alone", "causal alone", "both, two layers pooled"],
)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_states_beside_the_loss(options, views, chunk_size):
    """Those of every view, with their gradients, and the loss is the one without them."""
    model, batch = tiny_model("bert", attn_implementation="eager", **options), ragged_batch(LENGTHS)
    model.chunk_size = chunk_size
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    rows, length = batch["input_ids"].shape
    assert [state.shape for state in out.hidden_states] == [(views * rows, length, 32)] * 3
    assert [a.shape[-2:] for a in out.attentions] == [(length, length)] * 2
    out.hidden_states[0].retain_grad()
    out.loss.backward()
    assert out.hidden_states[0].grad.abs().max() > 0
    plain = model(**batch)
    torch.testing.assert_close(plain.loss, out.loss, **CLOSE)
    assert plain.hidden_states is None and plain.attentions is None


def test_large_values_in_half_precision_do_not_look_like_another_result():
    model = tiny_model().to(torch.bfloat16)
    with torch.no_grad():
        model.base_model.encoder.encoder.layer[-1].output.LayerNorm.weight.mul_(30)
    assert model.base_model.reads_unpadded(torch.device("cpu"))


def test_the_projection_is_for_the_loss_only(tmp_path):
    model, batch = tiny_model("bert", projection_dim=8, similarity="dot", temperature=2.0), ragged_batch(LENGTHS)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        out = model(**batch)
        vectors = model.base_model(**inputs).pooler_output
        assert vectors.shape == (4, 32)
        assert out.original_embeds.shape == out.masked_embeds.shape == (4, 8)
        torch.testing.assert_close(out.original_embeds, model.projection(vectors), **CLOSE)
        scores = out.original_embeds @ out.masked_embeds.T / 2.0
        expected = torch.nn.functional.cross_entropy(scores, torch.arange(4))
        torch.testing.assert_close(out.contrastive_loss, expected, **CLOSE)
        model.save_pretrained(tmp_path)
        encoder = SimMIMModel.from_pretrained(tmp_path)
        assert not [name for name, _ in encoder.named_parameters() if "projection" in name]
        torch.testing.assert_close(encoder(**inputs).pooler_output, vectors, rtol=0, atol=0)


def test_the_config_says_nothing_about_this_machine(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["SimMIMForPreTraining"]
    assert str(tmp_path) not in json.dumps(config)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_it_learns(family):
    """A few steps on one batch bring every term down."""
    model = tiny_model(family, temperature=0.2, clm_weight=1.0)
    batch = ragged_batch([9, 12, 7, 10, 5, 11])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model(**batch)
    for _ in range(30):
        optimizer.zero_grad()
        last = model(**batch)
        last.loss.backward()
        optimizer.step()
    for name in ("mlm_loss", "contrastive_loss", "clm_loss"):
        assert last[name] < 0.7 * first[name], name
