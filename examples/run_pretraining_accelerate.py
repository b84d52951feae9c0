"""Pre-trains SimMIM (Siamese Masked Language Model, for text) in a plain training loop with Accelerate.

    accelerate launch run_pretraining_accelerate.py --train_file corpus.txt --output_dir simmim

`run_pretraining.py` does the same with the `Trainer`. This loop is the place to start for one of your own.
"""

import argparse
import json
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import get_scheduler

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining
from simmim_hf.data import corpora, tokenization
from simmim_hf.model.configuration_simmim import OBJECTIVES


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train_file", required=True, help="text to train on: a txt, jsonl, csv or parquet file, glob or folder")
    add("--validation_file", help="text to evaluate on (default: a twentieth of the training text, held out)")
    add("--output_dir", required=True, help="where the model goes")
    add("--model_name_or_path", help="backbone to continue from (default: random weights, see --text_config)")
    add("--tokenizer_name_or_path", help="default: that of --model_name_or_path, or else one trained on the text")
    add("--text_config", type=json.loads, default={"model_type": "bert"}, help="of a backbone from scratch, as JSON")
    add("--objective", default="snippets", choices=list(OBJECTIVES), help="which terms the loss has")
    add("--max_seq_length", type=int, default=128, help="tokens that are read at once; longer texts are split")
    add("--mlm_probability", type=float, default=0.3, help="share of the tokens that are corrupted")
    add("--whole_word_mask", action="store_true", help="corrupt whole words instead of tokens")
    add("--num_train_epochs", type=int, default=1, help="passes over the text")
    add("--per_device_train_batch_size", type=int, default=32, help="sequences in a batch of one device")
    add("--gradient_accumulation_steps", type=int, default=1, help="batches in an update of the weights")
    add("--learning_rate", type=float, default=5e-4, help="rises in the first 5 %% of the updates, then falls")
    add("--logging_steps", type=int, default=50, help="updates between two printed lines")
    add("--seed", type=int, default=0, help="of the weights, the order of the texts and their corruption")
    return parser.parse_args()


def load_data(args: argparse.Namespace):
    """The tokenizer and the tokenized texts to train and to evaluate on."""
    train_text = corpora.load_text(args.train_file)
    if args.validation_file:
        validation_text = corpora.load_text(args.validation_file)
    else:
        train_text, validation_text = corpora.split_held_out(train_text)
    name = args.tokenizer_name_or_path or args.model_name_or_path
    tokenizer = tokenization.load_tokenizer(name) if name else tokenization.train_tokenizer(train_text["text"])
    return tokenizer, train_text, validation_text


def build_model(args: argparse.Namespace, tokenizer) -> SimMIMForPreTraining:
    if args.model_name_or_path:
        return SimMIMForPreTraining.from_backbone(args.model_name_or_path, **OBJECTIVES[args.objective])
    return SimMIMForPreTraining(SimMIMConfig.from_objective(args.objective, tokenizer, text_config=args.text_config))


def describe(outputs) -> str:
    return ", ".join(f"{name} {outputs[name].item():.4f}" for name in outputs if name.endswith(("loss", "accuracy")))


def main():
    args = parse_args()
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    set_seed(args.seed)
    with accelerator.main_process_first():  # the other processes find the tokens in the cache of datasets
        tokenizer, *texts = load_data(args)
        model = build_model(args, tokenizer)
        options = {"max_length": args.max_seq_length, "passages": model.config.passages_per_row}
        train_dataset, validation_dataset = (tokenization.tokenize(text, tokenizer, **options)[0] for text in texts)
    options = {"mlm_probability": args.mlm_probability, "whole_word_mask": args.whole_word_mask, "seed": args.seed}
    collator = DataCollatorForSimMIM.for_config(tokenizer, model.config, max_length=args.max_seq_length, **options)
    batch_size = args.per_device_train_batch_size
    train_loader = DataLoader(train_dataset, batch_size, shuffle=True, collate_fn=collator)
    validation_loader = DataLoader(validation_dataset, batch_size, collate_fn=collator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    model, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
    updates = args.num_train_epochs * -(-len(train_loader) // args.gradient_accumulation_steps)
    scheduler = get_scheduler("linear", optimizer, updates // 20, updates)
    model.train()
    update = 0
    for epoch in range(args.num_train_epochs):
        train_loader.set_epoch(epoch)
        for batch in train_loader:
            # The loss is already that of the batch of all processes, with the sequences of all as negatives.
            with accelerator.accumulate(model):
                outputs = model(**batch)
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                scheduler.step()
                update += 1
                if update % args.logging_steps == 0 or update == updates:
                    accelerator.print(f"update {update}/{updates}: {describe(outputs)}")
        accelerator.save_state(f"{args.output_dir}/epoch-{epoch + 1}")  # to resume from

    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model).eval()
        model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        collator.save_pretrained(args.output_dir)
        # Without gradients a process is alone: the main one evaluates, and the others wait for nothing.
        with torch.no_grad():
            for number, batch in enumerate(validation_loader, 1):
                batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
                print(f"evaluation batch {number}: {describe(model(**batch))}")
        print(f"Load it with: import simmim_hf; transformers.AutoModel.from_pretrained({args.output_dir!r})")
    time.sleep(1)  # threads of gloo let go of their last tensors, or abort Python at its end (pytorch/pytorch#179291)


if __name__ == "__main__":
    main()
