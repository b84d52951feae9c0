"""The functions of `metrics` as metrics of the `evaluate` library, for a Trainer's `compute_metrics`.

A metric of `evaluate` is otherwise fetched from the Hub; these need no network.
"""

import evaluate
from datasets import Features, List, Value

from .metrics import geometry_metrics, retrieval_metrics, similarity_metrics


class _Metric(evaluate.Metric):
    """A metric of `evaluate` whose predictions and references are rows of one kind."""

    row = List(Value("float32"))

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": self.row, "references": self.row})
        return evaluate.MetricInfo(self.__doc__, citation="", features=features, inputs_description=self.__doc__)


class Similarity(_Metric):
    """`similarity_metrics` of `predictions` (cosines) and `references` (human scores), a number a pair each."""

    row = Value("float64")

    def _compute(self, predictions, references) -> dict[str, float]:
        return similarity_metrics(predictions, references)


class Retrieval(_Metric):
    """`retrieval_metrics` of `predictions` (vectors of the queries) and `references` (of their documents).

    `compute` also takes `query_ids`, `document_ids` and `k`.
    """

    def _compute(self, predictions, references, **options) -> dict[str, float]:
        return retrieval_metrics(predictions, references, **options)


class Geometry(_Metric):
    """`geometry_metrics` of `predictions`, and the alignment with `references`, the vectors that belong to them."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return geometry_metrics(predictions, pairs=(predictions, references))
