"""Fine-tunes a SimMIM checkpoint, or any encoder, to find answers in a text, with the plain `Trainer`.

    python run_question_answering.py --model_name_or_path my-encoder --train_file train.jsonl \
        --test_file test.jsonl --output_dir answers --max_seq_length 384 --learning_rate 1e-4

A row has `question`, `context`, `answer` and `answer_start` (in characters), or SQuAD's `answers`. A long context is
read in windows that overlap by `--stride` tokens. Every option of `TrainingArguments` works; figures, seed, versions
and command go to `results.json` in the output folder.
"""

import re
import string
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, DatasetDict
from downstream import DownstreamArguments, limit_train, load_model, load_splits, parse, save_results, sizes
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer

from simmim_hf.data import tokenization


@dataclass
class ScriptArguments(DownstreamArguments):
    stride: int = field(default=64, metadata={"help": "Tokens that two windows of a long context share."})
    max_answer_length: int = field(default=30, metadata={"help": "The most tokens of an answer."})


def check(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: ScriptArguments) -> None:
    """Raises a ValueError where answers are missing, or a question leaves no room for a window of its context."""
    for split, rows in data.items():
        columns = rows.column_names
        if "answers" not in columns and not {"answer", "answer_start"} <= set(columns):
            raise ValueError(
                f"The {split} data needs `answer` and `answer_start`, or SQuAD's `answers`; it has: {columns}."
            )
        longest = max(map(len, tokenizer(rows["question"][:])["input_ids"])) + 1  # with the separator behind the text
        if longest + args.stride >= args.max_seq_length:
            raise ValueError(
                f"A question of {longest} tokens and a --stride of {args.stride} leave no room for its context in "
                f"--max_seq_length {args.max_seq_length}: raise that, or lower the stride."
            )


def with_answers(row: dict) -> dict:
    """All right answers of a row in SQuAD's form, checked."""
    answers = row.get("answers") or {"text": [row.get("answer")], "answer_start": [row.get("answer_start")]}
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if text is None or start is None or row["context"][start : start + len(text)] != text:
            raise ValueError(f"The answer {text!r} does not stand at character {start} of {row['context'][:80]!r}...")
    if not answers["text"]:
        raise ValueError(f"The question {row['question']!r} has no answer in its context: remove it from the data.")
    return {"answers": answers}


def normalize(text: str) -> list[str]:
    """The words that count when answers are compared, as SQuAD does (Rajpurkar et al. 2016): no case, no articles."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(predicted: list[str], right: list[str]) -> float:
    shared = (Counter(predicted) & Counter(right)).total()
    return 2 * shared / (len(predicted) + len(right)) if shared else float(predicted == right)


def main():
    args, training_args = parse(ScriptArguments)
    data = load_splits(args, "question", "context")
    tokenizer = tokenization.load_tokenizer(args.model_name_or_path)
    check(data, tokenizer, args)
    data = limit_train(data.map(with_answers), args, training_args.seed)
    model = load_model(AutoModelForQuestionAnswering, args)

    def windows(rows: dict[str, list]) -> dict[str, list]:
        """Each context in windows: `spans` are the characters of its tokens, [0, 0] for what is not context."""
        encoded = tokenizer(
            [question.strip() for question in rows["question"]],
            rows["context"],
            truncation="only_second",
            max_length=args.max_seq_length,
            stride=args.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        encoded["row"] = encoded.pop("overflow_to_sample_mapping")
        offsets, encoded["spans"] = encoded.pop("offset_mapping"), []
        encoded["start_positions"], encoded["end_positions"] = [], []
        for window, (row, spans) in enumerate(zip(encoded["row"], offsets, strict=True)):
            part = encoded.sequence_ids(window)
            spans = [span if part[token] == 1 else (0, 0) for token, span in enumerate(spans)]
            text, first = rows["answers"][row]["text"][0], rows["answers"][row]["answer_start"][0]
            touched = [token for token, (start, end) in enumerate(spans) if start < first + len(text) and end > first]
            whole = touched and spans[touched[0]][0] <= first and spans[touched[-1]][1] >= first + len(text)
            # A window without the whole answer points to its first token.
            encoded["start_positions"].append(touched[0] if whole else 0)
            encoded["end_positions"].append(touched[-1] if whole else 0)
            encoded["spans"].append(spans)
        return encoded

    def predict(rows: Dataset) -> list[str]:
        """The likeliest answer to each question, over all windows of its context."""
        pieces = rows.map(windows, batched=True, batch_size=len(rows), remove_columns=rows.column_names)
        output = trainer.predict(pieces.remove_columns(["start_positions", "end_positions"]))
        best = [(-np.inf, "")] * len(rows)
        for row, spans, starts, ends in zip(pieces["row"], pieces["spans"], *output.predictions, strict=True):
            spans = np.array(spans)
            inside = np.flatnonzero(spans[:, 1] > 0)
            if not len(inside):
                continue
            scores = starts[inside, None] + ends[None, inside]
            allowed = np.triu(np.ones_like(scores)) - np.triu(np.ones_like(scores), args.max_answer_length)
            scores = np.where(allowed, scores, -np.inf)
            start, end = inside[list(np.unravel_index(scores.argmax(), scores.shape))]
            text = rows["context"][row][spans[start, 0] : spans[end, 1]]
            best[row] = max(best[row], (float(scores.max()), text))
        return [text for _, text in best]

    def evaluate(rows: Dataset) -> dict[str, float]:
        predicted, exact, f1 = [normalize(text) for text in predict(rows)], [], []
        for words, answers in zip(predicted, rows["answers"], strict=True):
            right = [normalize(text) for text in answers["text"]]
            exact.append(words in right)
            f1.append(max(word_f1(words, other) for other in right))
        return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}

    columns = data["train"].column_names
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"].map(windows, batched=True, remove_columns=columns),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # with the tokenizer
    figures = {split: evaluate(rows) for split, rows in data.items() if split != "train"}
    save_results(training_args, rows=sizes(data), **figures)


if __name__ == "__main__":
    main()
