"""`simmim pretrain`: real text in, a checkpoint, its evaluation and a picture of the training out."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from . import corpora, docstrings, hub, reporting
from .configuration_simmim import CHOICES, OBJECTIVES, SimMIMConfig
from .data_collator import DataCollatorForSimMIM
from .evaluation import (
    encode,
    load_scored_pairs,
    mean_reciprocal_rank,
    similarity_spearman,
    tfidf_reciprocal_rank,
    unigram_cross_entropy,
)
from .modeling_simmim import SimMIMForPreTraining
from .trainer import SimMIMTrainer, TimeLimit

logger = logging.get_logger(__name__)

# From scratch without `--text_config`: the tiny BERT of Turc et al. 2019, which learns something on a CPU in minutes.
TINY_BERT = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
# The built-in corpus is small, and the first command of a newcomer ends within four minutes on two cores.
BUILT_IN_DEFAULTS = {"vocab_size": 8192, "num_train_epochs": 1.5, "max_minutes": 2.75}
DEFAULTS = {"vocab_size": 30522, "num_train_epochs": 1.0, "max_minutes": None}


def option(default, help: str, **metadata):
    """A dataclass field for the command line."""
    return field(default=default, metadata={"help": help, **metadata})


# HfArgumentParser makes a flag of a bool only where it is not also None, the value for "as the model has it".
IS_FLAG = {"nargs": "?", "const": True}


@dataclass
class ModelArguments:
    """What is trained: a model to start from, or one to build, and the objective."""

    model_name_or_path: str | None = option(
        None, "Folder or Hub id of an encoder (or a SimMIM checkpoint) to start from; its masked-LM head is kept."
    )
    text_config: str | None = option(
        None,
        "From scratch: the backbone, as a JSON object, a JSON file, or a model type such as modernbert. "
        "Default: a BERT of 2 layers, 128 wide.",
    )
    tokenizer_name: str | None = option(
        None,
        "Folder or Hub id of a tokenizer, or a vocab.txt. Default: that of --model_name_or_path, else one is "
        "trained on the corpus.",
    )
    vocab_size: int | None = option(
        None, "Size of a tokenizer that is trained on the corpus. Default: 30522; 8192 for the built-in corpus."
    )
    objective: str = option("simmim", "Pre-training objective.", choices=list(OBJECTIVES))
    mlm_weight: float | None = option(None, "Weight of the masked-token loss. Default: by --objective.")
    contrastive_weight: float | None = option(None, "Weight of the contrastive loss. Default: by --objective.")
    clm_weight: float | None = option(None, "Weight of the next-token loss. Default: by --objective.")
    positive_view: str | None = option(
        None, "What a sequence is pulled towards. Default: by --objective.", choices=list(CHOICES["positive_view"])
    )
    contrastive_loss: str | None = option(
        None, "Form of the contrastive loss. Default: info_nce.", choices=list(CHOICES["contrastive_loss"])
    )
    similarity: str | None = option(None, "Default: cosine.", choices=list(CHOICES["similarity"]))
    pooling: str | None = option(
        None, "How tokens become a sequence vector. Default: mean.", choices=list(CHOICES["pooling"])
    )
    temperature: float | None = option(None, "Divides the similarities. Default: 0.05.")
    stop_gradient: str | None = option(
        None,
        "Hold the vectors of one view fixed. Default: neither.",
        choices=[view for view in CHOICES["stop_gradient"] if view],
    )
    symmetric: bool | None = option(
        None, "Average the contrastive loss over both directions. Default: False.", **IS_FLAG
    )
    gather_negatives: bool | None = option(None, "Negatives from all processes. Default: True.", **IS_FLAG)
    projection_dim: int | None = option(None, "Width of a projection used in training only. Default: none.")
    uncertainty_weighting: bool | None = option(
        None, "Learn how much each term counts (Kendall et al. 2018). Default: False.", **IS_FLAG
    )

    def config_options(self) -> dict:
        """The options of `SimMIMConfig` that were given, over those of the objective."""
        names = {f.name for f in dataclasses.fields(SimMIMConfig)} & {f.name for f in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in names - {"text_config"} if getattr(self, name) is not None}
        return {**OBJECTIVES[self.objective], **given}


@dataclass
class DataArguments:
    """The text, and how it is corrupted."""

    train_file: list[str] | None = option(
        None,
        f"Files, globs or folders: {corpora.SUPPORTED}. Default: the documentation inside Python, torch and "
        "transformers.",
    )
    validation_file: list[str] | None = option(None, "Held-out text. Default: a part of the training text.")
    dataset_name: str | None = option(None, "A Hub dataset instead of files.")
    dataset_config_name: str | None = option(None, "The configuration of --dataset_name.")
    text_column: str | None = option(None, "The column with the text. Default: `text`, or the only column of strings.")
    streaming: bool = option(False, "Read while training instead of first; needs --max_steps.")
    validation_split_percentage: float = option(5, "Part of the training text that is held out, 2,000 rows at most.")
    max_seq_length: int = option(128, "Longer texts are truncated to this many tokens.")
    mlm_probability: list[float] = field(
        default_factory=lambda: [0.3],
        metadata={"help": "Share of corrupted tokens; two numbers are a linear schedule from start to end."},
    )
    mask_replace_prob: float = option(0.8, "Share of the corrupted tokens that become the mask token.")
    random_replace_prob: float = option(0.1, "Share of the corrupted tokens that become random tokens.")
    whole_word_mask: bool = option(False, "Corrupt whole words; in Chinese those of jieba, where it is installed.")
    deletion_probability: float = option(0.2, "With --positive_view deleted: the probability of a token.")
    min_crop_ratio: float = option(0.5, "With --positive_view cropped: the shortest stretch, as a share of the text.")
    hard_negatives: str = option(
        "none", "next: the following text, often of the same document, is a negative too.", choices=["none", "next"]
    )
    mean_span_length: float | None = option(None, "Corrupt spans of this mean length instead of single tokens.")
    pad_to_multiple_of: int | None = option(None, "Pad batches to a multiple of this.")
    preprocessing_num_workers: int | None = option(None, "Processes for tokenising.")
    similarity_file: str | None = option(
        None, "Scored pairs (sentence1, sentence2, score): Spearman before and after training goes to the table."
    )


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for pre-training."""

    output_dir: str | None = option("simmim-pretrained", "Folder for the checkpoint, the figures and the picture.")
    overwrite_output_dir: bool = option(False, "Write into --output_dir though it is not empty.")
    weight_schedule: list[str] | None = option(
        None,
        "Weights that change in training, as points share_of_training:weight. An MLM-only phase: "
        "contrastive_weight=0:0,0.3:0,0.3:1",
    )
    conflict_steps: int | None = option(
        None, "Every so many steps, log the cosine between the gradients of the masked and the contrastive term."
    )
    max_minutes: float | None = option(
        None, "Stop training after this many minutes. Default: never; 2.75 for the built-in corpus."
    )
    chunk_size: int | None = option(
        None, "Sequences that go through the encoder at a time: any batch size in the memory of one chunk."
    )
    num_train_epochs: float | None = option(
        None, "Passes over the training text. Default: 1; 1.5 for the built-in corpus."
    )
    per_device_train_batch_size: int = option(64, "Sequences a step and device; the others are the negatives.")
    per_device_eval_batch_size: int = option(64, "Sequences an evaluation step and device.")
    learning_rate: float | None = option(
        None, "Default: 5e-4 from scratch (1e-3 on the built-in corpus), 5e-5 from a model."
    )
    warmup_steps: float = option(0.05, "Steps of linear warm-up; below 1: share of all steps.")
    weight_decay: float = option(0.01, "Weight decay.")
    train_sampling_strategy: str = option(
        "group_by_length",
        "How batches are drawn; group_by_length saves padding and keeps length from telling the pairs apart.",
        choices=["random", "sequential", "group_by_length", "batch_rebalance"],
    )
    include_num_input_tokens_seen: str = option(
        "non_padding", "Count the tokens that are read: non_padding, all or no.", choices=["all", "non_padding", "no"]
    )
    length_column_name: str = option("length", "Column with precomputed lengths.")
    logging_steps: float = option(50, "Log every so many steps; below 1: share of all steps.")
    save_steps: float = option(500, "Save every so many steps; below 1: share of all steps.")
    save_total_limit: int | None = option(2, "Keep this many checkpoints.")
    # HfArgumentParser reads this union only with None first, as TrainingArguments has it.
    report_to: None | str | list[str] = option("tensorboard", "Where to log: tensorboard, wandb, ..., all or none.")  # noqa: RUF036

    def __post_init__(self):
        # transformers takes bfloat16 on a CPU only where the CPU was asked for.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


