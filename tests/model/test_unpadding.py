"""The padding-free pass gives what the padded one gives, and keeps sequences and directions apart."""

import pytest
import torch
from helpers import (
    CLOSE,
    FAMILIES,
    FIRST_WORD,
    NO_DROPOUT,
    PACKED,
    VOCAB,
    assert_same_gradients,
    gradients,
    ragged_batch,
    randomize,
    real_rows,
    tiny_model,
)
from transformers import AutoConfig

from simmim_hf import SimMIMConfig, SimMIMForPreTraining, SimMIMModel
from simmim_hf.model import unpadding
from simmim_hf.model.unpadding import ATTENTION, Unpadding

LENGTHS = [9, 20, 1, 5, 17, 20, 4]
SHAPES = {"ragged": LENGTHS, "ones": [1, 1, 1], "equal": [6, 6, 6], "single": [7], "one-long": [20, 2, 1]}


def encoded(model, batch, is_causal, unpads):
    """(batch, length, hidden), zeros at padding, on the unpadded or on the padded path."""
    model.simmim._can_unpad = unpads
    states, unpadding, *_ = model.simmim.token_states(batch["input_ids"], batch["attention_mask"], is_causal=is_causal)
    return unpadding.pad(states.last)


def with_another_token(batch, row, column):
    ids = batch["input_ids"].clone()
    ids[row, column] = FIRST_WORD + (ids[row, column] - FIRST_WORD + 1) % (VOCAB - FIRST_WORD)
    return {**batch, "input_ids": ids}


