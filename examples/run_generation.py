"""Fine-tunes a SimMIM checkpoint, or another model, to write text from left to right, with the plain `Trainer`.

    python run_generation.py --model_name_or_path my-encoder --train_file train.txt --test_file heldout.txt \
        --output_dir writer --learning_rate 1e-3 --num_train_epochs 1

Reports the perplexity of held-out text and, for continuations of its beginnings, how much they repeat themselves
(distinct-n, Li et al. 2016) and how near consecutive sentences are, next to the same figures of the real text. Every
option of `TrainingArguments` works; figures, seed, versions and command go to `results.json` in the output folder.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from downstream import DownstreamArguments, evaluate, limit_train, load_model, load_splits, parse, save_results, sizes
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorForLanguageModeling, EvalPrediction, Trainer

from simmim_hf import SimMIMForPreTraining, encode
from simmim_hf.data import tokenization


@dataclass
class ScriptArguments(DownstreamArguments):
    text_column: str = field(default="text", metadata={"help": "The column of the texts."})
    num_prompts: int = field(default=50, metadata={"help": "How many held-out texts are continued."})
    prompt_length: int = field(default=16, metadata={"help": "Tokens of a prompt."})
    max_new_tokens: int = field(default=48, metadata={"help": "Tokens of a continuation."})
    temperature: float = field(default=1.0, metadata={"help": "Of the sampling."})
    top_p: float = field(default=0.9, metadata={"help": "Sample from the likeliest tokens with this probability."})
    coherence_model: str | None = field(
        default=None, metadata={"help": "A model of sentence vectors (mean pooling) that compares the sentences."}
    )


def token_losses(logits, labels: torch.Tensor) -> torch.Tensor:
    """(batch, length, vocab) -> (batch, 2): the summed loss of each text, and of how many tokens."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return torch.stack([losses.sum(1), (labels[:, 1:] != -100).sum(1)], dim=1)


def perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """exp of the mean loss over all tokens; that of the Trainer is a mean over batches."""
    total, count = prediction.predictions.sum(0)
    return {"perplexity": float(np.exp(total / count)), "tokens": int(count)}


def distinct(texts: list[str], n: int) -> float:
    """The share of different ones among all runs of n words: the lower, the more the texts repeat."""
    words = [text.split() for text in texts]
    runs = [tuple(row[start : start + n]) for row in words for start in range(len(row) - n + 1)]
    return len(set(runs)) / max(1, len(runs))


def coherence(texts: list[str], name: str) -> float | None:
    """The mean cosine of a sentence and the next, None where no text has two."""
    texts = [re.split(r"(?<=[.!?])\s+", text) for text in texts]
    sentences = [sentence for text in texts for sentence in text]
    same_text = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    model = SimMIMForPreTraining.from_backbone(name, pooling="mean", dtype="float32").base_model
    vectors = encode(model, sentences, tokenization.load_tokenizer(name), max_length=128)
    cosines = (vectors[:-1] * vectors[1:]).sum(1)[same_text[:-1] == same_text[1:]]
    return float(cosines.mean()) if len(cosines) else None


def main():
    args, training_args = parse(ScriptArguments)
    data = limit_train(load_splits(args, args.text_column), args, training_args.seed)
    tokenizer = tokenization.load_tokenizer(args.model_name_or_path)
    for split, rows in data.items():
        rows = rows.select_columns(args.text_column).rename_columns({args.text_column: "text"})
        data[split], _ = tokenization.tokenize(rows, tokenizer, args.max_seq_length)
    held_out = data.get("test", data.get("validation"))
    length = args.prompt_length + args.max_new_tokens
    prompts = held_out.filter(lambda row: row["length"] > length)[: args.num_prompts]["input_ids"]
    if not prompts:
        raise ValueError(
            f"No held-out text is longer than {length} tokens (--prompt_length and --max_new_tokens): lower these, or "
            f"raise --max_seq_length above {length}."
        )

    is_simmim = AutoConfig.from_pretrained(args.model_name_or_path).model_type == "simmim"
    model = load_model(AutoModelForCausalLM, args, **({} if is_simmim else {"is_decoder": True}))
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        compute_metrics=perplexity,
        preprocess_logits_for_metrics=token_losses,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    # Behind the training, where the Trainer takes those of the tokenizer: BERT's has neither `bos` nor `eos`.
    eos = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    bos = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    model.generation_config.update(bos_token_id=bos, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
    trainer.save_model()  # with the tokenizer
    figures = evaluate(trainer, data)

    # The beginning of a text has its first special token but not the last one, which would end the text.
    beginnings = torch.tensor([ids[: args.prompt_length] for ids in prompts], device=model.device)
    written = model.eval().generate(
        beginnings,
        attention_mask=torch.ones_like(beginnings),
        do_sample=True,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        suppress_tokens=[token for token in tokenizer.all_special_ids if token != eos],
    )
    real = torch.tensor([ids[:length] for ids in prompts])
    for name, ids in {"written": written, "real": real}.items():
        texts = tokenizer.batch_decode(ids[:, args.prompt_length :], skip_special_tokens=True)
        whole = tokenizer.batch_decode(ids, skip_special_tokens=True)
        figures[name] = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
        figures[name]["words"] = sum(len(text.split()) for text in texts) / len(texts)
        if args.coherence_model:
            figures[name]["coherence"] = coherence(whole, args.coherence_model)
        figures[name]["examples"] = whole[:5]
    save_results(training_args, rows=sizes(data), **figures)


if __name__ == "__main__":
    main()
