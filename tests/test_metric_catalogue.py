"""The catalogue of what is measured."""

import pytest

from simmim_hf.metric_catalogue import metric_of, title


@pytest.mark.parametrize(
    "key, expected",
    [
        ("mlm_loss", "MLM loss"),
        ("eval_mlm_loss", "MLM loss"),
        ("retrieval_mrr@10", "retrieval MRR@10"),
        ("similarity_spearman", "similarity Spearman x 100"),
    ],
)
def test_titles_say_where_something_was_measured(key, expected):
    assert title(key) == expected


def test_an_unknown_metric_is_an_error():
    with pytest.raises(KeyError):
        metric_of("nonsense")
