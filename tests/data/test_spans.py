"""Two spans of a document as the two views: invariants of `DataCollatorForSimMIM` with `positive_view="span"`."""

import numpy as np
import pytest
import torch
from helpers import tiny_tokenizer
from torch.utils.data import DataLoader
from transformers import BertTokenizer

from simmim_hf import DataCollatorForSimMIM

CLS, SEP, UNK, MASK = 2, 3, 1, 4


def collator(**options) -> DataCollatorForSimMIM:
    defaults = {"positive_view": "span", "corrupted_views": "both", "max_length": 12, "min_view_length": 3}
    return DataCollatorForSimMIM(**{"tokenizer": tiny_tokenizer(), **defaults, **options})


def documents(lengths, seed=0) -> list[dict]:
    """Distinct words, so that a token that is in both views shows; an unknown word in the middle and at both ends."""
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        ids = rng.permutation(np.arange(5, 64))[:length]
        if length > 6:
            ids[[0, length // 2, -1]] = UNK
        rows.append({"input_ids": [CLS, *ids.tolist(), SEP]})
    return rows


def text_of(ids, mask) -> list[int]:
    """The tokens between [CLS] and [SEP]."""
    real = ids[mask.bool()].tolist()
    assert (real[0], real[-1]) == (CLS, SEP)
    return real[1:-1]


def views(batch) -> list[tuple[list[int], list[int]]]:
    """The two views of each row, uncorrupted."""
    positives = torch.where(batch["positive_labels"] != -100, batch["positive_labels"], batch["positive_input_ids"])
    masks = batch["attention_mask"], batch["positive_attention_mask"]
    return [
        (text_of(one, mask), text_of(other, other_mask))
        for one, mask, other, other_mask in zip(batch["input_ids"], masks[0], positives, masks[1], strict=True)
    ]


def test_a_text_too_short_to_cut_gives_two_corruptions_of_it():
    rows = documents([1, 4, 5])
    batch = collator(mlm_probability=0.5)(rows)
    for row, (one, other) in zip(rows, views(batch), strict=True):
        assert one == other == row["input_ids"][1:-1]
    assert not torch.equal(batch["labels"], batch["positive_labels"])


def test_a_cut_behind_the_first_sentence():
    tokenizer = BertTokenizer(vocab={**tiny_tokenizer().get_vocab(), ".": 64, "!": 65})
    make = collator(tokenizer=tokenizer, first_sentence_probability=1.0, mlm_probability=0.2)
    stop, shout = 64, 65  # the ids of . and !
    rows = [[*range(5, 10), stop, *range(20, 40)], [5, stop, 6, 7, shout, *range(20, 28)], [*range(30, 50)]]
    batch = make([{"input_ids": [CLS, *row, SEP]} for row in rows])
    (one, other), (short, rest), (before, after) = views(batch)
    assert (one, other) == (rows[0][:6], rows[0][6:16]), "as much of the rest as max_length has room for"
    assert (short, rest) == (rows[1][:5], rows[1][5:]), "a first sentence that is too short is not one"
    assert before + after == rows[2], "anywhere, where no sentence ends"
    often = collator(tokenizer=tokenizer, first_sentence_probability=0.5)([{"input_ids": [CLS, *rows[0], SEP]}] * 200)
    assert 0.4 < np.mean([one == rows[0][:6] for one, _ in views(often)]) < 0.7


def test_a_snippet_that_is_the_first_sentence():
    tokenizer = BertTokenizer(vocab={**tiny_tokenizer().get_vocab(), ".": 64})
    options = {"tokenizer": tokenizer, "positive_view": "snippet", "max_length": None, "context_removal_prob": 0.0}
    row, whole = [*range(5, 15), 64, *range(20, 24)], [*range(30, 50)]
    features = [{"input_ids": [CLS, *ids, SEP]} for ids in (row, whole)]
    (rest, sentence), (kept, snippet) = views(collator(**options, first_sentence_probability=1.0)(features))
    assert (sentence, rest) == (row[:11], row[11:]), "longer than snippet_ratio allows, and always taken out"
    assert kept == whole and is_stretch(snippet, whole), "any stretch, where no sentence ends"
    often = views(collator(**options, first_sentence_probability=0.5)([features[0]] * 200))
    assert 0.4 < np.mean([view == (row[11:], row[:11]) for view in often]) < 0.6


def test_both_views_are_corrupted_and_labelled():
    batch = collator(mlm_probability=0.4)(documents([20] * 50))
    for ids, corrupted, labels in (
        (None, batch["positive_input_ids"], batch["positive_labels"]),
        (batch["input_ids"], batch["masked_input_ids"], batch["labels"]),
    ):
        predicted = labels != -100
        assert predicted.any(1).all()
        assert 0.3 < predicted.sum() / (50 * 10) < 0.5
        assert (corrupted[predicted] == MASK).float().mean() > 0.6
        if ids is not None:
            assert torch.equal(ids[predicted], labels[predicted])
            assert torch.equal(ids[~predicted], corrupted[~predicted])


def test_the_article_form_keeps_the_positive_whole():
    rows = documents([20, 14])
    batch = collator(corrupted_views="copy")(rows)
    assert "positive_labels" not in batch
    for row, one, mask, other, other_mask in zip(
        rows,
        *(batch[name] for name in ("input_ids", "attention_mask", "positive_input_ids", "positive_attention_mask")),
        strict=True,
    ):
        assert text_of(one, mask) + text_of(other, other_mask) == row["input_ids"][1:-1]


@pytest.mark.parametrize("view", ["masked", "deleted", "cropped", "span"])
def test_every_view_can_be_corrupted_on_both_sides(view):
    rows = documents([20, 14, 9])
    batch = collator(positive_view=view, max_length=None)(rows)
    shape = batch["positive_input_ids"].shape
    assert batch["positive_labels"].shape == batch["positive_attention_mask"].shape == shape
    assert (batch["positive_labels"] != -100).any(1).all()
    for row, (one, other) in zip(rows, views(batch), strict=True):
        assert set(one) | set(other) <= set(row["input_ids"])


def test_the_cut_is_another_one_in_another_batch():
    rows = documents([20, 20, 20])
    lengths = set()
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        cut = views(collator(max_length=None)([rows[i] for i in order]))
        lengths.add(len(cut[order.index(0)][0]))
    assert len(lengths) > 2


def test_raw_text_has_room_for_two_spans():
    words = " ".join(f"w{i}" for i in range(40))
    (views_of_words,) = views(collator()([words]))
    assert [len(view) for view in views_of_words] == [10, 10]


@pytest.mark.parametrize("corrupted_views", ["copy", "both"])
def test_same_batches_for_any_number_of_workers(corrupted_views):
    rows = documents([20, 7, 15, 11, 3, 18, 9, 12])
    found = [
        list(DataLoader(rows, 2, collate_fn=collator(corrupted_views=corrupted_views), num_workers=workers))
        for workers in (0, 2)
    ]
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_settings_are_saved_and_checked(tmp_path):
    collator().save_pretrained(tmp_path)
    loaded = DataCollatorForSimMIM.from_pretrained(tmp_path, tiny_tokenizer())
    assert (loaded.positive_view, loaded.corrupted_views, loaded.min_view_length) == ("span", "both", 3)
    for length in (0, 10**20):
        with pytest.raises(ValueError, match=f"min_view_length={length}: choose a number from 1"):
            collator(min_view_length=length)


# A snippet of a document, and the document


def is_stretch(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@pytest.mark.parametrize("removal", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_a_snippet_is_a_stretch_that_is_left_or_taken_out(removal, seed):
    rows = documents([20, 30, 11, 6, 5, 1], seed)
    batch = collator(positive_view="snippet", context_removal_prob=removal, max_length=None, seed=seed)(rows)
    for row, (rest, snippet) in zip(rows, views(batch), strict=True):
        whole = row["input_ids"][1:-1]
        assert is_stretch(snippet, whole)
        if len(whole) < 6:  # too short for two stretches of 3
            assert rest == snippet == whole
        elif removal == 0:
            assert rest == whole and 3 <= len(snippet) <= max(3, -(-len(whole) // 2))
        else:
            assert sorted(rest + snippet) == sorted(whole) and min(len(rest), len(snippet)) >= 3
            assert any(whole == rest[:i] + snippet + rest[i:] for i in range(len(rest) + 1))


def test_snippets_have_the_lengths_and_removals_that_were_asked_for():
    rows = documents([50] * 400)
    options = {"positive_view": "snippet", "snippet_ratio": (0.2, 0.4), "context_removal_prob": 0.3}
    batch = collator(max_length=None, **options)(rows)
    found = views(batch)
    lengths = [len(snippet) for _, snippet in found]
    assert min(lengths) >= 10 and max(lengths) <= 20 and 14 < sum(lengths) / 400 < 16.5
    assert 0.2 < sum(len(rest) < 50 for rest, _ in found) / 400 < 0.4
    assert len({whole["input_ids"].index(snippet[0]) for whole, (_, snippet) in zip(rows, found, strict=True)}) > 20


@pytest.mark.parametrize(
    "options, message", [({"snippet_ratio": 0}, "snippet_ratio=0"), ({"context_removal_prob": 2}, "0 to 1")]
)
def test_snippet_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        collator(positive_view="snippet", **options)
