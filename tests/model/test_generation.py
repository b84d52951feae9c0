"""Reading from left to right with a cache, and generating."""

import logging

import pytest
import torch
from helpers import (
    DECODERS,
    GENERATING,
    VOCAB,
    WITH_DECODER,
    causal_model,
    randomize,
    real_rows,
    text_config,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    EncoderDecoderModel,
    GenerationConfig,
    StaticCache,
    pipeline,
)

from simmim_hf import (
    SimMIMConfig,
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForPreTraining,
    SimMIMModel,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NEVER_ENDS = {"do_sample": False, "eos_token_id": VOCAB, "pad_token_id": 0}  # noise may hold the end token anywhere

each_family = pytest.mark.parametrize("family", GENERATING)


@pytest.fixture
def said(caplog, monkeypatch):
    """All that transformers and this package say, also what they say only once."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield caplog


# The same network as in pre-training, read from left to right.


@pytest.mark.parametrize(("family", "projection_dim"), [*((family, 8) for family in GENERATING), ("bert", None)])
def test_a_checkpoint_is_taken_over_bit_by_bit(family, projection_dim, tmp_path, said):
    trained = tiny_model(family, projection_dim=projection_dim)
    trained.save_pretrained(tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is SimMIMForCausalLM and not model.training
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert not said.text


@each_family
def test_it_reads_both_ways_again_after_saving(family, tmp_path):
    trained = tiny_model(family)
    trained.save_pretrained(tmp_path / "trained")
    generating = SimMIMForCausalLM.from_pretrained(tmp_path / "trained")
    assert not getattr(generating.config.text_config, "is_decoder", False)
    generating.save_pretrained(tmp_path / "generating")
    ids, mask = texts_of()
    with torch.no_grad():
        encoder = AutoModel.from_pretrained(tmp_path / "generating")
        assert type(encoder) is SimMIMModel
        torch.testing.assert_close(encoder(ids, mask).pooler_output, trained.simmim(ids, mask).pooler_output)
        filler = AutoModelForMaskedLM.from_pretrained(tmp_path / "generating")
        torch.testing.assert_close(filler(ids, mask).logits, trained(ids, mask).logits)


@each_family
def test_a_later_token_changes_nothing_before_it(family):
    model, (ids, _) = causal_model(family), texts_of([9, 9])
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-6)
    assert (after[:, 5:] - before[:, 5:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("family", WITH_DECODER)
def test_logits_are_those_of_the_native_decoder(family, tmp_path):
    """Position offsets too: RoBERTa's begin behind the padding index."""
    auto_class = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    torch.manual_seed(0)
    native = randomize(auto_class.from_config(text_config(family)))
    native.save_pretrained(tmp_path / "native")
    SimMIMForPreTraining.from_backbone(tmp_path / "native", clm_weight=1).save_pretrained(tmp_path / "ours")
    options = {} if family in DECODERS else {"is_decoder": True}
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "native", **options)
    model = SimMIMForCausalLM.from_pretrained(tmp_path / "ours")
    ids, mask = texts_of()
    ids[mask == 0] = native.config.pad_token_id  # from which RoBERTa itself tells padding
    with torch.no_grad():
        expected, actual = decoder(ids, attention_mask=mask).logits, model(ids, mask).logits
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], **CLOSE)


@pytest.mark.parametrize(("family", "side"), [*((family, "left") for family in GENERATING), ("bert", "right")])
def test_a_text_does_not_see_the_padding_of_its_batch(family, side):
    model, (ids, mask) = causal_model(family), texts_of(side=side)
    with torch.no_grad():
        together = model(ids, mask).logits[mask.bool()]
        alone = torch.cat([model(row).logits[0] for row in real_rows(ids, mask)])
    torch.testing.assert_close(together, alone, **CLOSE)


@pytest.mark.parametrize(
    ("family", "side", "pieces"),
    [
        *((family, "left", [4, 1, 6]) for family in GENERATING),
        *(("bert", side, [1] * 11) for side in ("right", "left")),
    ],
)
def test_the_cache_changes_nothing(family, side, pieces):
    model, (ids, mask) = causal_model(family), texts_of(side=side)
    cache, read, logits = None, 0, []
    with torch.no_grad():
        expected = model(ids, mask, use_cache=False)
        for piece in ids.split(pieces, 1):
            read += piece.shape[1]
            out = model(piece, mask[:, :read], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
    assert expected.past_key_values is None and cache.get_seq_length() == 11
    torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected.logits[mask.bool()], **CLOSE)


def test_a_cache_without_a_mask_means_no_padding():
    model, (ids, _) = causal_model("roberta"), texts_of([9, 9])
    with torch.no_grad():
        expected = model(ids).logits
        first = model(ids[:, :4], use_cache=True)
        second = model(ids[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), expected, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_given_positions_are_used(family):
    model, (ids, _) = causal_model(family), texts_of([9, 9])
    positions = torch.arange(9)[None].expand(2, -1) + model.simmim.first_position
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model(ids, position_ids=positions).logits, expected)
        assert not torch.allclose(model(ids, position_ids=positions.flip(1)).logits, expected, atol=1e-3)


