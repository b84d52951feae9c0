"""SimMIM, the Siamese Masked Language Model for text, as an add-on to Hugging Face transformers.

Importing this package registers its configuration and models with the Auto classes of transformers.
"""

from importlib.metadata import version

import transformers

from .data.collator import DataCollatorForSimMIM
from .evaluation.encoding import encode
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
from .training.arguments import SimMIMTrainingArguments
from .training.trainer import SimMIMTrainer

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
