"""What an encoder is worth: `simmim evaluate`, and the measurements that `simmim pretrain` shows."""

import importlib.metadata
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from . import corpora, metrics, reporting
from .configuration_simmim import CHOICES, SimMIMConfig
from .encoders import load_encoder
from .language_modelling import load_language_model, masked_rows, next_token_rows, one_mask_rows, predict_tokens
from .tasks import BUILT_IN, NEEDED, Task, load_task

logger = logging.get_logger(__name__)

# Geometry is that of so many texts at most: it compares all of them with each other.
GEOMETRY_TEXTS = 2000
# Pairs in the top fifth of the scores' range belong together: those above 4 on the scale from 0 to 5, as in
# Gao et al. 2021 (SimCSE).
BELONG_TOGETHER = 0.8


# The figures in the order of the table.
TITLES = {
    "pairs": "pairs",
    "spearman": "Spearman x 100",
    "pearson": "Pearson x 100",
    "queries": "queries",
    "documents": "documents",
    "mrr@10": "MRR@10",
    "recall@1": "recall@1",
    "recall@10": "recall@10",
    "ndcg@10": "nDCG@10",
    "texts": "texts",
    "accuracy": "accuracy, %",
    "accuracy_std": "standard deviation of the accuracy",
    "tokens": "tokens",
    "truncated": "truncated texts",
    "mlm_loss": "MLM loss",
    "unigram_cross_entropy": "MLM loss of token frequencies alone",
    "mlm_accuracy": "MLM accuracy",
    "pseudo_perplexity": "pseudo-perplexity",
    "clm_loss": "next-token loss",
    "perplexity": "perplexity",
    "alignment": "alignment (lower is closer)",
    "uniformity": "uniformity (lower is more even)",
    "mean_cosine": "mean cosine of two texts",
    "effective_rank": "effective rank",
    "length_r2": "length readable from the vector, R²",
}


# ---------------------------------------------------------------------------------------------- sentence vectors


@torch.no_grad()
def encode(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int,
    batch_size: int = 128,
    normalize: bool = True,
    show_progress: bool = False,
) -> np.ndarray:
    """Sentence vectors by the model's own pooling.

    Args:
        model: a `SimMIMModel`, or anything with one (or a `PooledEncoder`) as `base_model`
        texts: in any order; they are read in batches of similar length
        max_length: longer texts are truncated to this many tokens
        normalize: put the vectors on the unit sphere
        show_progress: show a progress bar

    Returns:
        (texts, hidden), float32.
    """
    encoder, was_training = model.base_model, model.training
    encoder.eval()
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    order = np.argsort([-len(row) for row in ids], kind="stable")
    vectors = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
    for start in logging.tqdm(range(0, len(texts), batch_size), desc="Encoding", disable=not show_progress):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(encoder.device)
        pooled = encoder(**batch).pooler_output.float()
        vectors[rows] = (torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled).cpu().numpy()
    model.train(was_training)
    return vectors


def mean_reciprocal_rank(queries, documents, k: int = 10) -> float:
    """MRR@k of finding document i with query i among all documents, by the inner product.

    A document that scores as high as the right one counts as found before it.

    Args:
        queries, documents: (pairs, dim), dense or scipy sparse, normalised
    """
    scores = queries @ documents.T
    scores = scores.toarray() if hasattr(scores, "toarray") else scores
    ranks = (scores >= scores.diagonal()[:, None]).sum(1)
    return float(np.where(ranks <= k, 1 / ranks, 0).mean())


