"""SimMIM, the Siamese Masked Language Model for text, as an add-on to Hugging Face transformers.

Importing this package registers its configuration and models with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining

from .configuration_simmim import SimMIMConfig
from .data_collator import DataCollatorForSimMIM
from .modeling_simmim import SimMIMForMaskedLM, SimMIMForPreTraining, SimMIMModel
from .trainer import SimMIMTrainer

AutoConfig.register(SimMIMConfig.model_type, SimMIMConfig, exist_ok=True)
AutoModel.register(SimMIMConfig, SimMIMModel, exist_ok=True)
AutoModelForPreTraining.register(SimMIMConfig, SimMIMForPreTraining, exist_ok=True)
AutoModelForMaskedLM.register(SimMIMConfig, SimMIMForMaskedLM, exist_ok=True)

__all__ = [
    "DataCollatorForSimMIM",
    "SimMIMConfig",
    "SimMIMForMaskedLM",
    "SimMIMForPreTraining",
    "SimMIMModel",
    "SimMIMTrainer",
]
