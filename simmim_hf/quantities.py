"""The catalogue of what is measured: what a key of `results.json` is called, which way is better, how it is printed.

Every table, plot, card and report takes its words from here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """Something that is measured of a model.

    Args:
        title: as it stands in tables
        better: 1 where more is better, -1 where less is, 0 where no direction is better by itself
        digits: after the decimal point; 0 for a count
        axis: the section of a comparison's report that shows it; a quantity without one is in `results.json` only
        leads: whether it stands for its axis in the overview of a comparison
        hint: what a reader has to know about its direction
        hub: the task and the type of the metric in the `model-index` of a card
    """

    title: str
    better: int = 0
    digits: int = 3
    axis: str = ""
    leads: bool = False
    hint: str = ""
    hub: tuple[str, str] | None = None

    @property
    def described(self) -> str:
        """The title with its hint."""
        return f"{self.title} ({self.hint})" if self.hint else self.title

    def is_better(self, one: float | None, other: float | None) -> bool:
        """Whether `one` is better than `other`; never where no direction is, or one of them is not known."""
        return one is not None and other is not None and self.better * one > self.better * other

    def format(self, value: float | None) -> str:
        """The value as it is printed."""
        return as_text(value, self.digits)


LANGUAGE = "Language modelling"
APART = "Telling texts apart"
SIMILARITY = "Similarity"
TRANSFER = "Transfer"
RETRIEVAL = "Retrieval"
GEOMETRY = "Geometry"

# In the order of every table. A key is the same wherever it is measured.
QUANTITIES = {
    "pairs": Quantity("pairs", digits=0),
    "queries": Quantity("queries", digits=0),
    "documents": Quantity("documents", digits=0),
    "texts": Quantity("texts", digits=0),
    "tokens": Quantity("tokens", digits=0),
    "truncated": Quantity("truncated texts", digits=0),
    "mlm_loss": Quantity("MLM loss", -1, axis=LANGUAGE, leads=True, hub=("fill-mask", "loss")),
    "unigram_cross_entropy": Quantity("MLM loss of token frequencies alone", -1),
    "mlm_accuracy": Quantity("MLM accuracy", 1, axis=LANGUAGE, hub=("fill-mask", "accuracy")),
    "pseudo_perplexity": Quantity("pseudo-perplexity", -1, 1, axis=LANGUAGE),
    "minimal_pairs_accuracy": Quantity("minimal pairs told apart, %", 1, 2, axis=LANGUAGE, leads=True),
    "clm_loss": Quantity("CLM loss", -1, hub=("text-generation", "loss")),
    "perplexity": Quantity("causal perplexity", -1, 1, axis=LANGUAGE, leads=True),
    "contrastive_loss": Quantity("contrastive loss", -1),
    "contrastive_accuracy": Quantity("contrastive accuracy", 1, axis=APART),
    "spearman": Quantity(
        "Spearman x 100", 1, 2, axis=SIMILARITY, leads=True, hub=("sentence-similarity", "cosine_spearman")
    ),
    "pearson": Quantity("Pearson x 100", 1, 2, axis=SIMILARITY),
    "accuracy": Quantity("accuracy, %", 1, 2, axis=TRANSFER, leads=True),
    "accuracy_std": Quantity("standard deviation of the accuracy", digits=2),
    "mrr@10": Quantity("MRR@10", 1, axis=RETRIEVAL, leads=True, hub=("information-retrieval", "cosine_mrr@10")),
    "recall@1": Quantity("recall@1", 1, axis=RETRIEVAL),
    "recall@10": Quantity("recall@10", 1, axis=RETRIEVAL),
    "ndcg@10": Quantity("nDCG@10", 1, axis=RETRIEVAL),
    "alignment": Quantity("alignment", axis=GEOMETRY, hint="lower is closer"),
    "uniformity": Quantity("uniformity", axis=GEOMETRY, hint="lower is more even"),
    "mean_cosine": Quantity("mean cosine", axis=GEOMETRY),
    "effective_rank": Quantity("effective rank", 0, 1, axis=GEOMETRY),
    "length_r2": Quantity("length readable from the vector, R²", axis=GEOMETRY),
    "source_probe": Quantity("source readable from the vector", axis=GEOMETRY, hint="0 a guess, 1 always"),
    "main_score": Quantity("main score", 1),
}

# What needs no training, by the quantity to which it compares: its key in `results.json`, and its name.
BASELINES = {
    "mlm_loss": ("unigram_cross_entropy", "token frequencies"),
    "retrieval_mrr@10": ("tfidf_mrr@10", "TF-IDF"),
}


def as_text(value: float | None, digits: int = 3) -> str:
    """A value as it is printed; `undefined` for one that is not finite."""
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value:,.{digits}f}"


def quantity(key: str) -> Quantity:
    """The quantity of a key, also of one that begins with where it was measured: `eval_mlm_loss`, `retrieval_mrr@10`.

    Raises:
        KeyError: there is no such quantity.
    """
    return QUANTITIES[key if key in QUANTITIES else key.partition("_")[2]]


def title(key: str) -> str:
    """The title of a key, after the place where it was measured: `retrieval MRR@10`."""
    where = "" if key in QUANTITIES else f"{key.partition('_')[0]} "
    return f"{where.removeprefix('eval ')}{quantity(key).described}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
