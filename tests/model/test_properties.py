"""What unpadding, losses and configurations promise of any input, on examples that hypothesis draws."""

import copy
import json
import math
import string

import pytest
import torch
from helpers import CLOSE, FAMILIES, VOCAB, assert_same_gradients, gradients, ragged_batch, tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simmim_hf import SimMIMConfig
from simmim_hf.model.configuration_simmim import WEIGHTS, choices_of
from simmim_hf.model.losses import (
    contrastive_cross_entropy,
    linear_cross_entropy,
    similarity_matrix,
    token_cross_entropy,
)
from simmim_hf.model.unpadding import Unpadding

few = settings(max_examples=25, deadline=None, derandomize=True)
sides = st.sampled_from(["right", "left"])
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODEL = tiny_model(backbone=SMALL, temperature=0.5, mlm_weight=0.3, clm_weight=0.5)


@few
@given(mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_unpadding_keeps_every_real_token_in_its_place(mask):
    """Also where padding stands between tokens, and in rows without one."""
    mask = torch.tensor(mask).long()
    assume(mask.any())
    unpadding, values = Unpadding.from_mask(mask), torch.arange(1, mask.numel() + 1).view_as(mask)
    unpadded = unpadding.unpad(values)
    assert sorted(unpadded.flatten().tolist()) == values[mask.bool()].tolist()
    assert torch.equal(unpadding.pad(unpadded), values * mask)


@settings(few, max_examples=10)  # a model reads each six times
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), side=sides, seed=st.integers(0, 9))
def test_unpadded_and_chunked_are_the_padded_whole(lengths, side, seed):
    batch, results = ragged_batch(lengths, side, seed=seed), []
    for unpads, chunk_size in ((False, None), (None, None), (None, 2)):
        MODEL.simmim._can_unpad, MODEL.chunk_size = unpads, chunk_size
        out = MODEL(**batch)
        results.append((out, gradients(MODEL, out.loss)))
    (padded, expected), *others = results
    for out, found in others:
        for name in ("loss", "mlm_loss", "contrastive_loss", "clm_loss", "original_embeds", "masked_embeds"):
            torch.testing.assert_close(out[name], padded[name], **CLOSE)
        assert_same_gradients(found, expected)


@st.composite
def contrasts(draw):
    """Rows, candidates, the index of each row's positive, and of a candidate that it leaves out."""
    rows, hard = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    candidates = draw(st.integers(0, 3)) * rows + rows + hard
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    vectors = torch.randn(rows + candidates, 3, generator=generator, dtype=torch.double)
    order = torch.randperm(candidates, generator=generator)
    left_out = order[-rows:] if candidates >= 2 * rows and draw(st.booleans()) else None
    return vectors[:rows], vectors[rows:], order[:rows], left_out


@few
@given(contrasts(), st.sampled_from(["info_nce", "decoupled"]), st.sampled_from(["cosine", "dot"]), st.floats(0.05, 5))
def test_the_contrastive_loss_is_its_formula(contrast, form, kind, temperature):
    rows, candidates, positives, left_out = contrast
    scores = similarity_matrix(rows, candidates, kind) / temperature
    expected = 0.0
    for i, row in enumerate(rows.tolist()):
        similarities = []
        for candidate in candidates.tolist():
            product = sum(a * b for a, b in zip(row, candidate))
            norm = math.hypot(*row) * math.hypot(*candidate) if kind == "cosine" else 1.0
            similarities.append(product / norm / temperature)
        positive = int(positives[i])
        skipped = {positive} if form == "decoupled" else set()
        skipped |= set() if left_out is None else {int(left_out[i])}
        below = [s for j, s in enumerate(similarities) if j not in skipped]
        if len(candidates) >= (2 if left_out is None else 3):
            highest = max(below)
            expected += highest + math.log(sum(math.exp(s - highest) for s in below)) - similarities[positive]
    assert contrastive_cross_entropy(scores, positives, form, left_out).item() == pytest.approx(expected, abs=1e-8)


@few
@given(tokens=st.integers(0, 9), at_once=st.integers(1, 10), has_bias=st.booleans(), seed=st.integers(0, 99))
def test_the_token_loss_a_few_tokens_at_a_time_is_that_of_all(tokens, at_once, has_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, 4), (VOCAB, 4), (VOCAB,))
    hidden, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes)
    inputs = [x.requires_grad_() for x in ([hidden, weight, bias] if has_bias else [hidden, weight])]
    targets = torch.randint(VOCAB, (tokens,), generator=generator)
    logits = torch.nn.functional.linear(*inputs)
    expected = token_cross_entropy(logits, targets)
    loss, correct = linear_cross_entropy(hidden, weight, bias if has_bias else None, targets, at_once)
    torch.testing.assert_close(loss, expected)
    assert int(correct) == int((logits.argmax(-1) == targets).sum())
    for found, wanted in zip(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs)):
        torch.testing.assert_close(found, wanted)


OPTIONS = {option.name: option for option in SimMIMConfig.__dataclass_fields__.values() if "help" in option.metadata}
values = {name: st.sampled_from(choices_of(option)) for name, option in OPTIONS.items() if choices_of(option)}
values |= {name: st.booleans() for name, option in OPTIONS.items() if option.type is bool}
values |= dict.fromkeys(WEIGHTS, st.floats(0, 1e6)) | {
    "temperature": st.floats(1e-6, 1e6),
    "projection_dim": st.none() | st.integers(1, 99),
}
configs = st.fixed_dictionaries({}, optional=values).filter(
    lambda options: any(options.get(name, getattr(SimMIMConfig, name)) for name in WEIGHTS)
)


@few
@given(configs, st.sampled_from(["bert", "roberta", "modernbert", "llama"]))
def test_a_configuration_comes_back_from_a_dict_and_from_json(options, family):
    given_options = copy.deepcopy(options)
    config = SimMIMConfig(text_config={**FAMILIES[family], "model_type": family}, **options)
    assert options == given_options and {name: getattr(config, name) for name in options} == options
    for content in (config.to_dict(), json.loads(config.to_json_string(use_diff=False)), config.to_diff_dict()):
        assert SimMIMConfig.from_dict(content).to_dict() == config.to_dict()


@few
@given(st.sampled_from(sorted(OPTIONS)), st.data())
def test_a_misspelt_option_is_refused_and_a_near_one_named(name, data):
    at = data.draw(st.integers(0, len(name) - 1))
    misspelt = name[:at] + data.draw(st.sampled_from(string.ascii_lowercase)) + name[at + 1 :]
    assume(misspelt not in OPTIONS)
    with pytest.raises(ValueError, match=f"no option `{misspelt}`. Did you mean `"):
        SimMIMConfig(**{misspelt: 1})
