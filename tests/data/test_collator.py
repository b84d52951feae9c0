"""Invariants of `DataCollatorForSimMIM`, on tiny tokenizers of every backend that whole words know."""

import dataclasses
import random
import re
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import BertTokenizer, PreTrainedTokenizerFast

from simmim_hf.data import words
from simmim_hf.data.collator import DataCollatorForSimMIM, draw_units

SPECIALS = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIALS |= {"mask_token": "[MASK]"}
WORDS = [f"w{i}" for i in range(200)]
HANZI = list("我喜欢北京天安门的风景中国人民")
STRATEGIES = {
    "tokens": {},
    "words": {"whole_word_mask": True},
    "spans": {"mean_mask_span": 3.0},
    "word spans": {"mean_mask_span": 2.0, "whole_word_mask": True},
}


def wordpiece(pieces):
    """A BertTokenizer whose vocabulary is the special tokens and `pieces`."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS.values(), *pieces])}
    return BertTokenizer(vocab=vocabulary)


def fast(model, pre_tokenizer, decoder):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)


def metaspace(pieces):
    vocabulary = [(token, -20.0) for token in SPECIALS.values()] + [(piece, -float(len(piece))) for piece in pieces]
    return fast(models.Unigram(vocabulary, unk_id=0), pre_tokenizers.Metaspace(), decoders.Metaspace())


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS.values(), *alphabet, "Ġp", "la", "Ġpla", "Ġr", "ea"])}
    merges = [("Ġ", "p"), ("l", "a"), ("Ġp", "la"), ("Ġ", "r"), ("e", "a")]
    level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return fast(models.BPE(vocabulary, merges), level, decoders.ByteLevel())


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece([*WORDS, "play", "##ing", "##ed", "re", "##ad", ".", ",", *HANZI])


@pytest.fixture(scope="module")
def chinese(shared_data):
    return BertTokenizer.from_pretrained(shared_data("tokenizers/bert-base-chinese"))


def sentences(count, low=5, high=60, seed=0):
    rng = np.random.default_rng(seed)
    pieces = [*WORDS, "playing", "played", "reading", "."]
    return [" ".join(rng.choice(pieces, rng.integers(low, high))) for _ in range(count)]


def tokenised(tokenizer, texts):
    return [dict(tokenizer(text)) for text in texts]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def corrupted(batch):
    return batch["labels"] != -100


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs(tokenizer, options, side, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    features = tokenised(tokenizer, sentences(64))
    copies = [{key: list(value) for key, value in feature.items()} for feature in features]
    batch = DataCollatorForSimMIM(tokenizer, **options)(features)

    assert features == copies
    assert set(batch) == {"input_ids", "masked_input_ids", "attention_mask", "labels"}
    expected = tokenizer.pad([{"input_ids": feature["input_ids"]} for feature in features], return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert all(tensor.dtype == torch.int64 and tensor.shape == batch["labels"].shape for tensor in batch.values())

    where = corrupted(batch)
    assert torch.equal(batch["labels"][where], batch["input_ids"][where])
    assert torch.equal(batch["masked_input_ids"][~where], batch["input_ids"][~where])
    special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    assert not where[special].any()
    ordinary = batch["masked_input_ids"][where & (batch["masked_input_ids"] != tokenizer.mask_token_id)]
    assert not torch.isin(ordinary, torch.tensor(tokenizer.all_special_ids)).any()
    assert where.any(dim=1).all()


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
def test_at_least_one_position(tokenizer, options):
    collator = DataCollatorForSimMIM(tokenizer, mlm_probability=0.01, **options)
    assert corrupted(collator(sentences(100))).any(dim=1).all()
    batch = collator(["w1", "w1 w2 w3", ""])
    assert corrupted(batch).sum(dim=1).tolist()[0] == 1
    assert corrupted(batch).any(dim=1).tolist() == [True, True, False]
    assert not corrupted(collator([""])).any()


@pytest.fixture(scope="module")
def many(tokenizer):
    return tokenised(tokenizer, sentences(1200, low=20))


@pytest.mark.parametrize("probability", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
def test_mean_ratio(tokenizer, many, options, probability):
    batch = DataCollatorForSimMIM(tokenizer, probability, **options)(many)
    ratios = corrupted(batch).sum(dim=1) / (batch["attention_mask"].sum(dim=1) - 2)
    assert ratios.mean() == pytest.approx(probability, rel=0.04)


def test_token_counts_are_rounded_at_random(tokenizer):
    counts = corrupted(DataCollatorForSimMIM(tokenizer, 0.25)([" ".join(WORDS[:10])] * 2000)).sum(dim=1)
    assert set(counts.tolist()) == {2, 3}
    assert counts.float().mean() == pytest.approx(2.5, abs=0.06)


def test_every_position_is_equally_likely(tokenizer):
    share = corrupted(DataCollatorForSimMIM(tokenizer, 0.3)([" ".join(WORDS[:10])] * 4000)).float().mean(dim=0)
    assert share[1:-1].numpy() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("mask, rand", [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_replacement_proportions(tokenizer, options, mask, rand):
    collator = DataCollatorForSimMIM(tokenizer, mask_replace_prob=mask, random_replace_prob=rand, **options)
    batch = collator(sentences(1000))
    where = corrupted(batch)
    masked, original = batch["masked_input_ids"][where], batch["input_ids"][where]
    assert (masked == tokenizer.mask_token_id).float().mean() == pytest.approx(mask, abs=0.03)
    # a random token is the original one by chance once in the vocabulary's size
    assert (masked == original).float().mean() == pytest.approx(1 - mask - rand, abs=0.03)


def word_pieces_of(name):
    if name == "wordpiece":
        return wordpiece(["play", "##ing", "##ed", "re", "##ad", ".", ",", "'", *WORDS]), "##"
    if name == "metaspace":
        return metaspace(["▁", "▁play", "ing", "ed", "▁re", "ad", ".", ",", *[f"▁{word}" for word in WORDS]]), "▁"
    return byte_level(), "Ġ"


@pytest.mark.parametrize("name", ["wordpiece", "metaspace", "byte-level"])
@pytest.mark.parametrize("spans", [None, 2.0])
def test_whole_words(name, spans):
    tokenizer, marker = word_pieces_of(name)
    texts = ["playing played reading, playing reading. played read"] * 200
    collator = DataCollatorForSimMIM(tokenizer, 0.4, whole_word_mask=True, mean_mask_span=spans)
    batch = collator(texts)
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert "[UNK]" not in tokens
    words, end = [], True  # the positions of each word, by a plain loop
    for position, token in enumerate(tokens):
        alone = token in {"[CLS]", "[SEP]", ",", "."}
        continues = token.startswith("##") if marker == "##" else not token.startswith(marker)
        if alone or end or not continues:
            words.append([])
        words[-1].append(position)
        end = alone
    assert len(words) == 11
    assert max(map(len, words)) > 1
    where = corrupted(batch)
    masks = batch["masked_input_ids"] == tokenizer.mask_token_id
    for word in words:
        assert (where[:, word].all(dim=1) == where[:, word].any(dim=1)).all()
        assert (masks[:, word].all(dim=1) == masks[:, word].any(dim=1)).all()
        assert where[:, word].any() == (tokens[word[0]] not in SPECIALS.values())
    partial = where.any(dim=1) & ~where[:, 1:-1].all(dim=1)
    assert partial.float().mean() > 0.5


def test_words_do_not_cross_special_tokens(tokenizer):
    feature = {"input_ids": tokenizer.convert_tokens_to_ids(["[CLS]", "play", "[SEP]", "##ing", "[SEP]"])}
    batch = DataCollatorForSimMIM(tokenizer, 0.5, whole_word_mask=True, mean_mask_span=50)([feature] * 100)
    assert (corrupted(batch).sum(dim=1) == 1).all()


def test_byte_level_fragments_belong_to_words():
    tokenizer = byte_level()
    batch = DataCollatorForSimMIM(tokenizer, 0.3, whole_word_mask=True)(["naïve é ñu"] * 200)
    where = corrupted(batch)[:, 1:-1]
    lengths = [len(word.encode()) + 1 for word in ("naïve", "é", "ñu")]
    for word in where.split(lengths, dim=1):
        assert (word.all(dim=1) == word.any(dim=1)).all()


def test_unknown_word_marks():
    vocabulary = {token: i for i, token in enumerate([*SPECIALS.values(), "a</w>"])}
    model = models.BPE(vocabulary, [], end_of_word_suffix="</w>")
    tokenizer = fast(model, pre_tokenizers.Whitespace(), decoders.BPEDecoder())
    DataCollatorForSimMIM(tokenizer)
    with pytest.raises(ValueError, match="whole_word_mask=False"):
        DataCollatorForSimMIM(tokenizer, whole_word_mask=True)


def test_spans_have_the_mean_length(tokenizer):
    collator = DataCollatorForSimMIM(tokenizer, mean_mask_span=3.8)
    ids = np.full((200, 500), tokenizer.convert_tokens_to_ids("w1"))
    starts = collator._unit_starts(ids, np.ones(ids.shape, dtype=bool), np.random.default_rng(0))
    assert starts[:, 0].all()
    assert ids.size / starts.sum() == pytest.approx(3.8, rel=0.03)
    # and so have the corrupted runs, when few enough are drawn not to touch one another
    batch = DataCollatorForSimMIM(tokenizer, 0.05, mean_mask_span=3.8)([" ".join(["w1"] * 500)] * 200)
    where = corrupted(batch)
    runs = (where[:, 1:] & ~where[:, :-1]).sum()
    assert where.sum() / runs == pytest.approx(3.8, rel=0.1)


def test_draw_units_covers_whole_units():
    rng = np.random.default_rng(0)
    eligible = rng.random((50, 40)) < 0.8
    eligible[7] = False
    starts = eligible & (rng.random(eligible.shape) < 0.4)
    starts[np.arange(50), eligible.argmax(axis=1)] = eligible.any(axis=1)
    unit, drawn = draw_units(starts, eligible, 0.3, rng)
    assert len(unit) == eligible.sum()
    assert len(drawn) == starts.sum() == unit.max() + 1
    rows = np.nonzero(eligible)[0]
    assert set(rows[drawn[unit]]) == set(range(50)) - {7}


def test_chinese_words(chinese):
    pytest.importorskip("jieba")
    batch = DataCollatorForSimMIM(chinese, 0.4, whole_word_mask=True)(
        ["我喜欢北京, 我喜欢天安门。中国人民", "我"] * 200
    )
    where = corrupted(batch)[::2, 1:]
    for word in ([1, 2], [3, 4], [7, 8], [9, 10, 11]):  # 喜欢 北京 喜欢 天安门
        assert (where[:, word].all(dim=1) == where[:, word].any(dim=1)).all()
        assert where[:, word].any()
        assert not where[:, word].all()
    assert (where[:, 2] != where[:, 3]).any()
    assert (where[:, 0] != where[:, 1]).any()


def test_chinese_characters_without_jieba(tokenizer, monkeypatch):
    said = []
    monkeypatch.setitem(sys.modules, "jieba", None)
    monkeypatch.setattr(words.logger, "warning_once", said.append)
    words.chinese_segmenter.cache_clear()
    try:
        collator = DataCollatorForSimMIM(tokenizer, whole_word_mask=True)
        where = corrupted(collator(["北京天安门"] * 100))
        collator(["天安门北京"])
    finally:
        words.chinese_segmenter.cache_clear()
    assert (where[:, 1] != where[:, 2]).any()
    assert len(said) == 1
    assert "jieba" in said[0]


def test_chinese_in_sentencepiece_is_segmented():
    pytest.importorskip("jieba")
    tokenizer = metaspace(["▁", *HANZI, "▁play", "ing"])
    batch = DataCollatorForSimMIM(tokenizer, 0.3, whole_word_mask=True)(["北京天安门 playing"] * 200)
    where = corrupted(batch)
    assert (where[:, 2] == where[:, 3]).all()  # 北京
    assert (where[:, 3] != where[:, 4]).any()


def load(collator, features, workers):
    return list(DataLoader(features, batch_size=8, collate_fn=collator, num_workers=workers))


@pytest.mark.slow
def test_same_masks_for_any_number_of_workers(tokenizer):
    features = tokenised(tokenizer, sentences(60))
    runs = [load(DataCollatorForSimMIM(tokenizer, seed=1), features, workers) for workers in (0, 1, 3)]
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert_same(one, two)
    different = load(DataCollatorForSimMIM(tokenizer, seed=2), features, 0)
    assert all(not torch.equal(one["labels"], two["labels"]) for one, two in zip(runs[0], different, strict=True))


def test_global_random_state_is_neither_used_nor_changed(tokenizer):
    collator, texts = DataCollatorForSimMIM(tokenizer, mean_mask_span=2, whole_word_mask=True), sentences(8)
    batches = []
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        batches.append(collator(texts))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
    assert_same(*batches)


def test_pad_to_multiple_of(tokenizer):
    collator = DataCollatorForSimMIM(tokenizer, pad_to_multiple_of=16)
    assert collator(["w1 w2 w3"])["labels"].shape == (1, 16)
    assert collator([" ".join(WORDS[:15])])["labels"].shape == (1, 32)


def test_kinds_of_features(tokenizer):
    collator, texts = DataCollatorForSimMIM(tokenizer), sentences(16)
    batch = collator(texts)
    features = tokenised(tokenizer, texts)
    assert_same(batch, collator([{"text": text, "label": 1} for text in texts]))
    assert_same(batch, collator([feature | {"length": 3, "label": 0} for feature in features]))
    assert_same(batch, collator([{"input_ids": feature["input_ids"]} for feature in features]))
    assert_same(batch, collator([tokenizer(text, return_special_tokens_mask=True) for text in texts]))
    tensors = [{key: torch.tensor(value) for key, value in feature.items()} for feature in features]
    assert_same(batch, collator(tensors))
    padded = tokenizer(texts, padding=True)["input_ids"]
    assert_same(batch, collator([{"input_ids": ids} for ids in padded]))


def test_max_length(tokenizer):
    text = " ".join(WORDS[:50])
    assert DataCollatorForSimMIM(tokenizer, max_length=12)([text])["labels"].shape == (1, 12)
    assert DataCollatorForSimMIM(tokenizer)([text])["labels"].shape == (1, 52)


def test_special_tokens_mask_is_honoured(tokenizer):
    feature = dict(tokenizer("w1 w2 w3 w4", return_special_tokens_mask=True))
    feature["special_tokens_mask"] = [1, 1, 1, 0, 1, 1]
    batch = DataCollatorForSimMIM(tokenizer, 0.9)([feature])
    assert corrupted(batch)[0].tolist() == [False, False, False, True, False, False]


def test_token_type_ids(tokenizer):
    pair = [dict(tokenizer("w1 w2", "w3")), dict(tokenizer("w4", "w5 w6 w7"))]
    batch = DataCollatorForSimMIM(tokenizer)(pair)
    assert torch.equal(batch["token_type_ids"], tokenizer.pad(pair, return_tensors="pt")["token_type_ids"])


def test_negatives(tokenizer):
    collator = DataCollatorForSimMIM(tokenizer)
    one = collator([{"text": "w1", "negative": "w2 w3"}, {"text": "w4", "negative": "w5"}])
    expected = tokenizer(["w2 w3", "w5"], padding=True, return_tensors="pt")
    assert torch.equal(one["negative_input_ids"], expected["input_ids"])
    assert torch.equal(one["negative_attention_mask"], expected["attention_mask"])
    rows = [tokenizer(text)["input_ids"] for text in ("w2 w3", "w5")]
    assert_same(one, collator([{"text": "w1", "negative": ["w2 w3", "w5"]}, {"text": "w4", "negative": []}]))
    encoded = [{"input_ids": tokenizer(text)["input_ids"]} for text in ("w1", "w4")]
    flat = [encoded[i] | {"negative_input_ids": rows[i]} for i in range(2)]
    nested = [encoded[0] | {"negative_input_ids": rows}, encoded[1] | {"negative_input_ids": []}]
    assert_same(one, collator(flat))
    assert_same(one, collator(nested))
    assert "negative_input_ids" not in collator([{"text": "w1", "negative": []}])


def test_save_and_load(tokenizer, tmp_path):
    collator = DataCollatorForSimMIM(tokenizer, 0.2, 0.7, 0.2, True, 2.5, 64, 8, 3, "cropped", 0.4, 0.6, "both", 4)
    collator.save_pretrained(tmp_path / "new")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["data_collator_config.json"]
    assert DataCollatorForSimMIM.from_pretrained(tmp_path / "new", tokenizer) == collator
    tokenizer.save_pretrained(tmp_path / "new")
    loaded = DataCollatorForSimMIM.from_pretrained(tmp_path / "new")
    assert dataclasses.replace(loaded, tokenizer=tokenizer) == collator
    assert_same(loaded(sentences(4)), collator(sentences(4)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mlm_probability": 0.0}, r"mlm_probability=0.0.*between 0 and 1"),
        ({"mlm_probability": 1.0}, r"mlm_probability=1.0.*between 0 and 1"),
        ({"mlm_probability": (0.2, 0.4)}, r"`mlm_probability` is \(0.2, 0.4\), and a schedule of it is gone"),
        ({"snippet_ratio": (0.2, 1.2)}, r"snippet_ratio=\(0.2, 1.2\).*between 0 and 1"),
        ({"snippet_ratio": (0.2,)}, r"snippet_ratio=\(0.2,\).*pair"),
        ({"mask_replace_prob": 1.1}, r"mask_replace_prob=1.1.*0 to 1"),
        ({"random_replace_prob": -0.1}, r"random_replace_prob=-0.1.*0 to 1"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, r"0.8.*0.3.*more than 1.*lower"),
        ({"mean_mask_span": 0.5}, r"mean_mask_span=0.5.*from 1 to 4096"),
        ({"max_length": 2}, r"max_length=2.*3 or more"),
        *(
            ({name: value}, re.escape(f"{name}={value!r}: choose"))
            for name, value in {
                **dict.fromkeys(("mlm_probability", "mask_replace_prob", "random_replace_prob", "seed"), "many"),
                **dict.fromkeys(("mean_mask_span", "deletion_probability", "min_crop_ratio"), "long"),
                **dict.fromkeys(("context_removal_prob", "first_sentence_probability", "snippet_ratio"), ()),
                **dict.fromkeys(("max_length", "pad_to_multiple_of", "min_view_length"), 8.5),
                "whole_word_mask": "no",
            }.items()
        ),
        *(({"max_length": value}, f"max_length={value!r}") for value in ("long", True, float("nan"))),
        ({"positive_view": ["span"]}, r"positive_view=\['span'\]: choose from"),
    ],
)
def test_settings_out_of_range(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForSimMIM(tokenizer, **options)


@pytest.mark.parametrize("ids", [[2.0, 5.7, 3.0], torch.tensor([2.0, 5.7]), ["2", "5"], [[2, 5, 3]], [2, None]])
def test_no_part_of_an_id_is_cut_off(tokenizer, ids):
    collator = DataCollatorForSimMIM(tokenizer)
    for feature in ({"input_ids": ids}, {"input_ids": [2, 5, 3], "negative_input_ids": [ids, ids]}):
        name = [*feature][-1]
        with pytest.raises(ValueError, match=f"{name} is .*: give a list of integers for each sequence"):
            collator([feature, feature])
    rows = [{"input_ids": array} for array in (np.array([2, 5, 6, 3], np.int32), torch.tensor([2, 5, 3]), [])]
    assert collator(rows)["attention_mask"].sum() == 7


def test_a_mask_of_another_length_is_no_mask_of_the_text(tokenizer):
    rows = [
        {"input_ids": [2, 5, 6, 3], "attention_mask": [1] * 3},
        {"input_ids": [2, 5, 3], "attention_mask": [1] * 4},
    ]
    with pytest.raises(ValueError, match="3 values in attention_mask and 4 in input_ids"):
        DataCollatorForSimMIM(tokenizer)(rows)


@pytest.mark.parametrize("kind", ["mask", "pad"])
def test_missing_tokens(kind):
    vocabulary = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[MASK]": 2}, unk_token="[UNK]"))
    tokens = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    del tokens[f"{kind}_token"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, **tokens)
    with pytest.raises(ValueError, match=rf"no {kind} token.*add_special_tokens.*resize_token_embeddings"):
        DataCollatorForSimMIM(tokenizer)


@pytest.mark.parametrize(
    "features, error, message",
    [
        ([], ValueError, "empty"),
        ([{"sentence": "w1", "label": 0}], ValueError, r"'text' or 'input_ids'.*\['label', 'sentence'\]"),
        ([3], TypeError, "string or a dict, not int"),
        (["w1", {"text": "w1", "negative": "w2"}], ValueError, r"same keys.*\['text'\] and \['text', 'negative'\]"),
    ],
)
def test_features_of_no_known_kind(tokenizer, features, error, message):
    with pytest.raises(error, match=message):
        DataCollatorForSimMIM(tokenizer)(features)
