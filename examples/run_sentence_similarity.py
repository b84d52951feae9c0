"""Fine-tunes the sentence vectors of a SimMIM checkpoint, or any encoder, on scored pairs, with the plain `Trainer`.

    python run_sentence_similarity.py --model_name_or_path my-encoder --train_file train.jsonl \
        --validation_file dev.jsonl --test_file test.jsonl --output_dir similarity --learning_rate 1e-4

A row has `sentence1`, `sentence2` and `score`. `--loss regression` fits the cosine to the score, siamese; `--loss
contrastive` takes the pairs that score high as positives and the other sentences of the batch as negatives. Spearman's
correlation is measured before and after. Every option of `TrainingArguments` works; figures, seed, versions and
command go to `results.json` in the output folder.
"""

from dataclasses import dataclass, field

import torch
from downstream import DownstreamArguments, limit_train, load_splits, parse, save_results, sizes
from torch import nn
from transformers import Trainer

from simmim_hf import SimMIMForPreTraining, SimMIMModel
from simmim_hf.data import tokenization
from simmim_hf.evaluation.run_task import similarity_spearman
from simmim_hf.model.losses import contrastive_cross_entropy, similarity_matrix


@dataclass
class ScriptArguments(DownstreamArguments):
    loss: str = field(
        default="regression", metadata={"help": "What is learned.", "choices": ["regression", "contrastive"]}
    )
    max_score: float = field(default=5.0, metadata={"help": "The score of two sentences that mean the same."})
    min_positive_score: float = field(
        default=4.0, metadata={"help": "--loss contrastive: pairs that score less are left out."}
    )
    temperature: float = field(default=0.05, metadata={"help": "--loss contrastive: divides the cosines."})


def load_encoder(args: ScriptArguments) -> SimMIMModel:
    """The encoder with its pooling; one of neither SimMIM nor sentence-transformers gets mean pooling."""
    encoder = SimMIMForPreTraining.from_backbone(args.model_name_or_path, dtype="float32").base_model
    return SimMIMModel(encoder.config) if args.random_weights else encoder


def main():
    args, training_args = parse(ScriptArguments)
    training_args.remove_unused_columns = False  # the collator reads the sentences
    data = load_splits(args, "sentence1", "sentence2", "score")
    if args.loss == "contrastive":
        data["train"] = data["train"].filter(lambda row: row["score"] >= args.min_positive_score)
        if not len(data["train"]):
            raise ValueError(f"No training pair scores {args.min_positive_score}: lower --min_positive_score.")
    for split, rows in data.items():
        if not 0 <= min(rows["score"]) <= max(rows["score"]) <= args.max_score:
            raise ValueError(f"The {split} data has scores below 0 or above {args.max_score}: set --max_score.")
    data = limit_train(data, args, training_args.seed)
    tokenizer, model = tokenization.load_tokenizer(args.model_name_or_path), load_encoder(args)
    max_length = min(args.max_seq_length, model.max_length)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        """All first sentences, then all second ones, in one batch: (2 x pairs, length); and the scores, (pairs,)."""
        texts = [row[column] for column in ("sentence1", "sentence2") for row in rows]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["score"] / args.max_score for row in rows])}

    def compute_loss(outputs, scores: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        """The mean over the pairs of all micro-batches of a step, of which this is one."""
        first, second = outputs.pooler_output.chunk(2)
        if args.loss == "contrastive":
            own = torch.arange(len(first), device=first.device)
            total = contrastive_cross_entropy(similarity_matrix(first, second) / args.temperature, own)
        else:
            total = nn.functional.mse_loss(nn.functional.cosine_similarity(first, second), scores, reduction="sum")
        return total / (len(scores) if num_items_in_batch is None else num_items_in_batch)

    def spearman() -> dict[str, float]:
        held_out = {split: rows for split, rows in data.items() if split != "train"}
        return {split: similarity_spearman(model, tokenizer, rows, max_length) for split, rows in held_out.items()}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        data_collator=collate,
        processing_class=tokenizer,
        compute_loss_func=compute_loss,
    )
    before = spearman()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # a SimMIMModel, with the tokenizer
    save_results(training_args, rows=sizes(data), spearman_before=before, spearman_after=spearman())


if __name__ == "__main__":
    main()