def calls_of_sdpa(monkeypatch):
    """Counts the queries (rows, length) that scaled dot-product attention gets."""
    shapes, original = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        shapes.append((query.shape[0], query.shape[2]))
        return original(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return shapes


# Unpadding by itself.


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
def test_unpad_and_pad(lengths, side):
    batch = ragged_batch(lengths, side)
    unpadding = Unpadding.from_mask(batch["attention_mask"])
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows = real_rows(ids, real)
    assert unpadding.unpad(ids).tolist() == [t for i in order for t in rows[i][0].tolist()]
    assert unpadding.positions.tolist() == [p for i in order for p in range(lengths[i])]
    assert torch.equal(unpadding.pad(unpadding.unpad(ids)), ids * real)
    vectors = torch.randn(*ids.shape, 3)
    assert torch.equal(unpadding.pad(unpadding.unpad(vectors)), vectors * real[..., None])
    where = real & (torch.rand(ids.shape) < 0.5)
    for chosen in (where, real, torch.zeros_like(real)):
        selected = unpadding.select(unpadding.unpad(vectors), chosen.flatten().nonzero().squeeze(1))
        assert torch.equal(selected, vectors[chosen])


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
def test_groups_cover_every_token_once(lengths):
    unpadding = Unpadding.from_mask(ragged_batch(lengths)["attention_mask"])
    assert [group.tokens.start for group in unpadding.groups] == [0, *(g.tokens.stop for g in unpadding.groups[:-1])]
    assert unpadding.groups[-1].tokens.stop == sum(lengths)
    assert sum(group.rows for group in unpadding.groups) == len(lengths)
    x = torch.randn(1, 2, sum(lengths), 3)
    assert torch.equal(torch.cat([group.flat(group.grid(x)) for group in unpadding.groups]), x[0].transpose(0, 1))


def test_gradient_flows_back_through_unpadding():
    batch = ragged_batch([3, 1, 2])
    unpadding = Unpadding.from_mask(batch["attention_mask"])
    x = torch.randn(3, 3, 2, dtype=torch.double, requires_grad=True)
    where = (batch["attention_mask"].bool() & (torch.arange(3) == 0)).flatten().nonzero().squeeze(1)
    assert torch.autograd.gradcheck(lambda x: unpadding.pad(unpadding.unpad(x)), x)
    assert torch.autograd.gradcheck(lambda x: unpadding.select(unpadding.unpad(x), where), x)


# Packed is padded.


@pytest.mark.parametrize(
    ("family", "is_causal", "side"),
    [
        *((family, False, "left") for family in PACKED),
        *((family, True, "right") for family in PACKED if family != "modernbert"),
        *(("bert", is_causal, side) for is_causal, side in ((False, "right"), (True, "left"))),
    ],
)
def test_hidden_states_are_those_of_the_padded_batch(family, is_causal, side):
    model = tiny_model(family)
    with torch.no_grad():
        for lengths in SHAPES.values():
            batch = ragged_batch(lengths, side, pad=model.config.pad_token_id)
            unpadded = encoded(model, batch, is_causal, unpads=None)
            assert model.simmim._can_unpad, "this family is claimed to read without padding"
            torch.testing.assert_close(unpadded, encoded(model, batch, is_causal, unpads=False), **CLOSE)


@pytest.mark.parametrize(("family", "side"), [*((family, "left") for family in PACKED), ("bert", "right")])
def test_losses_and_gradients_are_those_of_the_padded_batch(family, side):
    """All terms; ModernBERT has no padded causal reading, and its causal one is tested by truncation below."""
    clm_weight = 0.0 if family == "modernbert" else 0.5
    model = tiny_model(family, temperature=0.5, mlm_weight=0.3, clm_weight=clm_weight)
    batch = ragged_batch(LENGTHS, side, pad=model.config.pad_token_id)
    results = []
    for unpads in (None, False):
        model.simmim._can_unpad = unpads
        out = model(**batch)
        results.append((out, gradients(model, out.loss)))
    (unpadded, unpadded_gradients), (reference, padded_gradients) = results
    for name in ("loss", "mlm_loss", "contrastive_loss", "original_embeds", "masked_embeds"):
        torch.testing.assert_close(unpadded[name], reference[name], **CLOSE)
    assert_same_gradients(unpadded_gradients, padded_gradients)
    unreached = [name for name, gradient in unpadded_gradients.items() if not gradient.any()]
    assert not [name for name in unreached if "token_type" not in name], "a parameter without a gradient"


def test_unpadding_saves_the_padding(monkeypatch):
    model, batch = tiny_model("bert"), ragged_batch([20, 2, 2, 2])
    model(**batch)
    shapes = calls_of_sdpa(monkeypatch)
    model(**batch)
    assert shapes == [(2, 20), (6, 2)] * 2  # both views, in two layers: no short row is padded to the long one


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_all_rows_attend_in_one_call_where_calls_cost_more_than_padding(monkeypatch, family):
    """As on a GPU; the losses and gradients are those of rows in groups of similar length."""
    model = tiny_model(family, temperature=0.5, clm_weight=0.5)
    batch = ragged_batch(LENGTHS, pad=model.config.pad_token_id)
    grouped = model(**batch)
    monkeypatch.setattr(unpadding, "SIMILAR_LENGTH", {})
    shapes = calls_of_sdpa(monkeypatch)
    together = model(**batch)
    assert {length for _, length in shapes} == {max(LENGTHS)}
    for name in ("loss", "mlm_loss", "contrastive_loss", "clm_loss"):
        torch.testing.assert_close(together[name], grouped[name], **CLOSE)
    assert_same_gradients(gradients(model, together.loss), gradients(model, grouped.loss))


@pytest.mark.parametrize(
    ("family", "is_causal"),
    [("bert", False), ("roberta", False), ("modernbert", False), ("llama", False), ("llama", True)],
)
def test_each_sequence_is_read_as_if_alone(family, is_causal):
    """The native encoder, one sequence at a time, without mask or positions: transformers' own answer."""
    model, batch = tiny_model(family), ragged_batch(LENGTHS, "left")
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), model.config.pad_token_id)
    with torch.no_grad():
        unpadded = encoded(model, batch, is_causal, unpads=None)
        for row, ids, mask in zip(unpadded, batch["input_ids"], batch["attention_mask"].bool()):
            options = {"is_causal": is_causal} if family == "llama" else {}
            alone = model.simmim.encoder(input_ids=ids[mask][None], **options).last_hidden_state[0]
            torch.testing.assert_close(row[mask], alone, **CLOSE)


# Direction.