def test_logits_on_request():
    model, (ids, mask) = causal_model(), texts_of(side="left")
    with torch.no_grad():
        everything = model(ids, mask)
        torch.testing.assert_close(model(ids, mask, logits_to_keep=2).logits, everything.logits[:, -2:])
        some = torch.tensor([3, 8])
        torch.testing.assert_close(model(ids, mask, logits_to_keep=some).logits, everything.logits[:, some])
        logits, *_ = model(ids, mask, return_dict=False)
    assert torch.equal(logits, everything.logits)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_hidden_states_and_attentions(family):
    model, (ids, mask) = causal_model(family, attn_implementation="eager"), texts_of(side="left")
    with torch.no_grad():
        out = model(ids, mask, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(4, 11, 32)] * 3
    assert [attention.shape for attention in out.attentions] == [(4, 4, 11, 11)] * 2
    for attention in out.attentions:
        assert attention[2].triu(1).abs().max() == 0  # the longest text, which has no padding


# Generating.


def greedy(model, ids, steps):
    """The likeliest next token again and again, without a cache."""
    for _ in range(steps):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[:, -steps:]


@each_family
def test_greedy_texts_of_a_padded_batch_are_those_of_each_text_alone(family):
    model, (ids, mask) = causal_model(family), texts_of(side="left")
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6, **NEVER_ENDS)
    assert torch.equal(together[:, :11], ids)
    with torch.no_grad():
        for row, text in zip(real_rows(ids, mask), together[:, 11:], strict=True):
            alone = model.generate(row, max_new_tokens=6, **NEVER_ENDS)
            assert torch.equal(alone[0, row.shape[1] :], text)
            assert torch.equal(greedy(model, row, 6)[0], text)


def test_options_of_generate():
    model, (ids, mask) = causal_model("roberta"), texts_of(side="left")
    inputs = {"attention_mask": mask, "max_new_tokens": 6, **NEVER_ENDS}
    expected = model.generate(ids, **inputs)
    assert torch.equal(model.generate(ids, use_cache=False, **inputs), expected)
    types = torch.zeros_like(ids)
    assert torch.equal(model.generate(ids, token_type_ids=types, **inputs), expected)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **inputs), expected[:, 11:])
    guess = model.generate(ids[2:3], max_new_tokens=6, prompt_lookup_num_tokens=2, **NEVER_ENDS)
    assert torch.equal(guess, expected[2:3])


def test_it_stops_at_the_end_token():
    model, (ids, _) = causal_model(), texts_of([7])
    third = greedy(model, ids, 3)[0, -1].item()
    out = model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=third)
    assert out[0, -1] == third and out.shape[1] <= 10


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_sampling(family):
    model, (ids, mask) = causal_model(family), texts_of([7, 3], side="left")

    def sample(seed):
        torch.manual_seed(seed)
        options = {**NEVER_ENDS, "do_sample": True, "num_return_sequences": 3}
        return model.generate(ids, attention_mask=mask, max_new_tokens=8, **options)

    first = sample(0)
    assert first.shape == (6, 15) and torch.equal(first[:, :7], ids.repeat_interleave(3, 0))
    assert torch.equal(first, sample(0)) and not torch.equal(first, sample(1))
    assert len({tuple(row.tolist()) for row in first}) > 2


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_beam_as_wide_as_the_vocabulary_finds_the_likeliest_text(family):
    model, (ids, _) = causal_model(family), texts_of([5])
    out = model.generate(
        ids,
        max_new_tokens=2,
        num_beams=VOCAB,
        num_return_sequences=3,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        **NEVER_ENDS,
    )
    with torch.no_grad():
        first = model(ids).logits[0, -1].log_softmax(-1)
        longer = torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)
        joint = first[:, None] + model(longer).logits[:, -1].log_softmax(-1)
    best = joint.flatten().topk(3)
    assert [VOCAB * a + b for a, b in out.sequences[:, 5:].tolist()] == best.indices.tolist()
    torch.testing.assert_close(out.sequences_scores, best.values, **CLOSE)


def test_text_generation_pipeline(tmp_path, said):
    """With no more noise than a model of transformers makes."""
    model = causal_model("bert")
    native = AutoModelForCausalLM.from_config(text_config(is_decoder=True))
    answers, messages = [], []
    for name, some in (("native", native), ("ours", model)):
        some.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        said.clear()
        logging.Logger.warning_once.cache_clear()
        generate = pipeline("text-generation", model=str(tmp_path / name))
        answers.append(generate("w1 w2", max_new_tokens=4, do_sample=False)[0]["generated_text"])
        messages.append([record.getMessage() for record in said.records])
    assert messages[1] == messages[0]
    ids = tiny_tokenizer()("w1 w2", return_tensors="pt")["input_ids"]
    expected = tiny_tokenizer().decode(greedy(model, ids, 4)[0], skip_special_tokens=True)
    assert answers[1].startswith("w1 w2") and answers[1].removeprefix("w1 w2").split() == expected.split()


# The temperature of the contrastive loss is not that of sampling.


