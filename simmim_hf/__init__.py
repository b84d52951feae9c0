"""SimMIM, the Siamese Masked Language Model for text, as an add-on to Hugging Face transformers.

Importing this package registers its configuration and models with the Auto classes of transformers.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

import transformers

from .model import modeling_simmim
from .model.configuration_simmim import AUTO_MAP, SimMIMConfig
from .model.modeling_simmim import (
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForMultipleChoice,
    SimMIMForPreTraining,
    SimMIMForQuestionAnswering,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
    SimMIMModel,
)

if TYPE_CHECKING:  # checkers see the classes themselves, and that no other name exists
    from .data.collator import DataCollatorForSimMIM
    from .evaluation.encoding import encode
    from .training.arguments import SimMIMTrainingArguments
    from .training.trainer import SimMIMTrainer
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)


# Imported on first use: these modules import datasets, the Trainer and the metrics, which takes seconds.
_MODULE_OF = {
    "DataCollatorForSimMIM": ".data.collator",
    "SimMIMTrainer": ".training.trainer",
    "SimMIMTrainingArguments": ".training.arguments",
    "encode": ".evaluation.encoding",
}

for _auto_class, _reference in AUTO_MAP.items():
    if _auto_class == "AutoConfig":
        transformers.AutoConfig.register(SimMIMConfig.model_type, SimMIMConfig, exist_ok=True)
    else:
        _model_class = getattr(modeling_simmim, _reference.split(".")[1])
        getattr(transformers, _auto_class).register(SimMIMConfig, _model_class, exist_ok=True)

__version__ = version("simmim_hf")

__all__ = [
    "DataCollatorForSimMIM",
    "SimMIMConfig",
    "SimMIMForCausalLM",
    "SimMIMForMaskedLM",
    "SimMIMForMultipleChoice",
    "SimMIMForPreTraining",
    "SimMIMForQuestionAnswering",
    "SimMIMForSequenceClassification",
    "SimMIMForTokenClassification",
    "SimMIMModel",
    "SimMIMTrainer",
    "SimMIMTrainingArguments",
    "encode",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
