"""Fine-tunes a SimMIM checkpoint, or any encoder, to tag the words of a text, with the plain `Trainer`.

    python run_token_classification.py --model_name_or_path my-encoder --train_file train.jsonl \
        --test_file test.jsonl --output_dir tagger --learning_rate 1e-4 --num_train_epochs 3

A row has a list of words, `tokens`, and a list as long of their tags, `tags`: names or integers. The first piece of a
word carries its tag. Every option of `TrainingArguments` works; figures, seed, versions and command go to
`results.json` in the output folder.
"""

from dataclasses import dataclass, field

from datasets import DatasetDict
from downstream import (
    DownstreamArguments,
    evaluate,
    find_classes,
    limit_train,
    load_model,
    load_splits,
    parse,
    save_results,
    sizes,
)
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    Trainer,
)

IGNORE_INDEX = -100


@dataclass
class ScriptArguments(DownstreamArguments):
    tokens_column: str = field(default="tokens", metadata={"help": "The column of the lists of words."})
    tags_column: str = field(default="tags", metadata={"help": "The column of the lists of tags."})


def check_lists(data: DatasetDict, tokens_column: str, tags_column: str) -> None:
    """Raises a ValueError where a column holds no lists, or a row has more or fewer tags than words."""
    for split, rows in data.items():
        for column in (tokens_column, tags_column):
            if not hasattr(rows.features[column], "feature"):
                raise ValueError(f"The column `{column}` of the {split} data must hold lists, one item a word.")
        for row, (words, tags) in enumerate(zip(rows[tokens_column], rows[tags_column], strict=True)):
            if len(words) != len(tags):
                raise ValueError(f"Row {row + 1} of the {split} data has {len(words)} words and {len(tags)} tags.")


def main():
    args, training_args = parse(ScriptArguments)
    data = load_splits(args, args.tokens_column, args.tags_column)
    check_lists(data, args.tokens_column, args.tags_column)
    number_of, names = find_classes(data, args.tags_column)
    data = limit_train(data, args, training_args.seed)

    # RoBERTa's kind of tokenizer writes the space before a word into its first piece.
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, add_prefix_space=True)
    label2id = {name: number for number, name in names.items()}
    model = load_model(AutoModelForTokenClassification, args, id2label=names, label2id=label2id)

    def encode(rows: dict[str, list]) -> dict[str, list]:
        words, options = rows[args.tokens_column], {"truncation": True, "max_length": args.max_seq_length}
        encoded = tokenizer(words, is_split_into_words=True, **options)
        labels = []
        for row, tags in enumerate(rows[args.tags_column]):
            word_ids = encoded.word_ids(row)  # of each piece; None for a special token
            first = [word is not None and word != before for before, word in zip([None, *word_ids], word_ids)]
            labels.append([number_of[tags[w]] if is_first else IGNORE_INDEX for w, is_first in zip(word_ids, first)])
        return {**encoded, "labels": labels}

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Of the first piece of every word that is not cut off."""
        scored = prediction.label_ids != IGNORE_INDEX
        predicted, labels = prediction.predictions.argmax(-1)[scored], prediction.label_ids[scored]
        by_class = f1_score(labels, predicted, average=None, labels=list(names), zero_division=0)
        return {
            "words": len(labels),
            "accuracy": accuracy_score(labels, predicted),
            "f1_macro": by_class.mean(),
            **{f"f1_{name}": float(score) for name, score in zip(names.values(), by_class, strict=True)},
        }

    words = {split: sum(map(len, rows[args.tokens_column])) for split, rows in data.items()}
    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # with the tokenizer
    figures = evaluate(trainer, data)
    for split, metrics in figures.items():
        metrics["words_cut"] = words[split] - metrics["words"]
    save_results(training_args, rows=sizes(data), **figures)


if __name__ == "__main__":
    main()