@pytest.mark.parametrize("family", PACKED)
def test_causal_states_are_those_of_the_truncated_sequence(family):
    model = tiny_model(family)
    ids = torch.randint(FIRST_WORD, VOCAB, (1, 20))
    batch = {"input_ids": ids.repeat(2, 1), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    batch["attention_mask"][1, 13:] = 0
    with torch.no_grad():
        states = encoded(model, batch, True, unpads=None)
        for t in (0, 5, 12, 19):
            last = model.base_model(input_ids=ids[:, : t + 1], is_causal=True).last_hidden_state[0, -1]
            torch.testing.assert_close(states[0, t], last, **CLOSE)
            if t < 13:
                torch.testing.assert_close(states[1, t], last, **CLOSE)


@pytest.mark.parametrize(
    ("family", "layer_type"),
    [
        ("bert", None),
        ("roberta", None),
        ("modernbert", "full_attention"),
        ("modernbert", "sliding_attention"),
        ("llama", None),
    ],
)
def test_causal_reading_of_one_layer_against_the_native_encoder(family, layer_type):
    """With one layer the causal state of a token is the native, bidirectional one of the last token of its prefix."""
    backbone = {"num_hidden_layers": 1} | ({"layer_types": [layer_type]} if layer_type else {})
    model = tiny_model(family, backbone)
    batch = ragged_batch([20, 11])
    with torch.no_grad():
        states = encoded(model, batch, True, unpads=None)
        for row, ids in zip(states, real_rows(batch["input_ids"], batch["attention_mask"])):
            for t in (0, 5, ids.shape[1] - 1):
                options = {"is_causal": False} if family == "llama" else {}
                native = model.simmim.encoder(input_ids=ids[:, : t + 1], **options).last_hidden_state[0, -1]
                torch.testing.assert_close(row[t], native, **CLOSE)


@pytest.mark.parametrize(
    ("family", "unpads"),
    [*((family, None) for family in PACKED), *((family, False) for family in ("bert", "modernbert", "llama"))],
)
def test_what_a_token_sees(family, unpads):
    model, batch = tiny_model(family), ragged_batch([12, 8, 3])
    changed = with_another_token(batch, 0, 6)
    with torch.no_grad():
        for is_causal in (False, True):
            if is_causal and unpads is False and family == "modernbert":
                continue
            before, after = (encoded(model, b, is_causal, unpads) for b in (batch, changed))
            moved = (before - after).abs().amax(-1)
            assert moved[1:].max() <= 1e-6, "another sequence is not influenced"
            assert (moved[0, 6:12] > 1e-6).all()
            if is_causal:
                assert moved[0, :6].max() <= 1e-6, "a later token is not seen"
            else:
                assert (moved[0, :6] > 1e-6).all(), "a later token is seen"


def test_a_sliding_window_is_active():
    """Two layers of which one sees 4 tokens on each side: the test above would not tell it from a full one."""
    model = tiny_model("modernbert", {"layer_types": ["sliding_attention"] * 2})
    batch = ragged_batch([20, 18])
    changed = with_another_token(batch, 0, 0)
    with torch.no_grad():
        for unpads in (None, False):
            before, after = (encoded(model, b, False, unpads) for b in (batch, changed))
            moved = (before - after).abs().amax(-1)[0]
            assert (moved[:9] > 0).all()
            assert moved[9:].max() <= 1e-6


SLIDING = {
    "mistral": {"sliding_window": 6},
    "qwen3": {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "modernbert-decoder": {"local_attention": 12, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("family", SLIDING)
def test_sliding_windows_of_decoders(family, is_causal):
    """transformers lets a causal query see keys nearer than the window, a bidirectional one also those at it."""
    special = {"cls_token_id": 2, "sep_token_id": 3}
    backbone = AutoConfig.for_model(family, **{**FAMILIES["llama"], **special, **SLIDING[family]})
    torch.manual_seed(0)
    model = randomize(SimMIMForPreTraining(SimMIMConfig(text_config=backbone)))
    batch = ragged_batch(LENGTHS)
    with torch.no_grad():
        unpadded = encoded(model, batch, is_causal, unpads=None)
        for row, ids in zip(unpadded, real_rows(batch["input_ids"], batch["attention_mask"])):
            alone = model.simmim.encoder(input_ids=ids, is_causal=is_causal).last_hidden_state[0]
            torch.testing.assert_close(row[: len(alone)], alone, **CLOSE)


def test_the_causal_objective_reads_causally_everywhere():
    for family in ("bert", "modernbert", "llama"):
        model = tiny_model(family, mlm_weight=0, contrastive_weight=0, clm_weight=1)
        batch = ragged_batch([9, 6])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
            prefix = model(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits
        torch.testing.assert_close(logits[:, :4], prefix, **CLOSE)


# Backbones that cannot read without padding, and other ways of attending.


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_relative_position_bias_falls_back_to_padding(side):
    model = tiny_model("mpnet")
    batch = ragged_batch(LENGTHS, side, pad=1)
    with torch.no_grad():
        hidden = encoded(model, batch, False, unpads=None)
        assert model.simmim._can_unpad is not True
        for row, ids, mask in zip(hidden, batch["input_ids"], batch["attention_mask"].bool()):
            alone = model.simmim.encoder(input_ids=ids[mask][None]).last_hidden_state[0]
            torch.testing.assert_close(row[mask], alone, **CLOSE)
        assert model(**batch).loss.isfinite()


def test_causal_reading_of_a_backbone_that_cannot_unpad():
    model, batch = tiny_model("mpnet"), ragged_batch([9, 6], pad=1)
    with torch.no_grad():
        hidden = encoded(model, batch, True, unpads=None)
        prefix = {name: x[:, :4] for name, x in batch.items()}
        torch.testing.assert_close(hidden[:, :4], encoded(model, prefix, True, unpads=None), **CLOSE)


@pytest.mark.parametrize(
    ("family", "side"),
    [
        *((family, "left") for family in ("bert", "roberta", "modernbert", "gpt2")),
        *((family, "right") for family in ("distilbert", "llama")),
    ],
)
def test_eager_attention_gives_the_same(family, side):
    clm_weight = 0.0 if family == "modernbert" else 1.0
    unpadded = tiny_model(family, clm_weight=clm_weight)
    eager = tiny_model(family, clm_weight=clm_weight, attn_implementation="eager")
    eager.load_state_dict(unpadded.state_dict())
    assert unpadded.simmim.encoder.config._attn_implementation == ATTENTION
    assert eager.simmim.encoder.config._attn_implementation == "eager"
    batch = ragged_batch(LENGTHS, side, pad=unpadded.config.pad_token_id)
    with torch.no_grad():
        expected, actual = unpadded(**batch), eager(**batch)
    for name in ("loss", "mlm_loss", "contrastive_loss", "original_embeds", "masked_embeds"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)


def test_attentions_can_be_shown_with_eager_attention(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    model = SimMIMModel.from_pretrained(tmp_path, attn_implementation="eager")
    batch = ragged_batch([5, 3])
    out = model(batch["input_ids"], batch["attention_mask"], output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in out.attentions] == [(2, 4, 5, 5)] * 2
    assert len(out.hidden_states) == 3


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(family, monkeypatch):
    dropout = {"bert": NO_DROPOUT, "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
    model = tiny_model(family, dropout.get(family), clm_weight=0.5, temperature=0.5).train()
    batch = ragged_batch(LENGTHS)
    out = model(**batch)
    expected = gradients(model, out.loss)
    assert model.simmim._can_unpad
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    attended = calls_of_sdpa(monkeypatch)
    again = model(**batch)
    assert again.loss == out.loss
    forward_calls = len(attended)
    again.loss.backward()
    assert len(attended) == 2 * forward_calls, "every layer is computed a second time"
    actual = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert_same_gradients(actual, expected, rtol=1e-5, atol=1e-6)


def test_trying_to_unpad_leaves_no_trace():
    """The first training step draws the same dropout as any other, and modules keep their modes."""
    model, batch = tiny_model("bert").train(), ragged_batch(LENGTHS)
    model.simmim.encoder.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(0)
    first = model(**batch).loss
    assert {name: module.training for name, module in model.named_modules()} == modes
    torch.manual_seed(0)
    assert model(**batch).loss == first


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_positions_of_roberta_follow_its_padding_token(pad):
    """RoBERTa counts positions from pad_token_id + 1, whatever the id."""
    model = tiny_model("roberta", {"pad_token_id": pad})
    batch = ragged_batch(LENGTHS, pad=pad)
    with torch.no_grad():
        for unpads in (None, False):
            hidden = encoded(model, batch, False, unpads)
            for row, ids, mask in zip(hidden, batch["input_ids"], batch["attention_mask"].bool()):
                alone = model.simmim.encoder(input_ids=ids[mask][None]).last_hidden_state[0]
                torch.testing.assert_close(row[mask], alone, **CLOSE)
    assert model.simmim.max_length == 64 - (pad + 1)


def varlen_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What `torch.nn.attention.varlen.varlen_attn` documents, a sequence and a query at a time."""
    assert max_q == max_k == int(cu_seq_q.diff().max()) and cu_seq_q.dtype == torch.int32
    repeats = query.shape[1] // key.shape[1]
    assert enable_gqa == (repeats > 1)
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    output = torch.zeros_like(query)
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist()):
        for place in range(start, end):
            first = start if window_size[0] < 0 else max(start, place - window_size[0])
            last = end if window_size[1] < 0 else min(end, place + window_size[1] + 1)
            scores = torch.einsum("hd,khd->hk", query[place], key[first:last]) * scale
            output[place] = torch.einsum("hk,khd->hd", scores.softmax(-1), value[first:last])
    return output


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_variable_length_kernels_are_given_what_they_document(monkeypatch, family, is_causal):
    model = tiny_model(family)
    batch = ragged_batch([9, 1, 5, 12])
    columns = (batch["input_ids"], batch["attention_mask"])
    expected = model.base_model.token_states(*columns, is_causal=is_causal).states.last
    monkeypatch.setattr(unpadding, "varlen_kernel", lambda device, dtype: varlen_reference)
    actual = model.base_model.token_states(*columns, is_causal=is_causal).states.last
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("head_dim", "fits"), [(8, True), (12, False), (200, False)])
def test_variable_length_kernels_are_not_given_heads_that_they_cannot_take(monkeypatch, head_dim, fits):
    model, asked = tiny_model("qwen3", {"head_dim": head_dim}), []
    monkeypatch.setattr(unpadding, "varlen_kernel", lambda device, dtype: asked.append(dtype))
    batch = ragged_batch([3, 5])
    model.base_model.token_states(batch["input_ids"], batch["attention_mask"], is_causal=False)
    assert bool(asked) == fits


def test_under_autocast_variable_length_kernels_get_one_dtype(monkeypatch):
    model, seen = tiny_model("qwen3"), set()

    def kernel(query, key, value, *args, **options):
        seen.update({query.dtype, key.dtype, value.dtype})
        return varlen_reference(query, key, value, *args, **options)

    monkeypatch.setattr(unpadding, "varlen_kernel", lambda device, dtype: kernel if dtype == torch.bfloat16 else None)
    batch = ragged_batch([9, 1, 5])
    with torch.autocast("cpu", torch.bfloat16):
        model.base_model.token_states(batch["input_ids"], batch["attention_mask"], is_causal=False)
    assert seen == {torch.bfloat16}


def test_there_is_no_variable_length_kernel_on_a_cpu():
    assert unpadding.varlen_kernel(torch.device("cpu"), torch.bfloat16) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_the_variable_length_kernel_equals_padded_attention_on_cuda(monkeypatch, family, is_causal):
    model = tiny_model(family).to("cuda", torch.bfloat16)
    batch = {name: x.cuda() for name, x in ragged_batch([9, 1, 5, 12]).items()}
    columns = (batch["input_ids"], batch["attention_mask"])
    actual = model.base_model.token_states(*columns, is_causal=is_causal).states.last
    monkeypatch.setattr(unpadding, "varlen_kernel", lambda device, dtype: None)
    expected = model.base_model.token_states(*columns, is_causal=is_causal).states.last
    torch.testing.assert_close(actual, expected, atol=3e-2, rtol=3e-2)
