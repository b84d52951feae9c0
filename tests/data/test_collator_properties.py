"""What the collator promises of any batch, on examples that hypothesis draws."""

import numpy as np
import torch
from helpers import FIRST_WORD, VOCAB, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim_hf import DataCollatorForSimMIM
from simmim_hf.model.configuration_simmim import POSITIVE_VIEWS

few = settings(max_examples=30, deadline=None, derandomize=True)
CLS, SEP, IGNORED = 2, 3, -100
TOKENIZER = tiny_tokenizer()

words = st.lists(st.integers(FIRST_WORD, VOCAB - 1), max_size=30)
batches = st.lists(words, min_size=1, max_size=5).map(
    lambda texts: [{"input_ids": [CLS, *text, SEP]} for text in texts]
)
corruptions = st.fixed_dictionaries(
    {
        "mlm_probability": st.floats(0.01, 0.99),
        "mask_replace_prob": st.floats(0, 0.5),
        "random_replace_prob": st.floats(0, 0.5),
        "whole_word_mask": st.booleans(),
        "mean_mask_span": st.none() | st.floats(1, 10),
        "pad_to_multiple_of": st.none() | st.integers(1, 16),
        "seed": st.integers(0, 9),
        "positive_view": st.sampled_from(list(POSITIVE_VIEWS)),
        "corrupted_views": st.sampled_from(["copy", "both"]),
    }
)


def views(batch: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """The ids, corrupted ids, attention mask and labels of each corrupted view."""
    found = [tuple(batch[name] for name in ("input_ids", "masked_input_ids", "attention_mask", "labels"))]
    if "positive_labels" in batch:
        corrupted, labels = batch["positive_input_ids"], batch["positive_labels"]
        ids = torch.where(labels == IGNORED, corrupted, labels)
        found.append((ids, corrupted, batch["positive_attention_mask"], labels))
    return found


@few
@given(rows=batches, options=corruptions, side=st.sampled_from(["right", "left"]))
def test_what_is_corrupted_is_predicted_and_nothing_else(rows, options, side):
    TOKENIZER.padding_side = side
    make = DataCollatorForSimMIM(TOKENIZER, **options)
    batch, again = make(rows), make(rows)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    for ids, corrupted, mask, labels in views(batch):
        predicted = labels != IGNORED
        assert torch.equal(labels[predicted], ids[predicted])
        assert torch.equal(corrupted[~predicted], ids[~predicted])
        assert not predicted[(mask == 0) | (ids < FIRST_WORD)].any()
        assert torch.equal(mask, (ids != TOKENIZER.pad_token_id).long())
        assert ids.shape[1] % (options["pad_to_multiple_of"] or 1) == 0
        assert torch.equal(predicted.any(1), (ids >= FIRST_WORD).any(1))  # one at least where there is one
    if options["positive_view"] in ("masked", "dropout", "deleted"):
        real = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
        assert real == [row["input_ids"] for row in rows]


@few
@given(
    lengths=st.lists(st.integers(0, VOCAB - FIRST_WORD), min_size=1, max_size=5),
    max_length=st.integers(3, 40),
    shortest=st.integers(1, 10),
    seed=st.integers(0, 9),
    side=st.sampled_from(["right", "left"]),
)
def test_two_spans_share_nothing_unless_a_text_is_too_short_to_cut(lengths, max_length, shortest, seed, side):
    rng = np.random.default_rng(seed)
    texts = [rng.permutation(np.arange(FIRST_WORD, VOCAB))[:length].tolist() for length in lengths]  # distinct words
    TOKENIZER.padding_side = side
    options = {"positive_view": "span", "corrupted_views": "both", "max_length": max_length, "seed": seed}
    batch = DataCollatorForSimMIM(TOKENIZER, min_view_length=shortest, **options)(
        [{"input_ids": [CLS, *text, SEP]} for text in texts]
    )
    room = max_length - 2
    (first, _, masks, _), (second, _, other_masks, _) = views(batch)
    for text, *row in zip(texts, first, masks, second, other_masks):
        one, other = (ids[mask.bool()].tolist()[1:-1] for ids, mask in zip(row[::2], row[1::2]))
        if one == other:
            assert one == text[:room] and (len(text) < 2 * shortest or room < shortest)
        else:
            assert one + other == text[: 2 * room]
            assert shortest <= min(len(one), len(other)) and max(len(one), len(other)) <= room
