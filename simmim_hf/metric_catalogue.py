"""The catalogue of metrics: the name of a key of `results.json`, which way is better, and how it is printed.

Every table, plot, card and report takes its words from here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The name of a metric, which way is better, and where it is shown.

    Args:
        title: its name in tables
        sign: 1 where more is better, -1 where less is, 0 where no direction is better by itself
        digits: after the decimal point; 0 for a count
        section: of a comparison's report that shows it; without one it is in `results.json` only
        is_headline: whether it represents its section in the overview of a comparison
        hint: for the reader, about its direction
        hub_metric: the task and the type of the metric in the `model-index` of a card
    """

    title: str
    sign: int = 0
    digits: int = 3
    section: str = ""
    is_headline: bool = False
    hint: str = ""
    hub_metric: tuple[str, str] | None = None

    @property
    def described(self) -> str:
        """The title with its hint."""
        return f"{self.title} ({self.hint})" if self.hint else self.title

    def is_better(self, one: float | None, other: float | None) -> bool:
        """Whether `one` is better than `other`; never where no direction is, or one of them is not known."""
        if one is None or other is None:
            return False
        return self.sign * one > self.sign * other

    def format(self, value: float | None) -> str:
        """The value as it is printed."""
        return as_text(value, self.digits)


# The sections of a comparison's report.
LANGUAGE = "Language modelling"
APART = "Telling texts apart"
SIMILARITY = "Similarity"
TRANSFER = "Transfer"
RETRIEVAL = "Retrieval"
GEOMETRY = "Geometry"

# In the order of every table. A key is the same wherever it is measured.
METRICS = {
    "pairs": Metric("pairs", digits=0),
    "queries": Metric("queries", digits=0),
    "documents": Metric("documents", digits=0),
    "texts": Metric("texts", digits=0),
    "tokens": Metric("tokens", digits=0),
    "truncated": Metric("truncated texts", digits=0),
    "mlm_loss": Metric("MLM loss", -1, section=LANGUAGE, is_headline=True, hub_metric=("fill-mask", "loss")),
    "unigram_cross_entropy": Metric("MLM loss of token frequencies alone", -1),
    "mlm_accuracy": Metric("MLM accuracy", 1, section=LANGUAGE, hub_metric=("fill-mask", "accuracy")),
    "pseudo_perplexity": Metric("pseudo-perplexity", -1, 1, section=LANGUAGE),
    "minimal_pairs_accuracy": Metric("minimal pairs told apart, %", 1, 2, section=LANGUAGE, is_headline=True),
    "clm_loss": Metric("CLM loss", -1, hub_metric=("text-generation", "loss")),
    "perplexity": Metric("causal perplexity", -1, 1, section=LANGUAGE, is_headline=True),
    "contrastive_loss": Metric("contrastive loss", -1),
    "contrastive_accuracy": Metric("contrastive accuracy", 1, section=APART),
    "spearman": Metric(
        "Spearman x 100",
        1,
        2,
        section=SIMILARITY,
        is_headline=True,
        hub_metric=("sentence-similarity", "cosine_spearman"),
    ),
    "pearson": Metric("Pearson x 100", 1, 2, section=SIMILARITY),
    "accuracy": Metric("accuracy, %", 1, 2, section=TRANSFER, is_headline=True),
    "accuracy_std": Metric("standard deviation of the accuracy", digits=2),
    "mrr@10": Metric(
        "MRR@10", 1, section=RETRIEVAL, is_headline=True, hub_metric=("information-retrieval", "cosine_mrr@10")
    ),
    "recall@1": Metric("recall@1", 1, section=RETRIEVAL),
    "recall@10": Metric("recall@10", 1, section=RETRIEVAL),
    "ndcg@10": Metric("nDCG@10", 1, section=RETRIEVAL),
    "alignment": Metric("alignment", section=GEOMETRY, hint="lower is closer"),
    "uniformity": Metric("uniformity", section=GEOMETRY, hint="lower is more even"),
    "mean_cosine": Metric("mean cosine", section=GEOMETRY),
    "effective_rank": Metric("effective rank", 0, 1, section=GEOMETRY),
    "length_r2": Metric("length readable from the vector, R²", section=GEOMETRY),
    "source_probe": Metric("source readable from the vector", section=GEOMETRY, hint="0 a guess, 1 always"),
    "main_score": Metric("main score", 1),
}

# Baselines without training, by the metric to which they compare: the key in `results.json`, and the name.
BASELINES = {
    "mlm_loss": ("unigram_cross_entropy", "token frequencies"),
    "retrieval_mrr@10": ("tfidf_mrr@10", "TF-IDF"),
}


def as_text(value: float | None, digits: int = 3) -> str:
    """A value as it is printed; `undefined` for one that is not finite."""
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value:,.{digits}f}"


def metric_of(key: str) -> Metric:
    """The metric of a key, also of one that begins with where it was measured: `eval_mlm_loss`, `retrieval_mrr@10`.

    Raises:
        KeyError: there is no such metric.
    """
    if key not in METRICS:
        key = key.partition("_")[2]
    return METRICS[key]


def title(key: str) -> str:
    """The title of a key, after the place where it was measured: `retrieval MRR@10`."""
    where = "" if key in METRICS else f"{key.partition('_')[0]} "
    return f"{where.removeprefix('eval ')}{metric_of(key).described}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
