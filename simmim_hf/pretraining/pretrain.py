"""`simmim pretrain`: real text in, a checkpoint, its evaluation and a plot of the training out.

What a run is made of stands in parts.py, each part a function that a script can call.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput

from .. import folders, memory, records
from ..data import docstrings
from ..evaluation.bootstrap import ResamplableMetric, paired_difference
from ..evaluation.encoding import encode
from ..evaluation.language_modelling import unigram_cross_entropy
from ..evaluation.metrics import tfidf_reciprocal_rank
from ..evaluation.run_task import retrieval_samples, similarity_samples
from ..evaluation.tasks import load_scored_pairs
from ..metric_catalogue import METRICS
from ..model.modeling_simmim import SimMIMForPreTraining
from ..options import error_prefix, reason
from ..training import card, checkpoints, sharding
from ..training.facts import earlier_runs, options_of, run_facts
from ..training.signals import Interrupted, StopAtSignal
from ..training.trainer import SimMIMTrainer, less_memory
from . import console
from .build import build_model, build_trainer, get_tokenizer, read_text, tokenize_text
from .checks import check, make_optimizer
from .options import DataArguments, ModelArguments, PretrainingArguments, fill_defaults


class NotUploaded(Exception):
    """All is saved, and the Hub did not take it."""


class Pretraining:
    """One run of `simmim pretrain`. Whatever can be wrong with the input is found out here, before training starts.

    Raises:
        ValueError, FileNotFoundError: input that cannot work; the message names the value and the remedy.
    """

    def __init__(self, model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments) -> None:
        self.model_args = model_args
        self.data_args = data_args
        self.args = args
        fill_defaults(model_args, data_args, args)
        self.checkpoint = _checkpoint_to_resume(args)
        # The first evaluation is part of training, which has prepared the model for all processes by then.
        args.eval_on_start = args.eval_on_start or self.checkpoint is None
        check(model_args, data_args, args)
        self.scored_pairs = None
        if data_args.similarity_file:
            with error_prefix("--similarity_file"):
                self.scored_pairs = load_scored_pairs(data_args.similarity_file)
        set_seed(args.seed)
        with args.main_process_first(desc="reading the corpus"):
            self.corpus = read_text(data_args, args.seed)
            train = self.corpus.train
            self.held_out = self.corpus.held_out
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
            print(console.text_report(self.text, self.corpus.units, self.max_length, data_args.train_file or []))
        self.trainer = self._build_trainer()
        self.retrieval_pairs = self._retrieval_pairs()
        self._refuse_another_run()
        self.signals = StopAtSignal()
        self.trainer.add_callback(self.signals)
        self.trainer.add_callback(StopAtNonFiniteEvaluation())

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.args.output_dir)

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
            OutOfMemory: there was not enough memory.
            NotSaved: a file could not be written; what was saved before is whole.
            NotUploaded: `push_to_hub` failed; everything is saved.
        """
        try:
            with folders.writing(self.folder), memory.remedied(less_memory(self.args)):
                try:
                    return self._run(argv)
                except Interrupted as end:
                    raise Interrupted(self._saved_at_a_signal()) from end
        except folders.NotSaved as error:
            raise folders.NotSaved(f"{error} {self._after_not_saving()}") from error

    def _run(self, argv: Sequence[str] | None) -> dict:
        start = self._initial_weights()  # a checkpoint to resume may be gone when training has ended
        samples = self._samples(self.model)
        if self.trainer.is_world_process_zero() and not _continues(self.checkpoint, self.args.output_dir):
            for overwritten in checkpoints.checkpoints_in(Path(self.args.output_dir)):
                checkpoints.remove_checkpoint(overwritten)  # or `last` would mean one of them
        trained = self.train()
        if self.signals.came(self.args.device):
            raise Interrupted
        measured = self.trainer.evaluate()
        with checkpoints.saving(self.folder):
            self.trainer.save_model(_internal_call=True)  # it would push, and there is no card yet
            self.trainer.save_state()
        model = sharding.whole_model(self.trainer, self.args.output_dir)
        samples_after = {} if model is None else self._samples(model)
        before = _at_start(self.trainer.state.log_history) | _values(samples)
        after = _held_out_metrics(measured) | _values(samples_after)
        differences = {name: paired_difference(samples[name], found) for name, found in samples_after.items()}
        results = {
            **({} if argv is None else {"command": records.command(argv)}),
            **run_facts(self.trainer),
            **start,
            "data": self._data_facts(),
            "train_seconds": round(trained.metrics["train_runtime"], 1),
            "before": before,
            "after": after,
            "differences": {name: found._asdict() for name, found in differences.items() if found},
        }
        with checkpoints.saving(self.folder):
            if model is not None and self.trainer.is_world_process_zero():
                self._report(results, model)
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
            name = self.trainer.hub_model_id
            folder = self.args.output_dir
            raise NotUploaded(
                f"--push_to_hub: `{folder}` is saved, and was not uploaded ({reason(error)}). "
                f'Upload it: hf upload {name} {folder} --exclude "checkpoint-*/*"'
            ) from error

    def _retrieval_pairs(self) -> Dataset | None:
        """What is to find what, `query` and `document`, among the held-out text; None where nothing is."""
        if not self.data_args.built_in:
            return None
        return docstrings.retrieval_pairs(self.held_out)

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
        step = self.trainer.state.global_step
        name = self.signals.name
        if not step:
            return f"{name}: ended before the first step. Give the same command again."
        self.trainer.ensure_checkpoint()
        more = "The same command with `--resume_from_checkpoint last` goes on from it."
        return f"{name}: ended with a checkpoint of step {step}. {more}"

    def _after_not_saving(self) -> str:
        """How to go on where a file could not be written."""
        if checkpoints.checkpoints_in(Path(self.args.output_dir)):
            return (
                "What was saved before is whole: when there is room and it can be written, the same command with "
                "`--resume_from_checkpoint last` goes on."
            )
        return (
            "No checkpoint was: when there is room and it can be written, add --overwrite_output_dir and begin anew."
        )

    def _samples(self, model: SimMIMForPreTraining) -> dict[str, ResamplableMetric]:
        """What the embeddings of a model are worth, as functions of the queries and pairs."""
        samples = {}
        if self.retrieval_pairs is not None:
            pairs = self.retrieval_pairs
            vectors = self._vectors(model, pairs, "query", "document")
            ids = {"query_ids": pairs["query"][:], "document_ids": pairs["document"][:]}
            samples["retrieval_mrr@10"] = retrieval_samples(*vectors, **ids)["mrr@10"]
        if self.scored_pairs is not None:
            first, second = self._vectors(model, self.scored_pairs, "sentence1", "sentence2")
            scores = self.scored_pairs["score"][:]
            samples["similarity_spearman"] = similarity_samples(first, second, scores)["spearman"]
        return samples

    def _vectors(self, model: SimMIMForPreTraining, rows: Dataset, *columns: str) -> list[np.ndarray]:
        """(rows, hidden) of the texts of each column"""
        return [encode(model, list(rows[column]), self.tokenizer, self.max_length) for column in columns]

    def _report(self, results: dict, model: SimMIMForPreTraining) -> None:
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
        print(console.before_after_table(results))
        print(*card.notes(results), sep="\n")
        self._print_neighbours(model)
        print(self._how_to_use())

    def _how_to_use(self) -> str:
        return console.loading_snippet(self.args.output_dir, bool(self.model.config.mlm_weight))

    def _print_neighbours(self, model: SimMIMForPreTraining) -> None:
        texts = list(self.held_out["summary" if self.data_args.built_in else "text"])
        vectors = encode(model, texts, self.tokenizer, self.max_length)  # (texts, hidden)
        queries = list(range(0, len(texts), max(1, len(texts) // 4)))[:4]
        scores = vectors[queries] @ vectors.T  # (queries, texts)
        scores[range(len(queries)), queries] = -1
        print("Nearest neighbours among the held-out texts:")
        for query, row in zip(queries, scores, strict=True):
            best = row.argsort()[::-1][:2]
            print(console.neighbours(texts[query], [(texts[i], row[i]) for i in best]))

    def _initial_weights(self) -> dict:
        facts: dict = {"initial_weights": "random weights"}
        path = self.model_args.model_name_or_path
        if path and os.path.exists(path):
            facts["initial_weights"] = f"the local checkpoint `{Path(path).resolve().name}`"
            facts |= earlier_runs(Path(path))
        elif path:
            facts = {"initial_weights": path, "base_model": path}
        if self.checkpoint:
            state = TrainerState.load_from_json(os.path.join(self.checkpoint, "trainer_state.json"))
            facts["resumed_at_step"] = state.global_step
        return facts

    def _data_facts(self) -> dict:
        """Which text, how much of it, and what was done to it, without the folders of this machine."""
        data = self.data_args
        counts = self.text.train_counts
        facts: dict = {"max_length": self.max_length, "held_out_sequences": len(self.text.held_out)}
        if counts is not None:  # those of a stream are not known
            facts |= {"train_documents": counts.documents, "train_sequences": len(self.text.train)}
            facts |= {"train_tokens": counts.tokens, "dropped_tokens": counts.dropped}
            if counts.sources:
                facts["sources"] = [{"documents": part.documents, "tokens": part.tokens} for part in counts.sources]
        facts |= self.corpus.description
        if data.similarity_file:
            facts["similarity_file"] = Path(data.similarity_file).name
        facts["tokenizer"] = f"{len(self.tokenizer):,} tokens, {self._tokenizer_origin()}"
        recorded = ["train_file", "validation_file", "dataset_name", "dataset_config_name", "similarity_file"]
        recorded += data.collator_options()
        options = [option.name for option in dataclasses.fields(data) if option.name not in recorded]
        return {**facts, "options": options_of(data, options)}

    def _tokenizer_origin(self) -> str:
        name = self.model_args.tokenizer_name or self.model_args.model_name_or_path
        if not name:
            return "trained on the text"
        if os.path.exists(name):
            name = Path(name).name
        return f"of `{name}`"


class StopAtNonFiniteEvaluation(TrainerCallback):
    """Ends training where the held-out loss says that the weights are lost."""

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        loss = metrics["eval_loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The held-out loss is {loss} at step {state.global_step}, so no model was saved in "
                f"{args.output_dir}. Lower the learning rate, or set a longer warm-up."
            )


def _held_out_metrics(measured: dict[str, float]) -> dict[str, float]:
    """The metrics of an evaluation of the Trainer, by their names in the tables."""
    return {name: measured[f"eval_{name}"] for name in METRICS if f"eval_{name}" in measured}


def _at_start(log_history: list[dict]) -> dict[str, float]:
    """The held-out metrics before the first step, also of a run that was resumed."""
    evaluations = [entry for entry in log_history if entry["step"] == 0 and "eval_loss" in entry]
    return _held_out_metrics(evaluations[0]) if evaluations else {}


def _values(samples: dict[str, ResamplableMetric]) -> dict[str, float]:
    return {name: sampled.value() for name, sampled in samples.items()}


def _checkpoint_to_resume(args: PretrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means; refuses to write over another run."""
    checkpoint = None
    if args.resume_from_checkpoint:
        checkpoint = checkpoints.to_resume(args.resume_from_checkpoint, args.output_dir)
    ignored: Sequence[str] = ()
    if args.resume_from_checkpoint == checkpoints.LAST_IF_ANY:
        ignored = checkpoints.BEFORE_THE_FIRST
    is_used = folders.is_used(args.output_dir, *ignored)
    if is_used and not (_continues(checkpoint, args.output_dir) or args.overwrite_output_dir):
        raise ValueError(
            f"--output_dir `{args.output_dir}` is not empty. Give another folder, --overwrite_output_dir to write "
            "over it, or --resume_from_checkpoint last to continue the run in it."
        )
    return checkpoint


def _continues(checkpoint: str | None, output_dir: str) -> bool:
    """Whether a checkpoint is one of the run in a folder."""
    if not checkpoint:
        return False
    return Path(checkpoint).resolve().parent == Path(output_dir).resolve()
