"""Where words begin, by token ids: the marks of tokenizers, and Chinese words by jieba."""

import functools
import json
import logging as python_logging
import re
import unicodedata
from collections.abc import Callable

import numpy as np
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

# A token's place in its word: the whole word, its first token, a later one.
ALONE = 0
BEGINS = 1
CONTINUES = 2
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
SENTENCE_ENDS = (*".?!", "\u3002", "\uff1f", "\uff01")  # and the Chinese ones


def shift_right(array: np.ndarray) -> np.ndarray:
    """(batch, length) -> (batch, length): the value one position before, zero at the first."""
    shifted = np.zeros_like(array)
    shifted[:, 1:] = array[:, :-1]
    return shifted


def ends_of_sentences(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of tokens that end with a full stop, a question mark or an exclamation mark."""
    ends = []
    for token, index in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([token])
        if text.rstrip().endswith(SENTENCE_ENDS):
            ends.append(index)
    return ends


def build_word_tables(tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Two tables over token ids, both (vocabulary,): the place in a word (`ALONE`, `BEGINS` or `CONTINUES`) and the
    code point of tokens that are one Chinese character (a space for all others).

    Punctuation and Chinese tokens are `ALONE`; `inside_han_word` joins the latter, as their words depend on the text.
    """
    split = word_splitter(tokenizer)
    vocabulary = tokenizer.get_vocab()
    place = np.full(max(vocabulary.values()) + 1, ALONE, dtype=np.int8)
    han: np.ndarray = np.full(len(place), ord(" "), dtype="<u4")
    for token, index in vocabulary.items():
        continues, text = split(token)
        if HAN.match(text):
            if len(text) == 1:
                han[index] = ord(text)
        elif not text or any(map(_is_of_a_word, text)):  # no text: a bare word marker, whose word follows
            place[index] = CONTINUES if continues else BEGINS
    return place, han


def _is_of_a_word(char: str) -> bool:
    """Whether a character is a letter, a mark or a digit; or U+FFFD, for a fragment of a character's bytes."""
    return unicodedata.category(char)[0] in "LMN" or char == "\ufffd"


def word_splitter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], tuple[bool, str]]:
    """A function from a token to whether it may continue the word before it, and its text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    spec: dict = {"model": {}}
    if backend is not None:
        spec = json.loads(backend.to_str())
    model = spec["model"]
    around = [spec.get(stage) for stage in ("normalizer", "pre_tokenizer", "decoder")]
    stages = json.dumps(around, ensure_ascii=False)
    prefix = model.get("continuing_subword_prefix")
    if prefix:  # WordPiece
        return lambda token: (token.startswith(prefix), token)
    if "ByteLevel" in stages:
        decoder = decoders.ByteLevel()
        return lambda token: (not token.startswith(("Ġ", "Ċ")), decoder.decode([token]).removeprefix(" "))
    if "▁" in stages:  # SentencePiece
        return lambda token: (not token.startswith("▁"), token.removeprefix("▁"))
    if model.get("type") == "WordLevel":
        return lambda token: (False, token)
    raise ValueError(
        f"whole_word_mask: how {type(tokenizer).__name__} marks the words of a text is unknown (WordPiece, "
        "SentencePiece and byte-level BPE from the tokenizers library are). Set whole_word_mask=False."
    )


def inside_han_word(han: np.ndarray) -> np.ndarray:
    """Where a Chinese character belongs to the word of the one before it: code points (batch, length) -> bool."""
    is_han = han != ord(" ")  # (batch, length)
    has_neighbours = (is_han & shift_right(is_han)).any()
    segment = chinese_segmenter() if has_neighbours else None
    if segment is None:
        return np.zeros_like(is_han)
    # One text of the whole batch, one character a position; a column of spaces keeps the rows apart.
    column = ((0, 0), (0, 1))
    separated = np.pad(han, column, constant_values=ord(" ")).astype("<u4")  # (batch, length + 1)
    words = segment(separated.tobytes().decode("utf-32-le"))
    starts = np.cumsum([0, *map(len, words)])[:-1]  # (words,)
    inside = np.ones(separated.size, dtype=bool)
    inside[starts] = False
    return inside.reshape(separated.shape)[:, :-1] & is_han


@functools.cache
def chinese_segmenter() -> Callable[[str], list[str]] | None:
    """`jieba.lcut`, or None where jieba is not installed."""
    try:
        import jieba
    except ImportError:
        logger.warning_once("jieba is not installed: each Chinese character counts as a word (pip install jieba).")
        return None
    jieba.setLogLevel(python_logging.WARNING)
    return jieba.lcut