def tfidf_reciprocal_rank(queries: list[str], documents: list[str], k: int = 10) -> float:
    """MRR@k of the same search by weighted word overlap, the baseline that needs no training."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(documents)
    return mean_reciprocal_rank(vectorizer.transform(queries), vectorizer.transform(documents), k)


def similarity_spearman(model, tokenizer, pairs: Dataset, max_length: int) -> float:
    """Spearman correlation x 100 of cosines with human scores. `pairs` has `sentence1`, `sentence2` and `score`."""
    first, second = (
        encode(model, tokenizer, list(pairs[column]), max_length) for column in ("sentence1", "sentence2")
    )
    return 100 * float(spearmanr((first * second).sum(1), pairs["score"]).statistic)


def unigram_cross_entropy(train: Dataset, held_out: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """The MLM loss, in nats a token, of a model that knows only how frequent each token is in the training text.

    Args:
        train, held_out: with a column `input_ids`; special tokens do not count
    """
    train_counts, counts = (
        np.bincount(np.concatenate(data.with_format("numpy")["input_ids"][:]), minlength=len(tokenizer))
        for data in (train, held_out)
    )
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    train_counts, counts = train_counts[ordinary] + 1, counts[ordinary]
    return float(-(counts * np.log(train_counts / train_counts.sum())).sum() / counts.sum())


def load_scored_pairs(file: str) -> Dataset:
    """A .jsonl or .csv file (also .gz, .xz, .zst) with the columns `sentence1`, `sentence2` and `score`.

    Raises:
        ValueError: a column is missing; the message names those there are.
    """
    kind = "csv" if ".csv" in file else "json"
    pairs = load_dataset(kind, data_files=file, split="train")
    missing = {"sentence1", "sentence2", "score"} - set(pairs.column_names)
    if missing:
        raise ValueError(f"`{file}` has no column {sorted(missing)}; it has {pairs.column_names}.")
    return pairs


# ---------------------------------------------------------------------------------------------- the command


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model: str = field(metadata={"help": "Folder or Hub id of a SimMIM checkpoint, or of any encoder."})
    output_dir: str = field(default="simmim-evaluated", metadata={"help": "Folder for results.json and results.md."})
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files, folders with train and test files, Hub datasets (owner/name or owner/name:configuration), "
            f"or a built-in task ({', '.join(BUILT_IN)}). The columns tell the kind: {NEEDED}."
        },
    )
    mteb: list[str] | None = field(
        default=None, metadata={"help": "Names of tasks of the mteb package, which has to be installed."}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "How tokens become a sentence vector. Default: that of a SimMIM checkpoint, mean for others.",
            "choices": list(CHOICES["pooling"]),
        },
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are truncated to this many tokens."})
    batch_size: int = field(default=64, metadata={"help": "Texts that are read at a time; it changes no figure."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, ..."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of corrupted tokens in plain text."})
    max_samples: int = field(
        default=100,
        metadata={"help": "Texts for the pseudo-perplexity, which reads a text once for each of its tokens; 0: none."},
    )
    seed: int = field(default=42, metadata={"help": "Of masks, folds and samples."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace earlier results in --output_dir."})


class Evaluation:
    """One run of `simmim evaluate`. Whatever can be wrong with the input is found out here, before measuring starts.

    Raises:
        ValueError, OSError: input that cannot work; the message names the value and the remedy.
    """

    def __init__(self, args: EvaluationArguments):
        self.args = args
        self.device = _check(args)
        self.mteb_tasks = _mteb_tasks(args.mteb) if args.mteb else []
        self.tasks = _by_short_name([load_task(name, args.seed) for name in dict.fromkeys(args.tasks or ())])
        self.tokenizer = corpora.load_tokenizer(args.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # padding is masked, so that any token will do
        self.model = load_encoder(args.model, args.pooling).to(self.device)
        self.max_length = min(args.max_seq_length, self.model.max_length)
        self._check_tokenizer()
        self.language_model = None
        if any(task.kind == "language modelling" for task in self.tasks.values()):
            self.language_model = load_language_model(args.model)
            self.language_model.model.to(self.device)
            if "masked" in self.language_model.options:
                masked_rows([], self.tokenizer, args.mlm_probability, args.seed)  # refuses a bad tokenizer or share

    def run(self, argv: Sequence[str] | None = None) -> dict:
        """Measures everything, writes `results.json` and `results.md`, and prints the table.

        Args:
            argv: the command line behind `simmim`, to be recorded

        Returns:
            The figures, as in `results.json`.

        Raises:
            FloatingPointError: the model gives vectors that are not finite.
        """
        args, config = self.args, self.model.config
        names = ("evaluate", "numpy", "scipy", "scikit-learn", *(["mteb"] if self.mteb_tasks else []))
        results = {
            **({} if argv is None else {"command": reporting.command(argv)}),
            "seed": args.seed,
            "versions": reporting.versions() | {name: importlib.metadata.version(name) for name in names},
            "model": reporting.without_folders(args.model),
            "model_type": config.model_type,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "pooling": config.pooling if isinstance(config, SimMIMConfig) else self.model.pooling,
            "max_seq_length": self.max_length,
            "precision": "bfloat16" if args.bf16 else "float32",
            "device": str(self.device),
            "tasks": {},
        }
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            for name, task in self.tasks.items():
                start = time.perf_counter()
                figures = self.measure(task)
                seconds = round(time.perf_counter() - start, 1)
                results["tasks"][name] = {"kind": task.kind, **figures, "seconds": seconds}
                self._write(results)  # a run that is stopped keeps what it has measured
            if self.mteb_tasks:
                results["mteb"] = self._measure_mteb()
                self._write(results)
        print("", plain_table(table_rows(results)), sep="\n")
        return results

    def measure(self, task: Task) -> dict[str, float | None]:
        measure = {
            "similarity": self._similarity,
            "retrieval": self._retrieval,
            "transfer": self._transfer,
            "language modelling": self._language_modelling,
        }[task.kind]
        vectors = self._encode(task.texts())
        figures, pairs = measure(task, vectors)
        sample = _draw(vectors.rows, GEOMETRY_TEXTS, self.args.seed)
        if len(sample) > 1:
            lengths = [len(ids) for ids in self._truncated(sample)]
            figures |= metrics.geometry_figures(vectors[sample], pairs)
            figures["length_r2"] = metrics.length_probe(vectors[sample], lengths, self.args.seed)
        return {name: value if value is not None and np.isfinite(value) else None for name, value in figures.items()}

    def _truncated(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def _encode(self, texts: Iterable[str]) -> "TextVectors":
        texts, args = sorted(set(texts)), self.args
        options = {"batch_size": args.batch_size, "normalize": False, "show_progress": True}
        vectors = encode(self.model, self.tokenizer, texts, self.max_length, **options)
        if not np.isfinite(vectors).all():
            raise FloatingPointError(f"the vectors that `{args.model}` gives are not finite.")
        return TextVectors(texts, vectors)

    def _similarity(self, task, vectors):
        pairs = [vectors[task.test[column]] for column in ("sentence1", "sentence2")]
        scores = np.asarray(task.test["score"], dtype=np.float64)
        first, second = map(metrics.on_the_sphere, pairs)
        together = scores > scores.min() + BELONG_TOGETHER * np.ptp(scores)
        figures = {"pairs": len(scores), **metrics.similarity_figures((first * second).sum(1), scores)}
        return figures, [side[together] for side in pairs]

    def _retrieval(self, task, vectors):
        queries, documents = task.test["query"][:], task.test["document"][:]
        pairs = vectors[queries], vectors[documents]
        found = metrics.retrieval_figures(*pairs, query_ids=queries, document_ids=documents)
        return {"queries": len(set(queries)), "documents": len(set(documents)), **found}, pairs

    def _transfer(self, task, vectors):
        columns = [_by_text(rows) for rows in (task.train, task.test) if rows is not None]
        arrays = [array for texts, labels in columns for array in (vectors[texts], labels)]
        figures = metrics.transfer_figures(*arrays, seed=self.args.seed)
        return {"texts": sum(len(labels) for _, labels in columns), **figures}, None

    def _language_modelling(self, task, vectors):
        args, tokenizer, model = self.args, self.tokenizer, self.language_model.model
        rows, truncated = corpora.tokenize(task.test, tokenizer, self.max_length)
        ids = rows["input_ids"][:]
        figures = {"texts": len(ids), "tokens": sum(map(len, ids)), "truncated": truncated}
        if "masked" in self.language_model.options:
            options = self.language_model.options["masked"]
            masked = masked_rows(ids, tokenizer, args.mlm_probability, args.seed)
            loss, accuracy = predict_tokens(model, masked, args.batch_size, "Masked tokens", **options)
            figures |= {"mlm_loss": loss, "mlm_accuracy": accuracy}
            if args.max_samples:
                one_by_one = one_mask_rows(_draw(ids, args.max_samples, args.seed), tokenizer)
                loss, _ = predict_tokens(model, one_by_one, args.batch_size, "Each token masked", **options)
                figures["pseudo_perplexity"] = float(np.exp(loss))
        if "causal" in self.language_model.options:
            options = self.language_model.options["causal"]
            loss, _ = predict_tokens(model, next_token_rows(ids), args.batch_size, "Next tokens", **options)
            figures |= {"clm_loss": loss, "perplexity": float(np.exp(loss))}
        if task.train is not None:
            train, _ = corpora.tokenize(task.train, tokenizer, self.max_length)
            figures["unigram_cross_entropy"] = unigram_cross_entropy(train, rows, tokenizer)
        return figures, None

    def _measure_mteb(self) -> dict[str, dict]:
        """The main score of each task; everything else goes to a file a task, in the format of mteb."""
        import mteb

        folder = Path(self.args.output_dir, "mteb")
        folder.mkdir(parents=True, exist_ok=True)
        encoder = _mteb_encoder(lambda texts: self._encode(texts)[texts])
        # A cache would give the results of another checkpoint.
        results = mteb.evaluate(encoder, self.mteb_tasks, cache=None).task_results
        for result in results:
            result.to_disk(folder / f"{result.task_name}.json")
        return {result.task_name: {"main_score": float(result.get_score())} for result in results}

    def _check_tokenizer(self) -> None:
        tokens, vocabulary = len(self.tokenizer), self.model.config.vocab_size
        if tokens > vocabulary:
            raise ValueError(
                f"the tokenizer of `{self.args.model}` has {tokens} tokens and the model only {vocabulary}: they do "
                "not belong together."
            )
        special = self.tokenizer.num_special_tokens_to_add()
        if self.max_length <= special:
            raise ValueError(
                f"--max_seq_length is {self.args.max_seq_length}: a text has {special} special tokens; give more."
            )

    def _write(self, results: dict) -> None:
        os.makedirs(self.args.output_dir, exist_ok=True)
        with open(os.path.join(self.args.output_dir, "results.json"), "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2, ensure_ascii=False)
        with open(os.path.join(self.args.output_dir, "results.md"), "w", encoding="utf-8") as file:
            file.write(markdown(results, table_rows(results)))


class TextVectors:
    """The vectors of texts, by text: the same text has the same vector wherever it stands."""

    def __init__(self, texts: list[str], vectors: np.ndarray):
        self.rows = {text: row for row, text in enumerate(texts)}
        self.vectors = vectors

    def __getitem__(self, texts: Iterable[str]) -> np.ndarray:
        """(texts, hidden)"""
        return self.vectors[[self.rows[text] for text in texts]]


def _check(args: EvaluationArguments) -> torch.device:
    """Refuses options that cannot work; the device that `--device` means."""
    if not args.tasks and not args.mteb:
        raise ValueError(f"nothing to measure: give --tasks (built in: {', '.join(BUILT_IN)}) or --mteb.")
    for name, least in (("batch_size", 1), ("max_samples", 0), ("max_seq_length", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}: it must be {least} or more.")
    if os.path.exists(os.path.join(args.output_dir, "results.json")) and not args.overwrite_output_dir:
        raise ValueError(
            f"--output_dir `{args.output_dir}` already has a results.json. Give another folder, or "
            "--overwrite_output_dir to replace it."
        )
    if args.device == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device `{args.device}` cannot be used: {str(error).splitlines()[0]} Give auto, cpu or cuda."
        ) from error
    return device


def _by_short_name(tasks: list[Task]) -> dict[str, Task]:
    """Tasks by name, with the last two parts of an absolute path: results name no folder of this machine."""
    named = {}
    for task in tasks:
        short = name = "/".join(Path(task.name).parts[-2:]) if os.path.isabs(task.name) else task.name
        while name in named:
            name = f"{short} ({len(named) + 1})"
        named[name] = task
    return named


def _by_text(rows: Dataset) -> tuple[list[str], list]:
    """Texts and labels in the order of the texts: folds are then the same whatever the order of the file."""
    pairs = sorted(zip(rows["text"], rows["label"], strict=True), key=lambda pair: (pair[0], str(pair[1])))
    texts, labels = zip(*pairs, strict=True)
    return list(texts), list(labels)


def _draw(items: Iterable, count: int, seed: int) -> list:
    """At most `count` of the items at random; their order does not matter."""
    items = sorted(items)
    return items if len(items) <= count else random.Random(seed).sample(items, count)


def _mteb_tasks(names: list[str]) -> list:
    try:
        import mteb
    except ImportError as error:
        raise ValueError("--mteb needs the package mteb, which is not installed: pip install mteb") from error
    try:
        return list(mteb.get_tasks(tasks=names))
    except KeyError as error:
        raise ValueError(f"--mteb: {error.args[0].removeprefix('KeyError: ')}") from error


def _mteb_encoder(encode: Callable[[list[str]], np.ndarray]):
    """`encode`, from texts to vectors (texts, dim), as a model of mteb."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    class Encoder(AbsEncoder):
        mteb_model_meta = ModelMeta.create_empty({"similarity_fn_name": ScoringFunction.COSINE})

        def encode(self, inputs, **kwargs) -> np.ndarray:
            return encode([text for batch in inputs for text in batch["text"]])

    return Encoder()