@pytest.mark.parametrize("source", [SimMIMForPreTraining, SimMIMForCausalLM])
def test_the_contrastive_temperature_is_not_that_of_sampling(source, tmp_path, said):
    source(tiny_model("bert", clm_weight=1, temperature=0.05).config).save_pretrained(tmp_path)
    for model in (SimMIMForCausalLM.from_pretrained(tmp_path), SimMIMForCausalLM(tiny_model(clm_weight=1).config)):
        assert model.config.temperature == 0.05
        assert model.generation_config.temperature in (None, 1.0)
        out = model.generate(
            texts_of([5])[0],
            **{**NEVER_ENDS, "do_sample": True},
            top_k=0,
            max_new_tokens=3,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        torch.testing.assert_close(torch.stack(out.scores), torch.stack(out.logits))
    assert not said.text


def test_a_given_temperature_of_sampling_is_kept(tmp_path):
    causal_model().save_pretrained(tmp_path)
    given = GenerationConfig(do_sample=True, temperature=0.7, top_k=9)
    model = SimMIMForCausalLM.from_pretrained(tmp_path, generation_config=given)
    for _ in range(2):
        assert (model.generation_config.temperature, model.generation_config.top_k) == (0.7, 9)
        assert model.config.temperature == 0.05
        model.save_pretrained(tmp_path)
        model = SimMIMForCausalLM.from_pretrained(tmp_path)


# What cannot generate, and what has never learned to.


@pytest.mark.parametrize("model_class", [SimMIMModel, SimMIMForPreTraining, SimMIMForMaskedLM])
def test_other_classes_explain_who_generates(model_class):
    with pytest.raises(AttributeError, match=rf"`{model_class.__name__}`.*AutoModelForCausalLM.*infill"):
        model_class(tiny_model().config).generate(texts_of()[0])
    assert not model_class.can_generate()


def warnings_of_generate(model, said):
    logging.Logger.warning_once.cache_clear()
    said.clear()
    for _ in range(2):
        model.generate(texts_of([5])[0], max_new_tokens=2, **NEVER_ENDS)
    return [r.getMessage() for r in said.records if "both directions" in r.getMessage()]


def test_a_bidirectional_checkpoint_is_announced_once(tmp_path, said):
    tiny_model("bert").save_pretrained(tmp_path)
    model = SimMIMForCausalLM.from_pretrained(tmp_path)
    (message,) = warnings_of_generate(model, said)
    assert "`clm_weight`" in message and "fused" in message
    model.save_pretrained(tmp_path)
    assert not warnings_of_generate(SimMIMForCausalLM.from_pretrained(tmp_path), said)


@pytest.mark.parametrize("objective", ["clm", "fused"])
def test_a_causal_objective_is_not_announced(objective, tmp_path, said):
    config = SimMIMConfig.from_objective(objective, text_config=text_config())
    SimMIMForPreTraining(config).save_pretrained(tmp_path)
    assert not warnings_of_generate(SimMIMForCausalLM.from_pretrained(tmp_path), said)


def test_causal_training_ends_the_warning(said):
    model, (ids, _) = SimMIMForCausalLM(tiny_model().config).eval(), texts_of([5])
    model(ids, labels=ids)
    assert warnings_of_generate(model, said), "evaluation teaches nothing"
    model.train()
    model(ids, labels=ids).loss.backward()
    assert not warnings_of_generate(model.eval(), said)


@pytest.mark.parametrize("family, options", [("mpnet", {}), ("modernbert", {"attn_implementation": "eager"})])
def test_a_backbone_that_cannot_decode_names_those_that_can(family, options, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"`{family}` cannot generate.*`modernbert`.*`bert`.*`llama`"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **options)(torch.tensor([[5, 6]]))


@pytest.mark.parametrize(("loaded", "side"), [(False, "right"), (True, "left")])
def test_a_static_cache_is_refused(loaded, side, tmp_path):
    """It would lose the padding: transformers hands over a mask of another shape, or none."""
    model, (ids, mask) = causal_model(), texts_of(side=side)
    if loaded:
        model.save_pretrained(tmp_path)
        model = SimMIMForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`StaticCache`.*default cache"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="`StaticCache`.*default cache"):
        model(ids, mask, past_key_values=StaticCache(model.simmim.encoder.config, max_cache_len=20))


# Two checkpoints as an encoder-decoder.


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")
def test_two_encoders_as_an_encoder_decoder(tmp_path):
    sources = [randomize(tiny_model("bert"), seed).simmim.encoder for seed in (1, 2)]
    folders = [tmp_path / "encoder", tmp_path / "decoder"]
    for source, folder in zip(sources, folders):
        source.save_pretrained(folder)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(*folders)
    for source, part in zip(sources, (model.encoder, model.decoder.bert)):
        state = part.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    assert model.decoder.config.is_decoder and model.decoder.config.add_cross_attention
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 2
    model.config.pad_token_id = 0
    ids, mask = texts_of()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(3):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    texts = model.eval().generate(ids, attention_mask=mask, max_new_tokens=4, **NEVER_ENDS)
    assert texts.shape == (4, 5) and (texts[:, 0] == 2).all()
