"""The folder format of sentence-transformers: read, written, and listed in this file only.

A folder has `modules.json`, a list of modules that are applied one after the other; each has a folder with a
`config.json` of its own. Versions 2 to 6 of sentence-transformers read what is written here.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from .configuration_simmim import Pooling, SimMIMConfig

MODULE_PREFIX = "sentence_transformers.models"  # of the module types in `modules.json`
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")  # that this package can compute
KNOWN_POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max")  # that both packages have

# All files of a sentence-transformers model but its weights and their configuration, as glob patterns.
MODULE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*/config.json")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
FILES_BESIDE_WEIGHTS = (*MODULE_FILES, *TOKENIZER_FILES)


def is_plain(config: SimMIMConfig) -> bool:
    """Whether sentence-transformers has the configured pooling as a module."""
    return config.pooling in KNOWN_POOLINGS and config.pooled_layers == "last"


def write_modules(config: SimMIMConfig, folder: str | os.PathLike) -> None:
    """Writes the files with which `SentenceTransformer(folder)` gives the vectors of the model, of unit length where
    they are compared by the cosine.

    A pooling of sentence-transformers is written as `1_Pooling`; any other is left to the forward of the model, which
    needs version 6 of sentence-transformers.
    """
    # The encoder, then its pooling, then unit length.
    kinds = ["Transformer"]
    if is_plain(config):
        kinds.append("Pooling")
    if config.similarity == "cosine":
        kinds.append("Normalize")
    modules = []
    for index, kind in enumerate(kinds):
        path = f"{index}_{kind}" if index else ""  # the encoder is in the folder itself
        modules.append({"idx": index, "name": str(index), "path": path, "type": f"{MODULE_PREFIX}.{kind}"})
    files: dict[str, Any] = {"modules.json": modules, "sentence_bert_config.json": {}}
    # The pooling of sentence-transformers, or that of the model's own forward.
    if is_plain(config):
        files["1_Pooling/config.json"] = _pooling_settings(config)
    else:
        forward = {"method": "forward", "method_output_name": "pooler_output"}
        files["sentence_bert_config.json"] = {
            "modality_config": {"text": forward},
            "module_output_name": "sentence_embedding",
        }
    if not _is_saved_by_sentence_transformers(folder):
        files["config_sentence_transformers.json"] = {"similarity_fn_name": config.similarity}
    for name, content in files.items():
        target = Path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _pooling_settings(config: SimMIMConfig) -> dict[str, Any]:
    """Of the module `Pooling`, by switches such as `pooling_mode_cls_token` and `pooling_mode_mean_tokens`."""
    token = "token" if config.pooling == "cls" else "tokens"
    return {"word_embedding_dimension": config.embedding_dim, f"pooling_mode_{config.pooling}_{token}": True}


def _is_saved_by_sentence_transformers(folder: str | os.PathLike) -> bool:
    """Whether sentence-transformers itself is saving this model: its settings, with the prompts, are there first."""
    settings = Path(folder, "config_sentence_transformers.json")
    return settings.is_file() and "__version__" in json.loads(settings.read_text(encoding="utf-8"))


def source_pooling(name_or_path: str, **hub_options) -> Pooling | None:
    """The pooling of a sentence-transformers model: mean, cls or max.

    Args:
        hub_options: options of `from_pretrained` by which files are found, such as `revision`

    Returns:
        None for a checkpoint without a pooling module, and for one of SimMIM, which has it in its configuration.

    Raises:
        ValueError: a module or a pooling that is unknown here, such as a Dense module.
    """
    config = _read_json(name_or_path, "config.json", hub_options) or {}
    if config.get("model_type") == SimMIMConfig.model_type:
        return None
    modules = _read_json(name_or_path, "modules.json", hub_options) or []
    # The module types have a dotted name, which differs between versions; the last part is the same in all.
    folders = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    remedy = "`pooling` mean, cls or max takes its encoder alone."
    for kind in folders:
        if kind not in KNOWN_MODULES:
            raise ValueError(
                f"`{name_or_path}` makes its vectors by a module `{kind}`, which is unknown here. {remedy}"
            )
    if "Pooling" not in folders:
        return None
    settings = _read_json(name_or_path, f"{folders['Pooling']}/config.json", hub_options) or {}
    modes = _pooling_modes(settings)
    for pooling in KNOWN_POOLINGS:
        if modes == [pooling]:
            return pooling
    raise ValueError(f"`{name_or_path}` has the pooling {' + '.join(modes)}, which is unknown here. {remedy}")


def _pooling_modes(settings: dict[str, Any]) -> list[str]:
    """The poolings that the settings of a module `Pooling` switch on."""
    if "pooling_mode" in settings:  # from version 5.4 on
        modes = settings["pooling_mode"]
        if isinstance(modes, str):
            return [modes]
        return modes
    # Before that, a switch for each pooling, and the mean without any.
    switched_on = [name for name, value in settings.items() if value is True and name.startswith("pooling_mode_")]
    modes = [re.sub(r"^pooling_mode_|_tokens?$", "", name) for name in switched_on]
    return modes or ["mean"]


def _read_json(name_or_path: str, file: str, hub_options: dict[str, Any]) -> Any:
    """The content of a file of a checkpoint, None where there is no such file."""
    with contextlib.suppress(OSError):
        path = cached_file(name_or_path, file, **hub_options)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    return None
