"""Fills the gaps of texts with a SimMIM checkpoint or another masked language model, and measures how well.

    python run_infilling.py --model_name_or_path my-encoder --texts "Paris is the ___ of [MASK]." --output_dir gaps
    python run_infilling.py --model_name_or_path my-encoder --evaluate heldout.txt --gaps 3 --output_dir gaps

A gap is `[MASK]` or `___`, one token each. The first candidate takes the likeliest tokens, the others are drawn. With
`--evaluate`, the tokens of random words of held-out texts are masked, and filled one after the other, the most certain
first, or all at once. What comes out goes to `results.json` in the output folder, with seed, versions and command.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from downstream import load_file, save_results
from transformers import HfArgumentParser, PreTrainedTokenizerBase, set_seed

from simmim_hf import SimMIMForMaskedLM, SimMIMForPreTraining
from simmim_hf.data import tokenization


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "A SimMIM checkpoint or any masked LM: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Where `results.json` goes."})
    texts: list[str] = field(default_factory=list, metadata={"help": "Texts with gaps, [MASK] or ___."})
    num_candidates: int = field(default=5, metadata={"help": "Fillings of each text, fewer where some are the same."})
    temperature: float = field(default=1.0, metadata={"help": "Of the drawn candidates."})
    top_k: int = field(default=20, metadata={"help": "Draw from so many of the likeliest tokens."})
    num_steps: int | None = field(
        default=None, metadata={"help": "In how many steps gaps are filled. Default: one token after the other."}
    )
    evaluate: str | None = field(default=None, metadata={"help": "A file of held-out texts to measure on."})
    text_column: str = field(default="text", metadata={"help": "Its column of the texts."})
    gaps: int = field(default=3, metadata={"help": "Words that are masked in a held-out text."})
    max_samples: int = field(default=1000, metadata={"help": "Held-out texts, from the beginning of the file."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this number of tokens."})
    batch_size: int = field(default=32, metadata={"help": "Held-out texts that are read at once."})
    seed: int = field(default=42, metadata={"help": "Of the drawn candidates and of the masked words."})


def load_model(name: str) -> SimMIMForMaskedLM:
    """The encoder and its language-model head; `from_backbone` also opens models that are not SimMIM's."""
    pretrained = SimMIMForPreTraining.from_backbone(name, dtype="float32")
    model = SimMIMForMaskedLM(pretrained.config)
    model.load_state_dict(pretrained.state_dict(), strict=False)  # without a projection
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def fill(text: str, model: SimMIMForMaskedLM, tokenizer: PreTrainedTokenizerBase, args: ScriptArguments) -> list[str]:
    """The text with its gaps filled, in different ways."""
    text = re.sub(r"\[MASK\]|_{3,}", lambda _: tokenizer.mask_token, text)
    batch = tokenizer([text], truncation=True, max_length=args.max_seq_length, return_tensors="pt").to(model.device)
    options = {"mask_token_id": tokenizer.mask_token_id, "suppress_tokens": tokenizer.all_special_ids}
    options["num_steps"] = args.num_steps
    filled = [model.infill(**batch, **options)]
    if args.num_candidates > 1:
        rows = {name: column.repeat(args.num_candidates - 1, 1) for name, column in batch.items()}
        filled.append(model.infill(**rows, temperature=args.temperature, top_k=args.top_k, **options))
    return list(dict.fromkeys(tokenizer.batch_decode(torch.cat(filled), skip_special_tokens=True)))


def mask_words(texts: list[str], tokenizer: PreTrainedTokenizerBase, args: ScriptArguments) -> list[tuple]:
    """The token ids of each text, and the positions of the tokens of `gaps` of its words.

    Texts with fewer words are left out. Punctuation is no word, and a word with an unknown token is never masked: it
    cannot be filled in.
    """
    generator, masked = np.random.default_rng(args.seed), []
    encoded = tokenizer(texts, truncation=True, max_length=args.max_seq_length)
    for row, text in enumerate(texts):
        ids, word_ids = np.array(encoded["input_ids"][row]), encoded.word_ids(row)
        unknown = {word_ids[token] for token in np.flatnonzero(ids == tokenizer.unk_token_id)}
        spans = {word: encoded.word_to_chars(row, word) for word in set(word_ids) - unknown - {None}}
        words = sorted(word for word, span in spans.items() if text[span.start : span.end].strip().isalnum())
        if len(words) >= args.gaps:
            chosen = generator.choice(words, size=args.gaps, replace=False)
            masked.append((ids, np.flatnonzero([word in chosen for word in word_ids])))
    return masked


def measure(model: SimMIMForMaskedLM, tokenizer: PreTrainedTokenizerBase, args: ScriptArguments) -> dict[str, float]:
    """The share of masked tokens that are filled in exactly, by the way of filling."""
    rows = load_file(args.evaluate)
    if args.text_column not in rows.column_names:
        raise ValueError(
            f"`{args.evaluate}` has no column `{args.text_column}`; it has: {', '.join(rows.column_names)}."
        )
    texts = [text for text in rows[args.text_column] if text and not text.isspace()][: args.max_samples]
    masked = mask_words(texts, tokenizer, args)
    if not masked:
        raise ValueError(f"No text of `{args.evaluate}` has {args.gaps} words: lower --gaps.")
    masked.sort(key=lambda row: len(row[0]))
    steps, right, total = {"iterative": args.num_steps, "at_once": 1}, {"iterative": 0, "at_once": 0}, 0
    for start in range(0, len(masked), args.batch_size):
        batch = masked[start : start + args.batch_size]
        padded = tokenizer.pad({"input_ids": [ids for ids, _ in batch]}, return_tensors="pt").to(model.device)
        original, gaps = padded["input_ids"], torch.zeros_like(padded["input_ids"], dtype=torch.bool)
        for row, (_, positions) in enumerate(batch):
            gaps[row, positions] = True
        total += int(gaps.sum())
        for way, num_steps in steps.items():
            filled = model.infill(
                original.masked_fill(gaps, tokenizer.mask_token_id),
                padded["attention_mask"],
                mask_token_id=tokenizer.mask_token_id,
                suppress_tokens=tokenizer.all_special_ids,
                num_steps=num_steps,
            )
            right[way] += int((filled == original)[gaps].sum())
    accuracies = {f"accuracy_{way}": count / total for way, count in right.items()}
    return {"texts": len(masked), "masked_tokens": total, **accuracies}


def main():
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    if not args.texts and not args.evaluate:
        raise ValueError("Give --texts with gaps, or --evaluate with a file of held-out texts.")
    set_seed(args.seed)
    tokenizer, model = tokenization.load_tokenizer(args.model_name_or_path), load_model(args.model_name_or_path)
    results = {}
    if args.texts:
        results["filled"] = {text: fill(text, model, tokenizer, args) for text in args.texts}
    if args.evaluate:
        results["held_out"] = measure(model, tokenizer, args)
    save_results(args, **results)


if __name__ == "__main__":
    main()