class Pretraining:
    """One run of `simmim pretrain`. Whatever can be wrong with the input is found out here, before training starts.

    Args:
        text_cache: give the same dict to several runs over one text, and the first one reads and tokenises for all

    Raises:
        ValueError, FileNotFoundError: input that cannot work; the message names the value and the remedy.
    """

    def __init__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        args: PretrainingArguments,
        text_cache: dict | None = None,
    ):
        self.model_args, self.data_args, self.args = model_args, data_args, args
        self._text_cache = {} if text_cache is None else text_cache
        self.options = model_args.config_options()
        for name, default in (BUILT_IN_DEFAULTS if self.built_in else DEFAULTS).items():
            owner = model_args if hasattr(model_args, name) else args
            if getattr(owner, name) is None:
                setattr(owner, name, default)
        self.checkpoint = _checkpoint_to_resume(args)
        _check(self.options, data_args, args)
        text_config = _read_text_config(model_args.text_config) if model_args.text_config else dict(TINY_BERT)
        SimMIMConfig(text_config=text_config, **self.options)  # refuses what it can before the corpus is read
        self.scored_pairs = load_scored_pairs(data_args.similarity_file) if data_args.similarity_file else None
        set_seed(args.seed)

        with args.main_process_first(desc="reading the corpus"):
            train, self.held_out = self._once("text", self._load_text)
            if data_args.hard_negatives == "next":
                train = corpora.with_next_as_negative(train)
            self.tokenizer = self._load_tokenizer(train)
        ratio = data_args.mlm_probability
        self.collator = DataCollatorForSimMIM(
            self.tokenizer,
            mlm_probability=ratio[0] if len(ratio) == 1 else tuple(ratio),
            mask_replace_prob=data_args.mask_replace_prob,
            random_replace_prob=data_args.random_replace_prob,
            whole_word_mask=data_args.whole_word_mask,
            mean_span_length=data_args.mean_span_length,
            pad_to_multiple_of=data_args.pad_to_multiple_of,
            seed=args.seed,
            positive_view=SimMIMConfig(text_config=text_config, **self.options).positive_view,
            deletion_probability=data_args.deletion_probability,
            min_crop_ratio=data_args.min_crop_ratio,
        )
        self.model = self._build_model(text_config)
        self.max_length = min(data_args.max_seq_length, self.model.simmim.max_length)
        self.tokenizer.model_max_length = self.max_length
        self.trainer = self._build_trainer(train)

    @property
    def built_in(self) -> bool:
        """Whether the corpus is the documentation that every installation has."""
        return not self.data_args.train_file and not self.data_args.dataset_name

    def _load_text(self) -> tuple[Dataset, Dataset]:
        data = self.data_args
        if self.built_in:
            # Whole source files are held out, so that no docstring is judged by its neighbours in the file.
            corpus = docstrings.built_in_corpus()
            return corpora.split_held_out(corpus, fraction=0.1, group_column="source", seed=self.args.seed)
        if data.train_file:
            train = corpora.load_text(data.train_file, data.text_column, data.streaming)
        else:
            train = corpora.load_hub_text(
                data.dataset_name, data.dataset_config_name, text_column=data.text_column, streaming=data.streaming
            )
        if data.validation_file:
            return train, corpora.load_text(data.validation_file, data.text_column)
        if data.streaming:
            held_out = Dataset.from_list(list(train.take(1000)))
            return train.skip(1000), held_out
        return corpora.split_held_out(train, data.validation_split_percentage / 100, seed=self.args.seed)

    def _load_tokenizer(self, train) -> PreTrainedTokenizerBase:
        name = self.model_args.tokenizer_name or self.model_args.model_name_or_path
        if name:
            return corpora.load_tokenizer(name)
        if self.checkpoint:
            return corpora.load_tokenizer(self.checkpoint)
        texts = train.take(100_000) if self.data_args.streaming else train
        return corpora.train_tokenizer(
            (row["text"] for row in texts),
            vocab_size=self.model_args.vocab_size,
            show_progress=self.args.process_index == 0,
        )

    def _build_model(self, text_config: dict) -> SimMIMForPreTraining:
        path = self.model_args.model_name_or_path
        if path:
            model = SimMIMForPreTraining.from_backbone(path, dtype="float32", **self.options)
            if len(self.tokenizer) > model.config.vocab_size:
                model.resize_token_embeddings(len(self.tokenizer))
            return model
        config = SimMIMConfig(text_config={**text_config, "vocab_size": len(self.tokenizer)}, **self.options)
        for name in (f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")):
            if hasattr(config.text_config, name):
                setattr(config.text_config, name, getattr(self.tokenizer, name))
        return SimMIMForPreTraining(config)

    def _build_trainer(self, train) -> SimMIMTrainer:
        args = self.args
        args.dataloader_pin_memory &= args.device.type == "cuda"
        if args.learning_rate is None:
            from_scratch = 1e-3 if self.built_in else 5e-4
            args.learning_rate = 5e-5 if self.model_args.model_name_or_path else from_scratch
        tokens = ("tokens", self.max_length, self.data_args.hard_negatives)
        train, held_out, self.truncated = self._once(tokens, lambda: self._tokenize(train))
        return SimMIMTrainer(
            model=self.model,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=self.collator,
            processing_class=self.tokenizer,
            chunk_size=args.chunk_size,
            weight_schedule=_read_weight_schedule(args.weight_schedule),
            conflict_steps=args.conflict_steps,
            callbacks=[TimeLimit(args.max_minutes)] if args.max_minutes else None,
        )

    def _tokenize(self, train) -> tuple[Dataset, Dataset, int]:
        with self.args.main_process_first(desc="tokenising"):
            workers = self.data_args.preprocessing_num_workers
            train, truncated = corpora.tokenize(train, self.tokenizer, self.max_length, workers)
            held_out, _ = corpora.tokenize(self.held_out, self.tokenizer, self.max_length, workers)
        if self.args.process_index == 0 and not self.data_args.streaming:
            print(
                f"Training text: {len(train):,} sequences, {sum(train['length']):,} tokens; "
                f"held out: {len(held_out):,}. {truncated:,} sequences are "
                f"longer than {self.max_length} tokens and were truncated."
            )
        return train, held_out, truncated

    def _once(self, name, make: Callable[[], tuple]) -> tuple:
        if name not in self._text_cache:
            self._text_cache[name] = make()
        return self._text_cache[name]

    def run(self, argv: Sequence[str] | None = None) -> dict:
        """Trains, evaluates, saves everything into `output_dir` and prints what came out of it.

        Args:
            argv: the command line behind `simmim`, to be recorded

        Returns:
            The figures, as in `results.json`.
        """
        start = self._initial_weights()  # a checkpoint to resume may be gone when training has ended
        before = self._measure()
        trained = self.trainer.train(resume_from_checkpoint=self.checkpoint)
        after = self._measure()
        self.trainer.save_model(_internal_call=True)  # it would push, and there is no card yet
        self.trainer.save_state()
        results = {
            **({} if argv is None else {"command": reporting.command(argv)}),
            **hub.run_facts(self.trainer),
            **start,
            "data": self._data_facts(),
            "train_seconds": round(trained.metrics["train_runtime"], 1),
            "before": before,
            "after": after,
        }
        if self.trainer.is_world_process_zero():
            self._report(results)
        if self.args.push_to_hub:
            self.trainer.push_to_hub()
        return results

    def _initial_weights(self) -> dict:
        facts, path = {"initial_weights": "random weights"}, self.model_args.model_name_or_path
        if path and os.path.exists(path):
            facts["initial_weights"] = f"the local checkpoint `{Path(path).resolve().name}`"
        elif path:
            facts = {"initial_weights": path, "base_model": path}
        if self.checkpoint:
            state = TrainerState.load_from_json(os.path.join(self.checkpoint, "trainer_state.json"))
            facts["resumed_at_step"] = state.global_step
        return facts

    def _data_facts(self) -> dict:
        """Which text, how much of it, and what was done to it, without the folders of this machine."""
        data, train, held_out = self.data_args, self.trainer.train_dataset, self.trainer.eval_dataset
        facts = {"max_length": self.max_length, "held_out_sequences": len(held_out)}
        if not data.streaming:
            facts |= {"train_sequences": len(train), "train_tokens": sum(train["length"][:])}
            facts["truncated_sequences"] = self.truncated
        if self.built_in:
            facts |= {"built_in": True, "held_out": "whole source files, drawn at random, 2,000 texts at most"}
        elif data.train_file or os.path.exists(data.dataset_name):
            facts["files"] = [Path(path).name for path in data.train_file or [data.dataset_name]]
        else:
            facts["datasets"] = [data.dataset_name]
            facts |= {"dataset_config": data.dataset_config_name} if data.dataset_config_name else {}
        if data.validation_file:
            facts["held_out"] = ", ".join(Path(path).name for path in data.validation_file)
        elif data.streaming:
            facts["held_out"] = "the first 1,000 texts"
        elif not self.built_in:
            share = f"{data.validation_split_percentage:g} % of the texts"
            facts["held_out"] = f"{share}, 2,000 at most, drawn at random"
        if data.similarity_file:
            facts["similarity_file"] = Path(data.similarity_file).name
        name = self.model_args.tokenizer_name or self.model_args.model_name_or_path
        origin = f"of `{Path(name).name if os.path.exists(name) else name}`" if name else "trained on the text"
        facts["tokenizer"] = f"{len(self.tokenizer):,} tokens, {origin}"
        recorded = {"train_file", "validation_file", "dataset_name", "dataset_config_name", "similarity_file"}
        recorded |= {field.name for field in dataclasses.fields(self.collator)}
        options = [field.name for field in dataclasses.fields(data) if field.name not in recorded]
        return {**facts, "options": hub.options_of(data, options)}

    def _measure(self) -> dict[str, float]:
        """Held-out losses, and what the sentence vectors are worth, of the model as it is now."""
        metrics = self.trainer.evaluate()
        figures = {name.removeprefix("eval_"): metrics[name] for name in reporting.HELD_OUT_METRICS if name in metrics}
        if self.scored_pairs is not None:
            figures["similarity_spearman"] = similarity_spearman(
                self.model, self.tokenizer, self.scored_pairs, self.max_length
            )
        if self.built_in:
            pairs = docstrings.retrieval_pairs(self.held_out)
            texts = [list(pairs[column]) for column in ("query", "document")]
            vectors = [encode(self.model, self.tokenizer, part, self.max_length) for part in texts]
            figures["retrieval_mrr@10"] = mean_reciprocal_rank(*vectors)
        return figures

    def _report(self, results: dict) -> None:
        folder = self.args.output_dir
        if not self.data_args.streaming:
            texts = self.trainer.train_dataset, self.trainer.eval_dataset
            results["unigram_cross_entropy"] = unigram_cross_entropy(*texts, self.tokenizer)
        if self.built_in:
            pairs = docstrings.retrieval_pairs(self.held_out)
            results["retrieval_candidates"] = len(pairs)
            results["tfidf_mrr@10"] = tfidf_reciprocal_rank(list(pairs["query"]), list(pairs["document"]))
        with open(os.path.join(folder, "results.json"), "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)
        self.trainer.results = results
        self.trainer.create_model_card()
        print(reporting.before_after_table(results["before"], results["after"], reporting.baselines(results)))
        if self.built_in:
            candidates = f"{results['retrieval_candidates']:,} held-out candidates"
            print(f"Retrieval: a docstring's body by its summary line, among {candidates}.")
        self._print_neighbours()
        print(reporting.loading_snippet(folder))

    def _print_neighbours(self) -> None:
        texts = list(self.held_out["summary" if self.built_in else "text"])
        vectors = encode(self.model, self.tokenizer, texts, self.max_length)
        queries = list(range(0, len(texts), max(1, len(texts) // 4)))[:4]
        scores = vectors[queries] @ vectors.T
        scores[range(len(queries)), queries] = -1
        print("Nearest neighbours among the held-out texts:")
        for query, row in zip(queries, scores, strict=True):
            best = row.argsort()[::-1][:2]
            print(reporting.neighbours(texts[query], [(texts[i], row[i]) for i in best]))


def _check(options: dict, data_args: DataArguments, args: PretrainingArguments) -> None:
    """Refuses combinations that could only fail, or learn nothing, once training runs."""
    if options["contrastive_weight"] and args.per_device_train_batch_size * args.world_size < 2:
        raise ValueError(
            "--per_device_train_batch_size 1 leaves a contrastive objective without negatives. Give 2 or more "
            "(64 is usual), or an objective without a contrastive term: --objective mlm."
        )
    if len(data_args.mlm_probability) > 2:
        raise ValueError(
            f"--mlm_probability takes one number, or a start and an end, not {data_args.mlm_probability}."
        )
    _read_weight_schedule(args.weight_schedule)
    if data_args.hard_negatives == "next" and data_args.streaming:
        raise ValueError("--hard_negatives next needs the whole text: leave --streaming out.")
    if data_args.train_file and data_args.dataset_name:
        raise ValueError("Give --train_file or --dataset_name, not both.")
    if args.bf16_full_eval or args.fp16_full_eval:
        raise ValueError(
            "--bf16_full_eval and --fp16_full_eval would leave the weights in half precision, for the first "
            "evaluation comes before training. Give --bf16 or --fp16, which evaluate in it too."
        )
    if data_args.streaming and args.max_steps <= 0:
        raise ValueError("--streaming does not know where an epoch ends: give --max_steps.")
    if not 0 < data_args.validation_split_percentage < 100:
        raise ValueError(
            f"--validation_split_percentage is {data_args.validation_split_percentage}: give a number between 0 and "
            "100, or a --validation_file."
        )


def _read_weight_schedule(words: list[str] | None) -> dict[str, list[tuple[float, float]]]:
    """`contrastive_weight=0:0,0.3:1` and its like to the points of `SimMIMTrainer`."""
    schedule = {}
    for word in words or ():
        try:
            name, points = word.split("=")
            schedule[name] = [tuple(map(float, point.split(":", 1))) for point in points.split(",")]
        except ValueError as error:
            raise ValueError(
                f"--weight_schedule `{word}` is not a weight and its points, such as contrastive_weight=0:0,0.3:1."
            ) from error
    return schedule


def _checkpoint_to_resume(args: PretrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means; refuses to write over an earlier run."""
    resume = args.resume_from_checkpoint
    if resume:
        is_folder = os.path.isdir(resume)
        if not is_folder and resume.lower() not in ("true", "last"):
            raise FileNotFoundError(
                f"--resume_from_checkpoint: there is no folder `{resume}`. `last` finds the newest."
            )
        checkpoint = resume if is_folder else os.path.isdir(args.output_dir) and get_last_checkpoint(args.output_dir)
        if not checkpoint:
            raise FileNotFoundError(f"--resume_from_checkpoint: no checkpoint in `{args.output_dir}`.")
        return checkpoint
    if os.path.isdir(args.output_dir) and os.listdir(args.output_dir) and not args.overwrite_output_dir:
        raise ValueError(
            f"--output_dir `{args.output_dir}` is not empty. Give another folder, --overwrite_output_dir to write "
            "over it, or --resume_from_checkpoint last to continue the run in it."
        )
    return None


def _read_text_config(text_config: str) -> dict:
    """The backbone's options from a JSON object, a JSON file, or a model type."""
    try:
        if text_config.lstrip().startswith("{"):
            return json.loads(text_config)
        if os.path.isfile(text_config):
            with open(text_config, encoding="utf-8") as file:
                return json.load(file)
        return AutoConfig.for_model(text_config).to_dict()
    except (json.JSONDecodeError, ValueError, KeyError) as error:
        raise ValueError(
            f"--text_config `{text_config}` is neither a JSON object, nor a JSON file, nor a model type of "
            f"transformers: {str(error).splitlines()[0]}"
        ) from error
