"""Filling gaps, the most certain first."""

import itertools

import pytest
import torch
from helpers import MASK_ID, VOCAB, randomize, real_rows, texts_of, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForPreTraining
from transformers.modeling_outputs import MaskedLMOutput

from simmim_hf import SimMIMForMaskedLM, SimMIMForPreTraining, SimMIMForSequenceClassification


def gapped(gaps, lengths=(12, 8, 9, 6), side="right"):
    """Texts with so many gaps each, and their mask."""
    ids, mask = texts_of(lengths, side)
    generator = torch.Generator().manual_seed(1)
    for row, real, count in zip(ids, mask.bool(), gaps, strict=True):
        places = real.nonzero()[:, 0]
        row[places[torch.randperm(len(places), generator=generator)[:count]]] = MASK_ID
    return ids, mask


def filler(family="bert"):
    """Its weights are so large that what stands in one gap matters in the next."""
    model = SimMIMForMaskedLM(tiny_model(family).config)
    model.load_state_dict(tiny_model(family).state_dict())
    return randomize(model, seed=3, scale=0.3)


def mask_predict(model, row, steps):
    """The same for one text, (1, length), spelled out in plain Python."""
    row = row.clone()
    gaps = [place for place in range(row.shape[1]) if row[0, place] == MASK_ID]
    certainty, opened = {}, list(gaps)
    for step in range(1, steps + 1):
        probabilities = model(row).logits[0]
        probabilities[:, MASK_ID] = -torch.inf
        probabilities = probabilities.softmax(-1)
        for place in opened:
            row[0, place] = probabilities[place].argmax()
            certainty[place] = probabilities[place].max().item()
        opened = sorted(gaps, key=certainty.get)[: len(gaps) * (steps - step) // steps]
        row[0, opened] = MASK_ID
    return row


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_one_step_fills_all_gaps_at_once(family):
    model, (ids, mask) = filler(family), gapped([4, 2, 1, 3])
    with torch.no_grad():
        logits = model(ids, mask).logits
    logits[..., MASK_ID] = -torch.inf
    expected = torch.where(ids == MASK_ID, logits.argmax(-1), ids)
    assert torch.equal(model.infill(ids, mask, mask_token_id=MASK_ID, num_steps=1), expected)


@pytest.mark.parametrize(
    ("family", "num_steps", "side"),
    [
        *(("bert", num_steps, "right") for num_steps in (None, 1, 2, 3, 10)),
        *((family, None, "left") for family in ("bert", "roberta")),
        ("roberta", 3, "right"),
    ],
)
def test_texts_of_a_batch_are_filled_as_each_alone(family, num_steps, side):
    """Also where they have different numbers of gaps."""
    model, gaps = filler(family), [11, 2, 3, 5, 4, 6, 1, 7]
    ids, mask = gapped(gaps, lengths=[14, 8, 9, 9, 7, 10, 6, 12], side=side)
    together = model.infill(ids, mask, mask_token_id=MASK_ID, num_steps=num_steps)
    with torch.no_grad():
        for row, text, real, count in zip(real_rows(ids, mask), together, mask.bool(), gaps):
            assert torch.equal(model.infill(row, mask_token_id=MASK_ID, num_steps=num_steps), text[real][None])
            assert torch.equal(mask_predict(model, row, num_steps or count), text[real][None])
    if num_steps is None:
        for other in (1, 11):
            assert not torch.equal(model.infill(ids, mask, mask_token_id=MASK_ID, num_steps=other), together)


def test_only_gaps_are_filled_and_only_with_words():
    model, (ids, mask) = filler(), gapped([4, 0, 1, 3])
    before = ids.clone()
    with torch.no_grad():
        model.lm_head.decoder.bias[:MASK_ID] += 4  # the special tokens would win
        model.lm_head.decoder.bias[MASK_ID] += 50
    special = list(range(MASK_ID))
    for options in ({}, {"num_steps": 1}, {"temperature": 2.0}, {"temperature": 2.0, "top_k": 5}):
        filled = model.infill(ids, mask, mask_token_id=MASK_ID, suppress_tokens=special, **options)
        assert torch.equal(ids, before), "the input itself must not change"
        assert torch.equal(filled[ids != MASK_ID], ids[ids != MASK_ID])
        assert (filled[ids == MASK_ID] > MASK_ID).all()
    filled = model.infill(ids, mask, mask_token_id=MASK_ID)
    assert (filled[ids == MASK_ID] < MASK_ID).any() and (filled != MASK_ID).all()


@pytest.mark.parametrize(("num_gaps", "num_steps"), [(7, 7), (7, 3), (4, 10), (9, 4), (1, 1), (5, None)])
def test_the_number_of_open_gaps_falls_evenly(num_gaps, num_steps):
    """After step t of T, N * (T - t) / T of N gaps are open, rounded down."""
    model, (ids, _) = filler(), gapped([num_gaps], lengths=[12])
    opened = []
    model.register_forward_pre_hook(lambda _, inputs: opened.append((inputs[0] == MASK_ID).sum().item()))
    model.infill(ids, mask_token_id=MASK_ID, num_steps=num_steps)
    steps = num_steps or num_gaps
    assert opened == [num_gaps, *(num_gaps * (steps - step) // steps for step in range(1, steps))]


A, B, C, D, E = range(10, 15)
JOINT = {(A, B): 0.4, (C, D): 0.39, (C, E): 0.21}  # the likeliest first word fits no text with the likeliest second


class Joint(SimMIMForMaskedLM):
    """Knows the distribution of two neighbouring words exactly, and so what one says about the other."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        logits = torch.full((*input_ids.shape, VOCAB), -20.0)
        for row, scores in zip(input_ids, logits):
            for pair, probability in JOINT.items():
                for place, other in itertools.permutations(range(2)):
                    if row[other] in (MASK_ID, pair[other]):
                        scores[place, pair[place]] = torch.logaddexp(
                            scores[place, pair[place]], torch.tensor(probability).log()
                        )
        return MaskedLMOutput(logits=logits)


def test_iterating_finds_a_joint_answer_that_filling_at_once_misses():
    model, ids = Joint(tiny_model().config), torch.full((1, 2), MASK_ID)
    at_once = model.infill(ids, mask_token_id=MASK_ID, num_steps=1)
    assert tuple(at_once[0].tolist()) == (C, B) and (C, B) not in JOINT
    assert tuple(model.infill(ids, mask_token_id=MASK_ID)[0].tolist()) == (C, D)


def test_drawn_words_follow_the_distribution():
    model, rows = Joint(tiny_model().config), 1000
    ids = torch.full((rows, 2), MASK_ID)
    ids[:, 0] = C
    torch.manual_seed(0)
    for temperature in (1.0, 0.5):
        words = model.infill(ids, mask_token_id=MASK_ID, temperature=temperature)[:, 1]
        expected = torch.tensor([0.39, 0.21]).pow(1 / temperature)
        share = (words == D).float().mean().item()
        assert share == pytest.approx((expected[0] / expected.sum()).item(), abs=0.05)
        assert ((words == D) | (words == E)).all()


def test_drawing_is_reproducible_and_top_1_is_the_likeliest():
    model, (ids, mask) = filler(), gapped([6, 2, 1, 3])
    options = {"mask_token_id": MASK_ID, "temperature": 3.0}

    def drawn(seed, **more):
        torch.manual_seed(seed)
        return model.infill(ids, mask, **options, **more)

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(0, top_k=1), model.infill(ids, mask, mask_token_id=MASK_ID))
    assert torch.equal(drawn(0, top_k=VOCAB), drawn(0)) and torch.equal(drawn(0, top_k=10 * VOCAB), drawn(0))
    few = drawn(0, top_k=3, num_steps=1)
    with torch.no_grad():
        logits = model(ids, mask).logits
    logits[..., MASK_ID] = -torch.inf
    gaps = ids == MASK_ID
    assert (logits[gaps].topk(3).indices == few[gaps][:, None]).any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_token_id": MASK_ID + 1}, "does not hold the mask token 5"),
        ({"mask_token_id": None}, "`mask_token_id` is None"),
        ({"mask_token_id": VOCAB}, f"below the vocabulary size of {VOCAB}"),
        ({"suppress_tokens": [VOCAB]}, f"below the vocabulary size of {VOCAB}"),
        ({"suppress_tokens": list(range(VOCAB))}, "leave a token"),
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"top_k": 0}, "`top_k` 0"),
        ({"num_steps": 0}, "`num_steps` 0"),
    ],
)
def test_wrong_options_of_infill(options, message):
    ids = torch.tensor([[7, MASK_ID, 9]])
    with pytest.raises(ValueError, match=message):
        filler().infill(ids, **{"mask_token_id": MASK_ID, **options})


def test_infilling_in_tuples():
    model, (ids, mask) = filler(), gapped([6, 2, 1, 3])
    expected = model.infill(ids, mask, mask_token_id=MASK_ID)
    model.config.return_dict = False
    assert torch.equal(model.infill(ids, mask, mask_token_id=MASK_ID), expected)


def test_a_checkpoint_of_any_class_fills_gaps(tmp_path):
    model, (ids, mask) = tiny_model(), gapped([3, 2, 1, 3])
    model.save_pretrained(tmp_path / "0")
    AutoModelForCausalLM.from_pretrained(tmp_path / "0").save_pretrained(tmp_path / "1")
    filled = [
        SimMIMForMaskedLM.from_pretrained(tmp_path / name).infill(ids, mask, mask_token_id=MASK_ID) for name in "01"
    ]
    assert torch.equal(*filled)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path / "1")) is SimMIMForPreTraining
    with pytest.raises(AttributeError):
        SimMIMForSequenceClassification.from_pretrained(tmp_path / "1").infill(ids)
