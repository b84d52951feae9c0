"""What the tests of this folder share: a checkpoint to export, texts, and the vectors that it has for them."""

from pathlib import Path

import torch
from transformers import BertTokenizer

CLOSE = {"rtol": 0, "atol": 1e-5}
TEXTS = ["a", "some letters", "the quick brown fox", "jumps over it", "zz"]


def tokenizer_for(model) -> BertTokenizer:
    """Spells with letters, so that texts differ for a vocabulary of 64; its padding is that of the model."""
    special = ["[PAD]", "[UNK]"] if model.config.pad_token_id != 1 else ["[UNK]", "[PAD]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*special, "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


@torch.no_grad()
def pooled(model, tokenizer, texts=TEXTS) -> torch.Tensor:
    """The sentence vectors of a SimMIM model, each text by itself."""
    tokens = (tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in texts)
    return torch.cat([model.base_model(**row).pooler_output for row in tokens])


def to(form: str, source: Path, target: Path, *more: str) -> list[str]:
    return ["export", "--model", str(source), "--to", form, "--output_dir", str(target), *more]
