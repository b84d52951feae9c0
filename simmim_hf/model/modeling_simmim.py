"""The models of SimMIM, in the file where transformers looks for them."""

from .encoder import SimMIMModel
from .heads import (
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForMultipleChoice,
    SimMIMForQuestionAnswering,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
)
from .objective import SimMIMForPreTraining

__all__ = [
    "SimMIMForCausalLM",
    "SimMIMForMaskedLM",
    "SimMIMForMultipleChoice",
    "SimMIMForPreTraining",
    "SimMIMForQuestionAnswering",
    "SimMIMForSequenceClassification",
    "SimMIMForTokenClassification",
    "SimMIMModel",
]

# Without this package, transformers saves the file of a model's module and those that it imports: of this one, all.
for _name in __all__:
    globals()[_name].__module__ = __name__
