"""Pre-trains SimMIM (Siamese Masked Language Model, for text) with the plain `Trainer` of transformers.

    python run_pretraining.py --train_file corpus.txt --output_dir simmim --num_train_epochs 3      # from scratch
    python run_pretraining.py --train_file corpus.txt --output_dir simmim --model_name_or_path roberta-base
    accelerate launch run_pretraining.py --train_file corpus.txt --output_dir simmim                 # all GPUs

Every option of `TrainingArguments` works. `SimMIMTrainer` instead of `Trainer` also logs each term of the loss.
"""

import json
import time
from dataclasses import dataclass, field

from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining
from simmim_hf.data import corpora, tokenization
from simmim_hf.model.configuration_simmim import OBJECTIVES


@dataclass
class ScriptArguments:
    train_file: str = field(metadata={"help": "Text to train on: a txt, jsonl, csv or parquet file, glob or folder."})
    validation_file: str | None = field(
        default=None, metadata={"help": "Text to evaluate on. Default: a twentieth of the training text, held out."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Backbone to continue from. Default: random weights, see --text_config."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Default: that of --model_name_or_path, or else one trained on the text."}
    )
    vocab_size: int = field(default=30522, metadata={"help": "Of a tokenizer that is trained on the text."})
    text_config: str = field(
        default='{"model_type": "bert"}',
        metadata={"help": "Configuration of a backbone from scratch, as JSON or the name of a JSON file."},
    )
    objective: str = field(
        default="snippets", metadata={"help": "Which terms the loss has.", "choices": list(OBJECTIVES)}
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Tokens that are read at once; longer texts are split."}
    )
    mlm_probability: float = field(default=0.3, metadata={"help": "Share of the tokens that are corrupted."})
    whole_word_mask: bool = field(default=False, metadata={"help": "Corrupt whole words instead of tokens."})


def load_tokenizer(args: ScriptArguments, text):
    name = args.tokenizer_name_or_path or args.model_name_or_path
    if name is not None:
        return tokenization.load_tokenizer(name)
    return tokenization.train_tokenizer(text["text"], args.vocab_size)


def build_model(args: ScriptArguments, tokenizer) -> SimMIMForPreTraining:
    if args.model_name_or_path is not None:
        # The weights of the encoder and of its language-model head.
        model = SimMIMForPreTraining.from_backbone(args.model_name_or_path, **OBJECTIVES[args.objective])
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
        return model
    if args.text_config.lstrip().startswith("{"):
        text_config = json.loads(args.text_config)
    else:
        with open(args.text_config, encoding="utf-8") as file:
            text_config = json.load(file)
    return SimMIMForPreTraining(SimMIMConfig.from_objective(args.objective, tokenizer, text_config=text_config))


def main():
    args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)

    # One process reads and tokenizes, the others then find the result in the cache of datasets.
    with training_args.main_process_first(desc="loading the text"):
        train_text = corpora.load_text(args.train_file)
        if args.validation_file is not None:
            validation_text = corpora.load_text(args.validation_file)
        else:
            train_text, validation_text = corpora.split_held_out(train_text)
        tokenizer = load_tokenizer(args, train_text)
        model = build_model(args, tokenizer)
        options = {"max_length": args.max_seq_length, "passages": model.config.passages_per_row}
        train_dataset, counts = tokenization.tokenize(train_text, tokenizer, **options)
        eval_dataset, _ = tokenization.tokenize(validation_text, tokenizer, **options)
    if training_args.process_index == 0:
        print(f"{counts.documents} training texts, {counts.tokens} tokens; {len(eval_dataset)} rows for evaluation")

    # Makes the two views that the objective compares, new ones in every epoch.
    data_collator = DataCollatorForSimMIM.for_config(
        tokenizer,
        model.config,
        max_length=args.max_seq_length,
        mlm_probability=args.mlm_probability,
        whole_word_mask=args.whole_word_mask,
        seed=training_args.seed,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
        processing_class=tokenizer,
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # with the tokenizer
    trainer.log_metrics("train", result.metrics)
    trainer.log_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        data_collator.save_pretrained(training_args.output_dir)
        print("Load it with:\n  import simmim_hf  # registers the model with transformers")
        print(f"  model = transformers.AutoModel.from_pretrained({training_args.output_dir!r})")
    time.sleep(1)  # threads of gloo let go of their last tensors, or abort Python at its end (pytorch/pytorch#179291)


if __name__ == "__main__":
    main()
