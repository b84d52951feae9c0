"""Text to pairs of an original and a corrupted copy, for siamese masked language modelling.

A batch goes through five steps: features are padded (`_pad`), the positive view makes its two views of each
(`_make_VIEW`), positions are joined to units (tokens, words or spans), units are drawn (`draw_units`), and the drawn
units are corrupted as in BERT (Devlin et al. 2019). All steps work on numpy arrays of the whole batch.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..model.configuration_simmim import (
    PASSAGES,
    CorruptedViews,
    PositiveView,
    SimMIMConfig,
    choices_of,
    described,
    takes_old_names,
)
from ..model.losses import IGNORE_INDEX
from ..options import is_number, option
from .row_random import RowGenerator
from .words import ALONE, CONTINUES, build_word_tables, ends_of_sentences, inside_han_word, shift_right

CONFIG_NAME = "data_collator_config.json"
FEATURE_KEYS = [
    "text",
    "input_ids",
    "attention_mask",
    "special_tokens_mask",
    "token_type_ids",
    "negative",
    "negative_input_ids",
    "draw",
]
TOKEN_KEYS = {"input_ids", "attention_mask", "special_tokens_mask", "token_type_ids"}  # a value for each token


class Rows(NamedTuple):
    """The sequences of a batch, each (batch, length): ids, which are real, which may be corrupted, and token types."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    eligible: np.ndarray
    token_type_ids: np.ndarray


def _is_share(value) -> bool:
    return is_number(value, 0, 1) and 0 < value < 1


def _is_ratio(value) -> bool:
    ends = value if isinstance(value, tuple) else (value, value)
    return len(ends) == 2 and all(map(_is_share, ends))


# `allows` says which values an option takes, `choose` what to take instead of another.
PROBABILITY = {"allows": lambda value: is_number(value, 0, 1), "choose": "a probability from 0 to 1"}


