"""Fine-tunes a SimMIM checkpoint, or any encoder, to classify texts or pairs of texts, with the plain `Trainer`.

    python run_classification.py --model_name_or_path my-encoder --train_file train.jsonl --test_file test.jsonl \
        --output_dir classifier --learning_rate 1e-4 --num_train_epochs 3

Labels are integers or names. `--random_weights` shows what the same model learns without pre-training. Every option
of `TrainingArguments` works; figures, seed, versions and command go to `results.json` in the output folder.
"""

from dataclasses import dataclass, field

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
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction, Trainer

from simmim_hf.data import tokenization


@dataclass
class ScriptArguments(DownstreamArguments):
    text_column: str = field(default="text", metadata={"help": "The column of the texts."})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "The column of the second texts, where pairs are classified."}
    )
    label_column: str = field(default="label", metadata={"help": "The column of the classes."})


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    predicted, labels = prediction.predictions.argmax(-1), prediction.label_ids
    return {
        "accuracy": accuracy_score(labels, predicted),
        "f1_macro": f1_score(labels, predicted, average="macro"),
    }


def main():
    args, training_args = parse(ScriptArguments)
    text_columns = [column for column in (args.text_column, args.text_pair_column) if column]
    data = load_splits(args, *text_columns, args.label_column)
    number_of, names = find_classes(data, args.label_column)
    data = limit_train(data, args, training_args.seed)

    tokenizer = tokenization.load_tokenizer(args.model_name_or_path)
    label2id = {name: number for number, name in names.items()}
    model = load_model(AutoModelForSequenceClassification, args, id2label=names, label2id=label2id)

    def encode(rows: dict[str, list]) -> dict[str, list]:
        texts = (rows[column] for column in text_columns)
        encoded = tokenizer(*texts, truncation=True, max_length=args.max_seq_length)
        return {**encoded, "labels": [number_of[label] for label in rows[args.label_column]]}

    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # with the tokenizer
    save_results(training_args, rows=sizes(data), classes=list(names.values()), **evaluate(trainer, data))


if __name__ == "__main__":
    main()
