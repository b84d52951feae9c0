"""Weights from checkpoints: of a backbone in its own class, and of the language-model head that comes with it."""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from .backbones import class_with_head, native_head

logger = transformers_logging.get_logger(__name__)

# Options of `from_pretrained`: those by which files are found, and those of the weights in them.
HUB_OPTIONS = (
    "revision",
    "subfolder",
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "trust_remote_code",
)
WEIGHT_OPTIONS = ("dtype", "device_map", "attn_implementation")


def pop_given(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Takes the named options out of `options`; those that are None are not returned."""
    popped = {name: options.pop(name, None) for name in names}
    return {name: value for name, value in popped.items() if value is not None}


@contextlib.contextmanager
def explaining_weights(name_or_path: Any) -> Iterator[None]:
    """Explains why the weights of a checkpoint cannot be read.

    Raises:
        OSError: there are no weights in safetensors, or the file is damaged.
    """
    try:
        yield
    except (SafetensorError, json.JSONDecodeError) as error:  # the latter: the index of the shards
        raise OSError(
            f"The weights in `{name_or_path}` are damaged, as after an interrupted download or a full disk ({error}). "
            "Fetch or save them again."
        ) from error
    except OSError as error:
        # A folder, or a file that does not arrive, may have the word in its name: match the whole phrase.
        if not re.search(r"file named model[\w.]*\.safetensors", str(error)):
            raise
        raise OSError(
            f"`{name_or_path}` has no weights in safetensors. Weights in `.bin` files are pickles, which can execute "
            f"code when they are opened, and are refused; convert them to safetensors where you trust them. ({error})"
        ) from error


def load_native(name_or_path: str, text_config: PreTrainedConfig, **options) -> tuple[PreTrainedModel, set[str]]:
    """A backbone in transformers' own class, with a language-model head where its family has one.

    Args:
        text_config: the configuration of the backbone, which may differ from the saved one
        options: of `from_pretrained`

    Returns:
        The model, and the names of its parameters that the checkpoint lacks.
    """
    auto_class: Any = class_with_head(text_config) or AutoModel
    if text_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # also where it is configured as a decoder
        auto_class = AutoModelForMaskedLM
    with _held_back("transformers.modeling_utils") as records, explaining_weights(name_or_path):
        model, info = auto_class.from_pretrained(
            name_or_path, config=text_config, output_loading_info=True, use_safetensors=True, **options
        )
        missing = set(info["missing_keys"])
        encoder_is_whole = not any(name.startswith(f"{model.base_model_prefix}.") for name in missing)
        if auto_class is not AutoModel and encoder_is_whole:
            # A missing head is expected, and `take_head` says so; transformers would warn of a damaged checkpoint.
            records.clear()
    return model, missing


@contextlib.contextmanager
def _held_back(logger_name: str) -> Iterator[list[logging.LogRecord]]:
    """Collects the records of a logger, and emits those that are still in the list at the end."""
    source = logging.getLogger(logger_name)
    records: list[logging.LogRecord] = []

    def hold_back(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    source.addFilter(hold_back)
    try:
        yield records
    finally:
        source.removeFilter(hold_back)
        for record in records:  # also where loading has failed
            source.handle(record)


def take_head(model: Any, native: PreTrainedModel, missing: set[str], is_causal: bool) -> bool:
    """Copies the language-model head of a backbone into a SimMIM model with the same encoder.

    Args:
        model: a `SimMIMWithLMHead`, which has the weights of the encoder already
        native: the backbone in its own class
        missing: parameters of `native` that were not in its checkpoint
        is_causal: whether the native class reads from left to right

    Returns:
        Whether there was a head to copy; without one, that of `model` keeps its random weights.
    """
    family = native.config.model_type
    head = native_head(native.config)
    if head is None or native.get_output_embeddings() is None:
        logger.warning(f"No language-model head of `{family}` is known here: a new one is trained from scratch.")
        return False
    parts = head.parts()
    if any(name.startswith(f"{theirs}.") for name in missing for theirs in parts.values()):
        logger.warning("This checkpoint has no language-model head: a new one is trained from scratch.")
        return False
    # The modules of the head one by one: dense, norm, decoder.
    is_untied = native.get_input_embeddings().weight is not native.get_output_embeddings().weight
    for ours, theirs in parts.items():
        weights = native.get_submodule(theirs).state_dict()
        if ours == "decoder" and is_untied and model.config.tie_word_embeddings:
            del weights["weight"]  # in `model` this is the tensor of the input embeddings
        getattr(model.lm_head, ours).load_state_dict(weights, strict=False)
    # A family's head may compute more than these modules.
    if not model.has_logits_of(native, is_causal=is_causal):
        logger.warning(
            f"The language-model head of `{family}` is kept, but not all that it computes (such as a bias, a "
            "scale or a cap on its logits): its predictions differ at first."
        )
    return True