@takes_old_names
@described
@dataclass
class DataCollatorForSimMIM:
    """Makes batches of original and corrupted sequences from strings, `text` columns or tokenised features.

    A share `mlm_probability` of the tokens of each sequence, at least one, is corrupted. They are drawn as units:
    tokens (BERT), whole words, or spans (SpanBERT, Joshi et al. 2020). A unit is replaced by mask tokens, by random
    tokens, or left as it is, and is predicted in all three cases.

    A batch of the same sequences in the same order is always corrupted alike; shuffling makes other batches, and other
    corruptions, in each epoch. Features with a number `draw`, such as that of the epoch, are corrupted one by one:
    alike for the same number, whatever else is in the batch. `SimMIMTrainer` gives it, so that several processes
    corrupt a text as one process does.

    Args:
        tokenizer: needs a mask and a padding token; whole words need a `tokenizers` backend.
        {options}

    Raises:
        ValueError: a tokenizer without a mask or padding token, or a setting outside its range.
    """

    tokenizer: PreTrainedTokenizerBase
    mlm_probability: float = option(
        0.3, "Share of corrupted tokens.", allows=_is_share, choose="a number between 0 and 1, such as 0.3"
    )
    mask_replace_prob: float = option(0.8, "Share of the corrupted units that become mask tokens.", **PROBABILITY)
    random_replace_prob: float = option(
        0.1, "Share of the corrupted units that become random tokens; the rest stays as it is.", **PROBABILITY
    )
    whole_word_mask: bool = option(
        False,
        "Corrupt whole words; Chinese characters are joined to words by jieba, where it is installed.",
        allows=lambda value: isinstance(value, bool),
        choose="True or False",
    )
    mean_mask_span: float | None = option(
        None,
        "Corrupt spans with geometric lengths of this mean, in tokens or, with whole_word_mask, words.",
        allows=lambda value: value is None or is_number(value, 1, 4096),
        choose="a number from 1 to 4096 (SpanBERT: 3.8), or None",
    )
    max_length: int | None = option(
        None,
        "Truncate text to this many tokens, special tokens included; with positive_view span each of the two spans.",
        allows=lambda value: value is None or is_number(value, 3, kind=int),
        choose="3 or more, which leaves room for text",
    )
    pad_to_multiple_of: int | None = option(
        None,
        "Round the padded length up to a multiple of this.",
        allows=lambda value: value is None or is_number(value, 1, 4096, int),
        choose="a whole number from 1 to 4096, such as 8, or None",
    )
    seed: int = option(
        0,
        "Another seed gives other corruptions of the same batches.",
        allows=lambda value: is_number(value, kind=int),
        choose="a whole number",
    )
    positive_view: PositiveView = option("masked", "As in `SimMIMConfig`.")
    deletion_probability: float = option(
        0.2,
        "With positive_view deleted: the probability that a token is deleted.",
        allows=_is_share,
        choose="a number between 0 and 1, such as 0.2",
    )
    min_crop_ratio: float = option(
        0.5,
        "With positive_view cropped: the shortest of the two stretches, as a share of the sequence.",
        allows=lambda value: is_number(value, 0, 1) and value > 0,
        choose="a share above 0, up to 1, such as 0.5",
    )
    corrupted_views: CorruptedViews = option("copy", "As in `SimMIMConfig`.")
    min_view_length: int = option(
        4,
        "With positive_view span or snippet: tokens of the shortest stretch. A text too short for two of them gives "
        "two views of all of it.",
        allows=lambda value: is_number(value, 1, 1_000_000, int),
        choose="a number from 1 to 1,000,000, such as 4",
    )
    first_sentence_probability: float = option(
        0.0,
        "With positive_view span or snippet: the probability that one view is the first sentence of the text, often a "
        "title or a summary, and the other the rest; with span, as much of it as max_length has room for.",
        **PROBABILITY,
    )
    snippet_ratio: float | tuple[float, float] = option(
        (0.1, 0.5),
        "With positive_view snippet: its length as a share of the text; two numbers: drawn between them.",
        allows=_is_ratio,
        choose="a number between 0 and 1, or a pair (shortest, longest)",
    )
    context_removal_prob: float = option(
        0.25,
        "With positive_view snippet: how often it is taken out of the text that it is compared with: at 0 the views "
        "share all of its words, at 1 none.",
        **PROBABILITY,
    )

    def __post_init__(self):
        if isinstance(self.snippet_ratio, list):
            self.snippet_ratio = tuple(self.snippet_ratio)  # a list when read from JSON
        self._validate()
        self._special_ids = np.unique(self.tokenizer.all_special_ids)
        unknown = [] if self.tokenizer.unk_token_id is None else [self.tokenizer.unk_token_id]
        self._frame_ids = np.setdiff1d(self._special_ids, unknown)  # what stands around a text
        self._ordinary_ids = np.setdiff1d(list(self.tokenizer.get_vocab().values()), self._special_ids)
        if self.whole_word_mask:
            self._word_table, self._han_table = build_word_tables(self.tokenizer)
        self._sentence_ends = ends_of_sentences(self.tokenizer) if self.first_sentence_probability else []

    @classmethod
    def for_config(cls, tokenizer: PreTrainedTokenizerBase, config: SimMIMConfig, **options):
        """The collator that makes the views which a model's configuration compares; `options` are the other fields."""
        views = {"positive_view": config.positive_view, "corrupted_views": config.corrupted_views}
        return cls(tokenizer, **views, **options)

    def _validate(self):
        for kind, token in (("mask", "[MASK]"), ("pad", "[PAD]")):
            if getattr(self.tokenizer, f"{kind}_token_id") is None:
                raise ValueError(
                    f"{type(self.tokenizer).__name__} has no {kind} token. Add one with tokenizer.add_special_tokens("
                    f'{{"{kind}_token": "{token}"}}), then call model.resize_token_embeddings(len(tokenizer)).'
                )
        self.check_options({field.name: getattr(self, field.name) for field in fields(self)[1:]})

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuses values of fields that cannot work, also before there is a tokenizer.

        Raises:
            ValueError: a setting outside its range; the message names the range.
        """
        for field in fields(cls)[1:]:
            value, choices = options.get(field.name, field.default), choices_of(field)
            if choices and value not in choices:
                raise ValueError(f"{field.name}={value!r}: choose from {choices}.")
            if not field.metadata.get("allows", lambda value: True)(value):
                raise ValueError(f"{field.name}={value!r}: choose {field.metadata['choose']}.")
        mask, random = (options.get(name, getattr(cls, name)) for name in ("mask_replace_prob", "random_replace_prob"))
        if mask + random > 1 + 1e-9:
            raise ValueError(
                f"mask_replace_prob={mask} and random_replace_prob={random} sum to more than 1: lower one of them."
            )

    def __call__(self, features: Sequence[str | Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pads and corrupts a batch.

        Args:
            features: strings, dicts with `text`, or tokenised dicts with `input_ids` and optionally `attention_mask`
                (without it, padding tokens are padding), `special_tokens_mask` and `token_type_ids`. Hard negatives
                come as `negative` (a string or a list of them) or `negative_input_ids` (a list of ids or a list of
                such lists). `draw` is an integer. Other columns are ignored.

        Returns:
            int64 tensors `input_ids`, `masked_input_ids`, `attention_mask` and `labels` (the original id at corrupted
            positions, -100 elsewhere), each (batch, length); `token_type_ids` (batch, length) where some are not
            zero; with hard negatives `negative_input_ids` and `negative_attention_mask` (negatives, length); for a
            view of its own `positive_input_ids` and `positive_attention_mask` (batch, length), and where both views
            are corrupted `positive_labels` too.

        Raises:
            ValueError: no features, features without text or ids, or features with different keys.
            TypeError: features that are neither strings nor dicts.
        """
        columns = to_columns(features)
        if "input_ids" not in columns:
            length = self.max_length
            if length is not None:
                length += (PASSAGES.get(self.positive_view, 1) - 1) * self._room()
            columns |= self._encode(columns["text"], length, return_special_tokens_mask=True)
        input_ids, attention_mask = self._pad_ids(columns["input_ids"], columns.get("attention_mask"))
        eligible = (attention_mask != 0) & ~np.isin(input_ids, self._special_ids)
        if "special_tokens_mask" in columns:
            eligible &= self._pad(columns["special_tokens_mask"], 1) == 0
        token_type_ids = np.zeros_like(input_ids)
        if "token_type_ids" in columns:
            token_type_ids = self._pad(columns["token_type_ids"], self.tokenizer.pad_token_type_id)

        rng = self._generator(input_ids, attention_mask, columns.get("draw"))
        rows, positives = Rows(input_ids, attention_mask, eligible, token_type_ids), None
        views_rng, positives_rng = rng.spawn(2)  # draws of their own: the masks are those of any other view
        make = getattr(self, f"_make_{self.positive_view}", None)
        if make is not None:
            rows, positives = make(rows, views_rng)
        elif self.positive_view == "masked" and self.corrupted_views == "both":
            positives = rows
        masked_input_ids, labels = self._corrupt(rows, rng)
        batch = {
            "input_ids": rows.input_ids,
            "masked_input_ids": masked_input_ids,
            "attention_mask": rows.attention_mask,
            "labels": labels,
        }
        if positives is not None:
            batch["positive_input_ids"], batch["positive_attention_mask"] = positives[:2]
            if self.corrupted_views == "both":
                corrupted = self._corrupt(positives, positives_rng)
                batch["positive_input_ids"], batch["positive_labels"] = corrupted
        if rows.token_type_ids.any():
            batch["token_type_ids"] = rows.token_type_ids
        if negatives := self._negatives(columns):
            batch["negative_input_ids"], batch["negative_attention_mask"] = self._pad_ids(negatives)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def save_pretrained(self, save_directory: str | os.PathLike):
        """Writes all settings but the tokenizer to `data_collator_config.json` in `save_directory`."""
        os.makedirs(save_directory, exist_ok=True)
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokenizer"}
        with open(os.path.join(save_directory, CONFIG_NAME), "w", encoding="utf-8") as file:
            file.write(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None):
        """Reads what `save_pretrained` wrote, from a folder or a Hub repository, and there also the tokenizer if none
        is given."""
        with open(cached_file(directory, CONFIG_NAME), encoding="utf-8") as file:
            settings = json.load(file)
        return cls(AutoTokenizer.from_pretrained(directory) if tokenizer is None else tokenizer, **settings)

    def _encode(self, texts: list[str], max_length: int | None, **options) -> dict[str, list[list[int]]]:
        truncation = {} if max_length is None else {"truncation": True, "max_length": max_length}
        return dict(self.tokenizer(texts, **truncation, **options))

    def _negatives(self, columns: dict[str, list]) -> list:
        """The token ids of all negatives of the batch, in order."""
        if "negative_input_ids" in columns:
            nested = (row if np.ndim(row[0]) else [row] for row in columns["negative_input_ids"] if len(row))
            return [_integers("negative_input_ids", ids) for row in nested for ids in row]
        nested = ([row] if isinstance(row, str) else row for row in columns.get("negative", ()))
        texts = [text for row in nested for text in row]
        return self._encode(texts, self.max_length)["input_ids"] if texts else []

    def _pad(self, rows: list, value: int) -> np.ndarray:
        """Rows of different lengths to one (batch, length) array; several times as fast as `tokenizer.pad`."""
        rows = [np.asarray(row, dtype=np.int64) for row in rows]
        lengths = np.array([len(row) for row in rows])[:, None]
        length, multiple = lengths.max(), self.pad_to_multiple_of or 1
        length += -length % multiple
        position = np.arange(length)
        filled = position >= length - lengths if self.tokenizer.padding_side == "left" else position < lengths
        padded = np.full(filled.shape, value)
        padded[filled] = np.concatenate(rows)
        return padded

    def _pad_ids(self, ids: list, attention_mask: list | None = None) -> tuple[np.ndarray, np.ndarray]:
        ids = self._pad(ids, self.tokenizer.pad_token_id)
        if attention_mask is None:
            return ids, (ids != self.tokenizer.pad_token_id).astype(np.int64)
        return ids, self._pad(attention_mask, 0)

    def _generator(self, input_ids: np.ndarray, attention_mask: np.ndarray, draws: list[int] | None) -> RowGenerator:
        # The content is the random state: text is corrupted alike whichever worker reads it and however often training
        # was resumed before, and evaluation always sees the same masks. Without a number that tells one reading of a
        # row from the next, the other rows of the batch do.
        if draws is None:
            batch = hashlib.blake2b(input_ids.tobytes(), digest_size=16)
            batch.update(attention_mask.tobytes())
            draws = [f"{batch.hexdigest()} {row}" for row in range(len(input_ids))]
        seeds = []
        for ids, mask, draw in zip(input_ids, attention_mask, draws, strict=True):
            row = hashlib.blake2b(f"{self.seed} {draw}".encode(), digest_size=8)
            row.update(ids[mask != 0].tobytes())
            seeds.append(int.from_bytes(row.digest(), "little"))
        return RowGenerator(seeds, is_left_padded=self.tokenizer.padding_side == "left")

    def _make_deleted(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """The sequences as they are, and copies with eligible tokens deleted, one of them at least kept."""
        chance = np.where(rows.eligible, rng.random(rows.eligible.shape), -1)  # (batch, length)
        kept = (chance >= self.deletion_probability) | (chance == chance.max(1, keepdims=True))
        return rows, self._keep(rows, kept | ~rows.eligible)

    def _make_cropped(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """Two random crops of each sequence (as in Contriever, Izacard et al. 2022), drawn one by one, of
        `min_crop_ratio` of its length up to all of it."""
        place, count = self._places(rows)
        one, other = (self._keep(rows, self._stretch(place, count, rng)) for _ in range(2))
        return one, other

    def _stretch(self, place: np.ndarray, count: np.ndarray, rng: RowGenerator) -> np.ndarray:
        share = rng.uniform(self.min_crop_ratio, 1, count.shape)
        length = np.maximum(np.ceil(share * count), 1)
        start = np.floor(rng.random(count.shape) * (count - length + 1))
        return (place < 0) | (place >= start) & (place < start + length)

    def _make_span(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """The two sides of a cut through each sequence (coCondenser, Gao & Callan 2022, has such pairs of spans); two
        views of all of one too short to cut."""
        place, count = self._places(rows)
        shortest, longest = self.min_view_length, count.max(initial=1)
        if self.max_length is not None:
            longest = self._room()
        count = np.minimum(count, 2 * longest)  # (batch, 1)
        first, last = np.maximum(shortest, count - longest), np.minimum(count - shortest, longest)
        cut = first + np.floor(rng.random(count.shape) * (last - first + 1))  # (batch, 1), tokens before it
        is_cut = first <= last
        sentence = self._first_sentence(rows, place, last, rng)
        cut = np.where(sentence > 0, sentence, cut)
        one = np.where(is_cut, place < cut, place < longest)  # (batch, length)
        other = np.where(is_cut, (place >= cut) & (place < np.minimum(count, cut + longest)), place < longest)
        return self._keep(rows, one), self._keep(rows, other | (place < 0))

    def _make_snippet(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """Each sequence, some without the snippet, and a snippet of it: the inverse cloze task (Lee, Chang & Toutanova
        2019) on tokens instead of sentences."""
        place, count = self._places(rows)
        if self.max_length is not None:
            count = np.minimum(count, self._room())
        shortest, ratio = self.min_view_length, np.broadcast_to(self.snippet_ratio, 2)
        length = np.ceil(rng.uniform(*ratio, count.shape) * count)  # (batch, 1)
        length = np.where(count < 2 * shortest, count, np.clip(length, shortest, np.maximum(count - shortest, 1)))
        start = np.floor(rng.random(count.shape) * (count - length + 1))
        removed = (rng.random(count.shape) < self.context_removal_prob) & (length < count)
        sentence = self._first_sentence(rows, place, count - shortest, rng)
        start, length = np.where(sentence > 0, 0, start), np.where(sentence > 0, sentence, length)
        removed |= sentence > 0
        inside = (place >= start) & (place < start + length)  # (batch, length)
        return self._keep(rows, (place < count) & ~(inside & removed)), self._keep(rows, inside | (place < 0))

    def _first_sentence(self, rows: Rows, place: np.ndarray, longest: np.ndarray, rng: RowGenerator):
        """Tokens in the first sentence of each text that is parted behind it, and 0 for the others: (batch, 1)"""
        if not self.first_sentence_probability:
            return np.zeros_like(longest)
        length = place + 1  # of the text up to a token
        ends = np.isin(rows.input_ids, self._sentence_ends) & (length >= self.min_view_length) & (length <= longest)
        parted = ends.any(1, keepdims=True) & (rng.random(longest.shape) < self.first_sentence_probability)
        return np.where(parted, np.take_along_axis(length, ends.argmax(1, keepdims=True), axis=1), 0)

    def _places(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The place of each token in its text (batch, length), without what stands around it, and the number of tokens
        in it (batch, 1). Around a text, and at padding, the place is -1."""
        text = (rows.attention_mask != 0) & ~np.isin(rows.input_ids, self._frame_ids)
        inside = text.cumsum(1).astype(bool) & text[:, ::-1].cumsum(1)[:, ::-1].astype(bool)
        return np.where(inside, inside.cumsum(1) - 1, -1), inside.sum(1, keepdims=True)

    def _room(self) -> int:
        """Tokens of a text that `max_length` leaves room for, beside what stands around it."""
        return max(1, self.max_length - self.tokenizer.num_special_tokens_to_add())

    def _keep(self, rows: Rows, kept: np.ndarray) -> Rows:
        """Only the `kept` ones of the real tokens: (batch, length) -> (batch, shorter)."""
        kept = kept & (rows.attention_mask != 0)
        fills = (self.tokenizer.pad_token_id, 0, False, self.tokenizer.pad_token_type_id)
        columns = [
            self._pad([row[keep] for row, keep in zip(column, kept, strict=True)], fill)
            for column, fill in zip(rows, fills, strict=True)
        ]
        return Rows(*columns)._replace(eligible=columns[2].astype(bool))

    def _corrupt(self, rows: Rows, rng: RowGenerator) -> tuple[np.ndarray, np.ndarray]:
        """The corrupted copy of the ids and the labels, both (batch, length)."""
        ids, eligible = rows.input_ids, rows.eligible
        starts = self._unit_starts(ids, eligible, rng)  # (batch, length)
        unit, drawn = draw_units(starts, eligible, self.mlm_probability, rng)  # (positions,), (units,)
        tokens, corrupted = ids[eligible], drawn[unit]  # (positions,) each
        # (positions,), one draw a unit: no word is half [MASK], half readable
        action = rng.random(ids.shape)[starts][unit]
        replaced = np.where(action < self.mask_replace_prob, self.tokenizer.mask_token_id, tokens)
        randomly = (action >= self.mask_replace_prob) & (action < self.mask_replace_prob + self.random_replace_prob)
        choice = rng.random(ids.shape)[eligible][randomly] * len(self._ordinary_ids)
        replaced[randomly] = self._ordinary_ids[choice.astype(np.int64)]

        masked_ids, labels = ids.copy(), np.full_like(ids, IGNORE_INDEX)
        masked_ids[eligible] = np.where(corrupted, replaced, tokens)
        labels[eligible] = np.where(corrupted, tokens, IGNORE_INDEX)
        return masked_ids, labels

    def _unit_starts(self, ids: np.ndarray, eligible: np.ndarray, rng: RowGenerator) -> np.ndarray:
        """Where a unit begins: (batch, length), bool."""
        starts = eligible
        if self.whole_word_mask:
            place = np.where(eligible, self._word_table[ids], ALONE)
            joined = (place == CONTINUES) & (shift_right(place) != ALONE)
            han = np.where(eligible, self._han_table[ids], ord(" "))
            starts = eligible & ~joined & ~inside_han_word(han)
        if self.mean_mask_span is not None:
            # A boundary before each token (or word) with probability 1 / mean makes the lengths geometric; there
            # always is one behind special tokens, so that no span runs across them.
            starts = starts & ((rng.random(ids.shape) < 1 / self.mean_mask_span) | ~shift_right(eligible))
        return starts


def as_row(feature: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A feature as a dict; a string is a text."""
    return {"text": feature} if isinstance(feature, str) else feature


def to_columns(features: Sequence[str | Mapping[str, Any]]) -> dict[str, list]:
    """The columns of `FEATURE_KEYS` that the features have, one value per feature each."""
    if not len(features):
        raise ValueError("The list of features is empty: a batch needs at least one sequence.")
    rows = [as_row(feature) for feature in features]
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"A feature must be a string or a dict, not {type(row).__name__}.")
        if "text" not in row and "input_ids" not in row:
            raise ValueError(f"A feature needs 'text' or 'input_ids', but has the keys {sorted(row)}.")
    keys = [[key for key in FEATURE_KEYS if key in row] for row in rows]
    for other in keys:
        if other != keys[0]:
            raise ValueError(f"The features of one batch need the same keys, but have {keys[0]} and {other}.")
    columns = {key: [row[key] for row in rows] for key in keys[0]}
    for key in TOKEN_KEYS & columns.keys():
        columns[key] = [_integers(key, row) for row in columns[key]]
        for row, ids in zip(columns[key], columns.get("input_ids", ()), strict=False):
            if len(row) != len(ids):
                raise ValueError(
                    f"A feature has {len(row)} values in {key} and {len(ids)} in input_ids: give one for each token."
                )
    return columns


def _integers(name: str, row: Sequence[int]) -> np.ndarray:
    """(length,) of ids, or of other values of tokens: no part of a number is cut off."""
    values = np.asarray(row)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iub"):
        raise ValueError(f"{name} is {row!r:.200}: give a list of integers for each sequence.")
    return values


def draw_units(
    starts: np.ndarray, eligible: np.ndarray, ratio: float, rng: RowGenerator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws units of consecutive positions that cover the share `ratio` of each sequence's eligible positions.

    With n eligible positions the expected number covered is ratio * n: units come in random order, and the one that
    crosses ratio * n is taken with the probability that keeps the mean there. With units of one token this is
    floor(ratio * n + u), u ~ U(0, 1). A sequence in which no unit is drawn gets its shortest one.

    Args:
        starts: where a unit begins, (batch, length), bool.
        eligible: where corruption is allowed, (batch, length), bool.

    Returns:
        The unit of each eligible position (positions,) and whether a unit is drawn (units,).
    """
    first = starts[eligible]
    unit = np.cumsum(first) - 1
    row = np.nonzero(eligible)[0][first]  # (units,), ascending
    order = np.lexsort((rng.random(starts.shape)[starts], row))  # random within a row, so row[order] == row
    length = np.bincount(unit, minlength=len(row))[order]
    tokens = eligible.sum(axis=1)
    covered = np.cumsum(length) - length - (np.cumsum(tokens) - tokens)[row]  # by the units before, in the same row
    taken = covered + rng.random((len(tokens), 1))[row, 0] * length < ratio * tokens[row]
    empty = np.setdiff1d(row, row[taken])
    taken[np.lexsort((length, row))[np.searchsorted(row, empty)]] = True  # the row's shortest unit
    drawn = np.empty_like(taken)
    drawn[order] = taken
    return unit, drawn