def table_rows(results: dict) -> list[tuple[str, str, str, str]]:
    """Task, kind, figure and value, as text, under a row of titles; for the results of `Evaluation.run`."""
    rows = [("task", "kind", "figure", "value")]
    for name, figures in results["tasks"].items():
        for key, title in TITLES.items():
            if key in figures:
                rows.append((name, figures["kind"], title, _as_text(figures[key])))
    for name, figures in results.get("mteb", {}).items():
        rows.append((name, "mteb", "main score", _as_text(figures["main_score"])))
    return rows


def plain_table(rows: list[tuple[str, ...]]) -> str:
    """The rows for a terminal; task and kind are not repeated."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, above = [], (None, None)
    for row in rows:
        cells = (" " * len(row[i]) if row[: i + 1] == above[: i + 1] else row[i] for i in range(2))
        *left, value = (*cells, *row[2:])
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(left, widths)), value.rjust(widths[-1])]))
        above = row[:2]
    return "\n".join(lines)


def markdown(results: dict, rows: list[tuple[str, ...]]) -> str:
    """`results.md`: what was measured, as a table, and with what."""
    header, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = f"{results['pooling']} pooling, at most {results['max_seq_length']} tokens, {results['precision']} on "
    facts += f"{results['device']}, seed {results['seed']}; {versions}."
    lines = [f"# Evaluation of {results['model']}", "", header, "| --- | --- | --- | ---: |", *body, "", facts, ""]
    return "\n".join([*lines, *([f"`{results['command']}`", ""] if "command" in results else [])])


def _as_text(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
