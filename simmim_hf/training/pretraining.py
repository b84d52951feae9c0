"""`simmim pretrain`: real text in, a checkpoint, its evaluation and a plot of the training out.

Each step is a function that a script can call; `Pretraining` takes them in the order of the command.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .. import records
from ..data import corpora, docstrings, mixtures, tokenization
from ..data.collator import DataCollatorForSimMIM
from ..evaluation.bootstrap import Sampled, paired_difference
from ..evaluation.encoding import encode
from ..evaluation.language_modelling import unigram_cross_entropy
from ..evaluation.measure import retrieval_samples, similarity_samples
from ..evaluation.metrics import tfidf_reciprocal_rank
from ..evaluation.tasks import load_scored_pairs
from ..model.backbones import dropouts
from ..model.configuration_simmim import token_ids_of
from ..model.modeling_simmim import SimMIMForPreTraining
from ..options import reason, refusing
from ..quantities import QUANTITIES
from . import card, checkpoints, report
from .arguments import DataArguments, ModelArguments, PretrainingArguments
from .callbacks import TimeLimit
from .checks import check, make_optimizer
from .signals import Interrupted, StopAtSignal
from .trainer import SimMIMTrainer

logger = logging.get_logger(__name__)

# The built-in corpus is small, and the first command of a newcomer ends within four minutes on two cores. The first
# sentence of a docstring sums it up.
BUILT_IN_DEFAULTS = {
    "vocab_size": 8192,
    "num_train_epochs": 2.0,
    "max_minutes": 2.75,
    "learning_rate": 2e-3,
    "first_sentence_probability": 0.5,
}
DEFAULTS = {
    "vocab_size": 30522,
    "num_train_epochs": 1.0,
    "max_minutes": None,
    "learning_rate": 5e-4,
    "first_sentence_probability": 0.0,
}
BUILT_IN_LEXICON_SIZE = 512  # of the default backbone; a wider table tells more words apart, and is cheap beside 8,192


class NotUploaded(Exception):
    """All is saved, and the Hub did not take it."""


class TokenizedText(NamedTuple):
    """Training and held-out rows of token ids, and how much text is in them (of training None for a stream)."""

    train: Dataset | IterableDataset
    held_out: Dataset
    train_counts: tokenization.TokenCounts | None
    held_out_counts: tokenization.TokenCounts


def default_dropout(options: dict) -> float | None:
    """That of the default backbone, which has none of its own, for these options of `SimMIMConfig`."""
    return 0.1 if options["positive_view"] == "dropout" else None


def fill_defaults(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments) -> None:
    """Sets the options that were not given and whose default depends on the others."""
    if args.learning_rate is None and model_args.model_name_or_path:
        args.learning_rate = 5e-5
    for name, default in (BUILT_IN_DEFAULTS if data_args.built_in else DEFAULTS).items():
        owner = next(each for each in (model_args, data_args, args) if hasattr(each, name))
        if getattr(owner, name) is None:
            setattr(owner, name, default)
    if model_args.model_name_or_path or model_args.text_config is not None:
        return
    options = model_args.config_options()
    if model_args.dropout is None:
        model_args.dropout = default_dropout(options)
    if model_args.lexicon_size is None and data_args.built_in and options.get("pooled_layers") == "lexical_last":
        model_args.lexicon_size = BUILT_IN_LEXICON_SIZE


def read_text(data_args: DataArguments, seed: int) -> tuple[Dataset | IterableDataset, Dataset]:
    """The training and the held-out texts."""
    if data_args.built_in:
        # Whole source files are held out, so that no docstring is judged by its neighbours in the file.
        corpus = docstrings.built_in_corpus()
        return corpora.split_held_out(corpus, fraction=0.1, group_column="source", seed=seed)
    with refusing(data_args.text_option):
        train = _read_training_text(data_args)
    if data_args.validation_file:
        with refusing("--validation_file"):
            held_out = corpora.load_text(
                data_args.validation_file, data_args.text_column, text_unit=data_args.text_unit
            )
    elif data_args.streaming:
        first = list(train.take(1001))
        if len(first) <= 1000:
            raise ValueError(
                f"--streaming holds out the first 1,000 texts, and there are {len(first)}: give a --validation_file."
            )
        train, held_out = train.skip(1000), Dataset.from_list(first[:1000])
    else:
        unit = f" by --text_unit {data_args.text_unit}" if data_args.text_unit else ""
        with refusing(f"nothing can be held out of {data_args.text_option}{unit}, give a --validation_file"):
            train, held_out = corpora.split_held_out(train, data_args.validation_split_percentage / 100, seed=seed)
    if data_args.shuffle_buffer_size:  # the streams of the sources, or the one
        options = {"seed": seed, "buffer_size": data_args.shuffle_buffer_size}
        is_mixture = isinstance(train, list)
        train = [stream.shuffle(**options) for stream in train] if is_mixture else train.shuffle(**options)
    weights = data_args.mixture_weights
    return mixtures.mix(train, weights, seed) if weights else train, held_out


def _read_training_text(data_args: DataArguments) -> Dataset | IterableDataset | list[IterableDataset]:
    """All of it, or of a mixture that is streamed each source."""
    column, streaming = data_args.text_column, data_args.streaming
    if data_args.dataset_name:
        name, config_name = data_args.dataset_name, data_args.dataset_config_name
        return corpora.load_hub_text(name, config_name, text_column=column, streaming=streaming)
    if not data_args.mixture_weights:
        return corpora.load_text(data_args.train_file, column, streaming, data_args.text_unit)
    sources = []
    for path in data_args.train_file:
        is_table = set(corpora.text_units(path).values()) == {"row"}  # which has no other unit
        text_unit = None if is_table else data_args.text_unit
        sources.append(corpora.load_text(path, column, streaming, text_unit))
    return sources if streaming else mixtures.numbered(sources)


def get_tokenizer(
    model_args: ModelArguments,
    train: Dataset | IterableDataset,
    checkpoint: str | None = None,
    show_progress: bool = True,
) -> PreTrainedTokenizerBase:
    """The tokenizer that the options name, that of a checkpoint to resume, or one that is trained on the text."""
    sources = {
        "--tokenizer_name": model_args.tokenizer_name,
        "--model_name_or_path": model_args.model_name_or_path,
        "--resume_from_checkpoint": checkpoint,
    }
    for option, name in sources.items():
        if name:
            with refusing(option):
                return tokenization.load_tokenizer(name)
    texts = train if isinstance(train, Dataset) else train.take(100_000)
    return tokenization.train_tokenizer(
        (row["text"] for row in texts), model_args.vocab_size, show_progress=show_progress
    )


def build_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> SimMIMForPreTraining:
    """The model to start from, or one with random weights, with room for all tokens.

    Raises:
        ValueError: two readings under different dropout are to be compared, and the backbone has no dropout.
    """
    if model_args.model_name_or_path:
        changed = {name: getattr(model_args, name) for name in ("num_hidden_layers", "dropout", "attn_implementation")}
        with refusing(f"--model_name_or_path `{model_args.model_name_or_path}`"):
            model = SimMIMForPreTraining.from_backbone(
                model_args.model_name_or_path, dtype="float32", **changed, **model_args.config_options()
            )
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
    else:
        config = model_args.new_config(len(tokenizer), token_ids_of(tokenizer))
        model = SimMIMForPreTraining(config)
    objective = model.config.objective
    compares_dropout = objective.contrastive_weight and objective.positive_view == "dropout"
    if compares_dropout and not any(dropouts(model.config.text_config).values()):
        raise ValueError(
            "--positive_view dropout (simcse) compares a text with itself under another dropout, and the backbone "
            f"`{model.config.text_config.model_type}` has none: give --dropout 0.1."
        )
    return model


def tokenize_text(
    train: Dataset | IterableDataset,
    held_out: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    max_length: int,
    passages: int = 1,
) -> TokenizedText:
    """The texts as token ids, with hard negatives where they are asked for.

    Args:
        max_length: of what the encoder reads at once
        passages: how many of them a row has room for, see `SimMIMConfig.passages_per_row`
    """
    if data_args.hard_negatives == "next":
        train = corpora.with_next_as_negative(train)
    options = {
        "max_length": max_length,
        "num_proc": data_args.preprocessing_num_workers,
        "long_texts": data_args.long_texts,
        "passages": passages,
    }
    with refusing(f"the training text ({data_args.text_option})"):
        train, train_counts = tokenization.tokenize(train, tokenizer, **options)
    if train_counts is None:
        # Without an end: Trainer counts all steps of a stream as one epoch, and skips within it when it resumes.
        train = train.repeat(None)
    held_out_option = "--validation_file" if data_args.validation_file else data_args.text_option
    with refusing(f"the held-out text ({held_out_option})"):
        held_out, held_out_counts = tokenization.tokenize(held_out, tokenizer, **options)
    return TokenizedText(train, held_out, train_counts, held_out_counts)


def build_trainer(
    model: SimMIMForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    text: TokenizedText,
    data_args: DataArguments,
    args: PretrainingArguments,
    trainer_class: type[SimMIMTrainer] = SimMIMTrainer,
    **options,
) -> SimMIMTrainer:
    """A Trainer with the collator that the options and the model's positive view ask for.

    Args:
        options: further arguments of the Trainer

    Raises:
        ValueError: the backbone cannot read text as the objective asks.
    """
    options_of_collator = data_args.collator_options()
    collator = DataCollatorForSimMIM.for_config(
        tokenizer, model.config, seed=args.seed, max_length=tokenizer.model_max_length, **options_of_collator
    )
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=text.train,
        eval_dataset=text.held_out,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[TimeLimit(args.max_minutes)] if args.max_minutes else None,
        **options,
    )
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # which need all processes to read
        with refusing("--text_config or --model_name_or_path"):
            for is_causal in model.config.objective.directions:
                model.simmim.prove_direction(is_causal, args.device)
    return trainer


class Pretraining:
    """One run of `simmim pretrain`. Whatever can be wrong with the input is found out here, before training starts.

    Raises:
        ValueError, FileNotFoundError: input that cannot work; the message names the value and the remedy.
    """

    def __init__(self, model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments):
        self.model_args, self.data_args, self.args = model_args, data_args, args
        fill_defaults(model_args, data_args, args)
        self.checkpoint = _checkpoint_to_resume(args)
        check(model_args, data_args, args)
        os.makedirs(args.output_dir, exist_ok=True)  # where it cannot be made, nothing is read
        with refusing("--similarity_file"):
            self.scored_pairs = load_scored_pairs(data_args.similarity_file) if data_args.similarity_file else None
        set_seed(args.seed)
        with args.main_process_first(desc="reading the corpus"):
            train, self.held_out = read_text(data_args, args.seed)
            self.tokenizer = get_tokenizer(model_args, train, self.checkpoint, show_progress=args.process_index == 0)
        self.model = build_model(model_args, self.tokenizer)
        if args.optim_target_modules:
            with torch.device("meta"):  # some optimizers leave hooks in the model
                make_optimizer(args, SimMIMForPreTraining(self.model.config))
        self.max_length = min(data_args.max_seq_length, self.model.simmim.max_length)
        self.tokenizer.model_max_length = self.max_length
        with args.main_process_first(desc="tokenising"):
            self.text = tokenize_text(
                train, self.held_out, self.tokenizer, data_args, self.max_length, self.model.config.passages_per_row
            )
        if args.process_index == 0:
            print(report.text_report(self.text, data_args, self.max_length))
        self.trainer = self._build_trainer()
        if self.trainer.is_fsdp_enabled and self.scored_pairs is not None:
            raise ValueError("FSDP: --similarity_file needs whole weights. Leave it out; `simmim evaluate` reads it.")
        self.retrieval_pairs = None if self.trainer.is_fsdp_enabled else self._retrieval_pairs()
        self._refuse_another_run()
        self.signals = StopAtSignal()
        self.trainer.add_callback(self.signals)

    def _build_trainer(self) -> SimMIMTrainer:
        return build_trainer(self.model, self.tokenizer, self.text, self.data_args, self.args)

    def run(self, argv: Sequence[str] | None = None) -> dict:
        """Trains, evaluates, saves everything into `output_dir` and prints what came out of it.

        Args:
            argv: the command line behind `simmim`, to be recorded

        Returns:
            What `results.json` holds.

        Raises:
            Interrupted: a signal came while `signals.listening()`; what was learned is saved.
            FloatingPointError: too many losses, or that of the held-out text, are not finite.
            DiskFull: there is no room to save in.
            NotUploaded: `push_to_hub` failed; everything is saved.
        """
        try:
            return self._run(argv)
        except Interrupted as end:
            raise Interrupted(self._saved_at_a_signal()) from end
        except Exception as error:
            if not checkpoints.is_full_disk(error):
                raise
            raise checkpoints.DiskFull(
                f"the disk of `{self.args.output_dir}` is full, or a quota used up ({_first_line(error)}). What was "
                "saved before is whole: make room, and the same command with `--resume_from_checkpoint last` goes on."
            ) from error

    def _run(self, argv: Sequence[str] | None) -> dict:
        start = self._initial_weights()  # a checkpoint to resume may be gone when training has ended
        before, samples = self._measure()
        if self.trainer.is_world_process_zero() and not _continues(self.checkpoint, self.args.output_dir):
            for overwritten in checkpoints.checkpoints_in(Path(self.args.output_dir)):
                shutil.rmtree(overwritten)  # or `last` would mean one of them
        trained = self.train()
        if self.signals.came(self.args.device):
            raise Interrupted
        after, samples_after = self._measure()
        differences = {name: paired_difference(samples[name], found) for name, found in samples_after.items()}
        self.trainer.save_model(_internal_call=True)  # it would push, and there is no card yet
        self.trainer.save_state()
        results = {
            **({} if argv is None else {"command": records.command(argv)}),
            **card.run_facts(self.trainer),
            **start,
            "data": self._data_facts(),
            "train_seconds": round(trained.metrics["train_runtime"], 1),
            "before": before,
            "after": after,
            "differences": {name: found._asdict() for name, found in differences.items() if found},
        }
        if self.trainer.is_world_process_zero():
            self._report(results)
        if self.args.push_to_hub:
            self._upload()
        return results

    def train(self) -> TrainOutput:
        """Trains, and neither measures nor saves the model that comes out."""
        return self.trainer.train(resume_from_checkpoint=self.checkpoint)

    def _upload(self) -> None:
        try:
            self.trainer.push_to_hub()
        except Exception as error:  # a network has errors of its own in every layer
            name, folder = self.trainer.hub_model_id, self.args.output_dir
            raise NotUploaded(
                f"--push_to_hub: `{folder}` is saved, and was not uploaded ({reason(error)}). "
                f'Upload it: hf upload {name} {folder} --exclude "checkpoint-*/*"'
            ) from error

    def _retrieval_pairs(self) -> Dataset | None:
        """What is to find what, `query` and `document`, among the held-out text; None where nothing is."""
        return docstrings.retrieval_pairs(self.held_out) if self.data_args.built_in else None

    def _refuse_another_run(self) -> None:
        if not self.checkpoint:
            return
        changes = "; ".join(checkpoints.changes(self.checkpoint, self.trainer.record))
        if changes and not self.args.allow_changed:
            raise ValueError(
                f"--resume_from_checkpoint: `{self.checkpoint}` is of another run: {changes}. Give the same options "
                "and text, or --allow_changed to go on with these."
            )
        if changes and self.args.process_index == 0:
            print(f"Going on from {Path(self.checkpoint).name} with changes: {changes}.")

    def _saved_at_a_signal(self) -> str:
        """Saves the last step where the signal ended an evaluation, and says how to go on."""
        step, name = self.trainer.state.global_step, self.signals.name
        if not step:
            return f"{name}: ended before the first step. Give the same command again."
        self.trainer.ensure_checkpoint()
        more = "The same command with `--resume_from_checkpoint last` goes on from it."
        return f"{name}: ended with a checkpoint of step {step}. {more}"

    def _measure(self) -> tuple[dict[str, float], dict[str, Sampled]]:
        """Held-out losses, and what the sentence vectors are worth, of the model as it is now; the latter also as
        functions of the queries and pairs."""
        measured = self.trainer.evaluate()
        if not math.isfinite(measured["eval_loss"]):
            raise FloatingPointError(
                f"The held-out loss is {measured['eval_loss']} at step {self.trainer.state.global_step}, so no model "
                f"was saved in {self.args.output_dir}. Lower the learning rate, or set a longer warm-up."
            )
        metrics = {name: measured[f"eval_{name}"] for name in QUANTITIES if f"eval_{name}" in measured}
        samples = {}
        if self.retrieval_pairs is not None:
            pairs = self.retrieval_pairs
            vectors = self._vectors(pairs, "query", "document")
            ids = {"query_ids": pairs["query"][:], "document_ids": pairs["document"][:]}
            samples["retrieval_mrr@10"] = retrieval_samples(*vectors, **ids)["mrr@10"]
        if self.scored_pairs is not None:
            vectors = self._vectors(self.scored_pairs, "sentence1", "sentence2")
            samples["similarity_spearman"] = similarity_samples(*vectors, self.scored_pairs["score"][:])["spearman"]
        return metrics | {name: sampled.value() for name, sampled in samples.items()}, samples

    def _vectors(self, rows: Dataset, *columns: str) -> list[np.ndarray]:
        """(rows, hidden) of the texts of each column"""
        return [encode(self.model, list(rows[column]), self.tokenizer, self.max_length) for column in columns]

    def _report(self, results: dict) -> None:
        folder = self.args.output_dir
        if not self.data_args.streaming:
            results["unigram_cross_entropy"] = unigram_cross_entropy(
                self.text.train, self.text.held_out, self.tokenizer
            )
        if self.retrieval_pairs is not None:
            pairs = self.retrieval_pairs
            results["retrieval_candidates"] = len(pairs)
            results["tfidf_mrr@10"] = tfidf_reciprocal_rank(list(pairs["query"]), list(pairs["document"]))
        records.write_json(Path(folder, "results.json"), results)
        self.trainer.results = results
        self.trainer.create_model_card()
        print(report.before_after_table(results))
        print(*report.notes(results), sep="\n")
        if not self.trainer.is_fsdp_enabled:  # one process alone has no weights to read with
            self._print_neighbours()
        print(self._how_to_use())

    def _how_to_use(self) -> str:
        return report.loading_snippet(self.args.output_dir, bool(self.model.config.mlm_weight))

    def _print_neighbours(self) -> None:
        texts = list(self.held_out["summary" if self.data_args.built_in else "text"])
        vectors = encode(self.model, texts, self.tokenizer, self.max_length)  # (texts, hidden)
        queries = list(range(0, len(texts), max(1, len(texts) // 4)))[:4]
        scores = vectors[queries] @ vectors.T  # (queries, texts)
        scores[range(len(queries)), queries] = -1
        print("Nearest neighbours among the held-out texts:")
        for query, row in zip(queries, scores, strict=True):
            best = row.argsort()[::-1][:2]
            print(report.neighbours(texts[query], [(texts[i], row[i]) for i in best]))

    def _initial_weights(self) -> dict:
        facts, path = {"initial_weights": "random weights"}, self.model_args.model_name_or_path
        if path and os.path.exists(path):
            facts["initial_weights"] = f"the local checkpoint `{Path(path).resolve().name}`"
            facts |= card.earlier_runs(Path(path))
        elif path:
            facts = {"initial_weights": path, "base_model": path}
        if self.checkpoint:
            state = TrainerState.load_from_json(os.path.join(self.checkpoint, "trainer_state.json"))
            facts["resumed_at_step"] = state.global_step
        return facts

    def _data_facts(self) -> dict:
        """Which text, how much of it, and what was done to it, without the folders of this machine."""
        data, train, held_out = self.data_args, self.text.train, self.text.held_out
        facts = {"max_length": self.max_length, "held_out_sequences": len(held_out)}
        if not data.streaming:
            counts = self.text.train_counts
            facts |= {"train_documents": counts.documents, "train_sequences": len(train)}
            facts |= {"train_tokens": counts.tokens, "dropped_tokens": counts.dropped}
            if counts.sources:
                facts["sources"] = [{"documents": part.documents, "tokens": part.tokens} for part in counts.sources]
        if data.built_in:
            facts |= {"built_in": True, "held_out": "whole source files, drawn at random, 2,000 texts at most"}
        elif data.train_file or os.path.exists(data.dataset_name):
            facts["files"] = records.distinct_names(data.train_file or [data.dataset_name])
        else:
            facts["datasets"] = [data.dataset_name]
            facts |= {"dataset_config": data.dataset_config_name} if data.dataset_config_name else {}
        if data.validation_file:
            facts["held_out"] = ", ".join(records.distinct_names(data.validation_file))
        elif data.streaming:
            facts["held_out"] = "the first 1,000 texts"
        elif not data.built_in:
            share = f"{data.validation_split_percentage:g} % of the texts"
            facts["held_out"] = f"{share}, 2,000 at most, drawn at random"
        if data.similarity_file:
            facts["similarity_file"] = Path(data.similarity_file).name
        name = self.model_args.tokenizer_name or self.model_args.model_name_or_path
        origin = f"of `{Path(name).name if os.path.exists(name) else name}`" if name else "trained on the text"
        facts["tokenizer"] = f"{len(self.tokenizer):,} tokens, {origin}"
        recorded = ["train_file", "validation_file", "dataset_name", "dataset_config_name", "similarity_file"]
        recorded += data.collator_options()
        options = [option.name for option in dataclasses.fields(data) if option.name not in recorded]
        return {**facts, "options": card.options_of(data, options)}


def _checkpoint_to_resume(args: PretrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means; refuses to write over another run."""
    checkpoint = None
    if args.resume_from_checkpoint:
        checkpoint = checkpoints.to_resume(args.resume_from_checkpoint, args.output_dir)
    is_empty = not os.path.isdir(args.output_dir) or not os.listdir(args.output_dir)
    if not (is_empty or _continues(checkpoint, args.output_dir) or args.overwrite_output_dir):
        raise ValueError(
            f"--output_dir `{args.output_dir}` is not empty. Give another folder, --overwrite_output_dir to write "
            "over it, or --resume_from_checkpoint last to continue the run in it."
        )
    return checkpoint


def _continues(checkpoint: str | None, output_dir: str) -> bool:
    """Whether a checkpoint is one of the run in a folder."""
    return bool(checkpoint) and Path(checkpoint).resolve().parent == Path(output_dir).resolve()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
