"""`simmim export`: a checkpoint in the forms that other libraries open.

Every export is opened again as its users will open it, and compared with its source on real sentences.
"""

import contextlib
import copy
import importlib.util
import io
import logging as python_logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from . import folders, records
from .data.tokenization import load_tokenizer
from .model import modeling_simmim
from .model.backbones import can_be_decoder, class_with_head, is_decoder_family, native_head, without_pooler
from .model.configuration_simmim import SimMIMConfig
from .model.encoder import SimMIMPreTrainedModel, give_usual_mode
from .model.st_format import FILES_BESIDE_WEIGHTS, is_plain
from .options import error_prefix, option, reason

logger = logging.get_logger(__name__)

# What the exports are compared on: short and long, several scripts, and a text beyond any usual sliding window.
SENTENCES = [
    "Rain.",
    "The old bridge was closed for repairs.",
    "Where does the river that runs through this valley reach the sea, and how long is it in all?",
    "她在河边的小镇上开了一家书店。每天早上七点开门。",
    "Der Zug nach München fährt heute von Gleis 7 und nicht, wie angezeigt, von Gleis 12.",
    "In 1998 the council sold the mill for 2.4 million; nobody has lived there since, and its roof has fallen in.",
]
LONG_TEXT = " ".join(SENTENCES * 3)

TOLERANCE = {"backbone": 1e-5, "sentence-transformers": 1e-5, "onnx": 1e-4, "safetensors-only": 1e-5}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "sentence-transformers": ("sentence-transformers",)}
ONNX_FILE = "model.onnx"
QUANTIZED_FILE = "model_quantized.onnx"
PROTOBUF_LIMIT = 2**31
CARD_FILES = ("README.md", "training.png")


class ExportError(RuntimeError):
    """An export that differs from its source."""


@dataclass
class ExportArguments:
    """What is exported, and to what."""

    model: str = option(help="Folder or Hub id of a SimMIM checkpoint.")
    to: str = option(
        help="backbone: the encoder and its language-model head in transformers' own class. sentence-transformers: a "
        "folder for SentenceTransformer. onnx: a graph with the pooled vectors. safetensors-only: the checkpoint "
        "without what only training needs.",
        choices=list(TOLERANCE),
    )
    output_dir: str = option(help="Folder for the export.")
    quantize: bool = option(default=False, help=f"With onnx: {QUANTIZED_FILE} too, in int8.")
    keep_projection: bool = option(
        default=False, help="With safetensors-only: keep the projection, which only training uses."
    )
    overwrite_output_dir: bool = option(default=False, help="Write into --output_dir though it is not empty.")

    def __post_init__(self) -> None:
        for name, form in (("quantize", "onnx"), ("keep_projection", "safetensors-only")):
            if getattr(self, name) and self.to != form:
                raise ValueError(f"--{name} goes with --to {form}, not with --to {self.to}.")


def run(arguments: ExportArguments) -> None:
    """Exports a checkpoint, and prints how far the export is from it. A wrong export does not reach `output_dir`.

    Raises:
        ValueError, OSError, ImportError: the input cannot work; the message names the remedy.
        ExportError: the export differs from its source.
        NotSaved: a file could not be written.
    """
    name = arguments.model
    folder = Path(arguments.output_dir)
    if folders.is_used(folder):
        if Path(name).is_dir() and folder.samefile(name):
            raise ValueError(f"--output_dir `{folder}` is the checkpoint itself. Give another folder.")
        if not arguments.overwrite_output_dir:
            raise ValueError(
                f"--output_dir `{folder}` is not empty. Give another folder, or --overwrite_output_dir to write over "
                "it."
            )
    require(*NEEDED.get(arguments.to, ()))
    with folders.claimed(folder), folders.writing(folder):
        _export(arguments)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Saved in {folder} ({size / 1e6:.1f} MB)")


def _export(arguments: ExportArguments) -> None:
    name = arguments.model
    with error_prefix("--model"):
        model = load_checkpoint(name)
        tokenizer = load_tokenizer(name)
    with tempfile.TemporaryDirectory() as private:
        staging = Path(private, "export")  # with the usual mode, which copytree gives to the folder of the export
        staging.mkdir()
        difference = _write(arguments, model, tokenizer, staging)
        print(
            f"{arguments.to}: the largest difference to `{name}` over {len(SENTENCES) + 1} texts is {difference:.1e} "
            f"(limit {TOLERANCE[arguments.to]:.0e})"
        )
        if arguments.quantize:
            cosine = quantize_onnx(model, tokenizer, staging)
            print(f"int8: the cosine of its vectors and those of `{name}` is {cosine:.4f} at least")
        shutil.copytree(staging, arguments.output_dir, dirs_exist_ok=True)


def _write(
    arguments: ExportArguments, model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> float:
    """Writes the form that was chosen; its largest difference to the model."""
    if arguments.to == "backbone":
        return export_backbone(model, tokenizer, folder)
    if arguments.to == "sentence-transformers":
        return export_sentence_transformers(model, tokenizer, folder)
    if arguments.to == "onnx":
        return export_onnx(model, tokenizer, folder)
    source = Path(arguments.model)
    difference = export_checkpoint(model, tokenizer, folder, keep_projection=arguments.keep_projection)
    for name in CARD_FILES:
        if (source / name).is_file():
            copy_own(source / name, folder / name, source)
    return difference


def require(*packages: str) -> None:
    """Raises an ImportError with the command that installs what is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        raise ImportError(f"this export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def load_checkpoint(name_or_path: str) -> SimMIMPreTrainedModel:
    """A SimMIM checkpoint in the class that it was saved from, in evaluation mode.

    Raises:
        ValueError: there is no such model, it is not a SimMIM checkpoint, or it has no weights in safetensors.
    """
    with error_prefix(f"`{name_or_path}` is neither a folder with a SimMIM checkpoint nor a model on the Hub"):
        config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != SimMIMConfig.model_type:
        raise ValueError(
            f"`{name_or_path}` is a `{config.model_type}`, not a SimMIM checkpoint. Make one of it with "
            "`SimMIMForPreTraining.from_backbone`, or with `simmim pretrain --model_name_or_path`."
        )
    with error_prefix(f"the model `{name_or_path}` cannot be loaded"):
        architectures = config.architectures or ["SimMIMModel"]
        model_class = getattr(modeling_simmim, architectures[0])
        return model_class.from_pretrained(name_or_path)


@torch.no_grad()
def export_backbone(
    model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike
) -> float:
    """Writes `native_model(model)` and its tokenizer, which transformers opens without this package.

    Returns:
        The largest difference of token vectors and logits to those of `model`, relative to the largest value.

    Raises:
        ExportError: the difference is above 1e-5, or a weight is missing or left over.
        ValueError: transformers' own class cannot read as the model was trained to.
    """
    _check_padding(model, tokenizer)
    if not is_plain(model.config):
        logger.warning("The pooling stays behind: transformers' own class has no place for it.")
    native = native_model(model)
    native.save_pretrained(folder)
    give_usual_mode(Path(folder).glob("*.safetensors"))
    _fitted(model, tokenizer).save_pretrained(folder)
    native = _reload(type(native), folder, **without_pooler(type(native)))
    source = _reference(model)
    pairs = []
    for _, batch, expected in _expected_outputs(source, tokenizer):
        real = batch["attention_mask"].bool()  # (batch, length): padding is left out
        hidden = expected.last_hidden_state[real]  # (tokens, hidden)
        pairs.append((native.base_model(**batch).last_hidden_state[real], hidden))
        if native.base_model is not native:  # it has the language-model head
            logits = native(**batch).logits[real]  # (tokens, vocabulary)
            pairs.append((logits, source.lm_head(hidden)))
    return _largest_difference("backbone", pairs)


@torch.no_grad()
def export_sentence_transformers(
    model: SimMIMPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    source: str | os.PathLike | None = None,
) -> float:
    """Writes a folder that `SentenceTransformer(folder)` opens.

    Its modules are the native backbone, the configured pooling and, for the cosine, `Normalize`: its vectors are then
    `pooler_output` divided by its length. There are no prompts. sentence-transformers has no attention pooling,
    nor one of two layers: such a checkpoint is written as it is, code included, and opens with
    `trust_remote_code=True`.

    Args:
        source: the folder of the sentence-transformers model from which the encoder comes. Then all but the weights
            stays as it is there: modules, prompts, maximum length, tokenizer.

    Returns:
        The largest difference of these vectors, without a prompt, relative to the largest value.

    Raises:
        ExportError: the difference is above 1e-5.
        ValueError: as `export_backbone`.
    """
    require(*NEEDED["sentence-transformers"])
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    _check_padding(model, tokenizer)
    if source is None:
        _write_sentence_transformer(model, tokenizer, folder)
    else:
        _write_as_in(source, model, folder)
    give_usual_mode(Path(folder).glob("*.safetensors"))
    exported = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    normalizes = any(isinstance(module, Normalize) for module in exported)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = exported.max_seq_length
    pairs = []
    for texts, _, expected in _expected_outputs(model, tokenizer):
        vectors = expected.pooler_output  # (texts, dim)
        if normalizes:
            vectors = normalize(vectors, dim=-1)
        # (texts, dim), or the first coordinates where `source` truncates its vectors
        actual = exported.encode(texts, prompt="", convert_to_tensor=True)
        pairs.append((actual, vectors[:, : actual.shape[1]]))
    return _largest_difference("sentence-transformers", pairs)


def _write_as_in(source: str | os.PathLike, model: SimMIMPreTrainedModel, folder: str | os.PathLike) -> None:
    """The files of a sentence-transformers model with the weights of the encoder of `model`."""
    for pattern in FILES_BESIDE_WEIGHTS:
        for file in Path(source).glob(pattern):
            copy_own(file, Path(folder, file.relative_to(source)), Path(source))
    native, info = AutoModel.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        native.pooler = None  # BERT's own, which is never used: as it is in the source, there or not
    loaded = native.load_state_dict(model.base_model.encoder.state_dict(), strict=False)
    wrong = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if not key.startswith("pooler."))]
    if wrong:
        raise ExportError(f"the encoder has not the weights of `{source}`: {', '.join(wrong[:3])}.")
    native.save_pretrained(folder)


def copy_own(file: Path, target: Path, source: Path) -> None:
    """Copies a file of the folder `source` to `target`.

    Raises:
        ValueError: it is a link out of that folder. What is on the other end was not meant to be shared.
    """
    home = source.resolve()
    owned = [home]
    if home.parent.name == "snapshots":  # of the Hub's cache, where each file is a link to its content
        owned.append(home.parents[1] / "blobs")
    if not any(file.resolve().is_relative_to(folder) for folder in owned):
        raise ValueError(
            f"`{file}` is a link to what is outside of `{source}`, and would be copied into the new model: put the "
            "file itself there, or remove the link."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def _write_sentence_transformer(
    model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    config = model.config
    tokenizer = _fitted(model, tokenizer, padding_side="right")
    if not is_plain(config):
        copy.deepcopy(model.base_model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    encoder = _bare_encoder(model, _native_config(model))
    options = without_pooler(type(encoder))
    with tempfile.TemporaryDirectory() as plain:
        encoder.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        transformer = Transformer(plain, model_kwargs=options)
        modules = [transformer, Pooling(config.embedding_dim, pooling_mode=config.pooling)]
        if config.similarity == "cosine":
            modules.append(Normalize())
        exported = SentenceTransformer(modules=modules, similarity_fn_name=config.similarity, device="cpu")
        exported.save_pretrained(str(folder), create_model_card=False)
    # Without this, opening the folder warns of missing weights: those of the pooler, which is not used.
    settings = Path(folder, "sentence_bert_config.json")
    records.write_json(settings, {**records.read_json(settings), "model_kwargs": options})


@torch.no_grad()
def export_onnx(model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike) -> float:
    """Writes `model.onnx` in float32, for any batch and length, the backbone's configuration and the tokenizer.

    The graph takes what the saved tokenizer gives, and returns `last_hidden_state` (batch, length, hidden) and
    `pooler_output` (batch, dim), the configured pooling. Padding may stand on either side.

    Returns:
        The largest difference of both to those of `model`, relative to the largest value.

    Raises:
        ExportError: the difference is above 1e-4, or the backbone cannot be traced.
    """
    require(*NEEDED["onnx"])
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    encoder = copy.deepcopy(_reference(model).base_model)
    encoder.encoder.set_attn_implementation("sdpa")  # reading without padding depends on the lengths in the batch
    _, traced, _ = next(_expected_outputs(model, tokenizer))  # (batch, length) each
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    options = OnnxConfig(dynamic=True, dynamic_shapes=dict.fromkeys(traced, axes))
    try:
        with _quiet():
            exported = OnnxExporter().export(encoder, traced, options)
    except Exception as error:  # every backbone has its own way of not being traceable
        family = model.config.text_config.model_type
        raise ExportError(f"this `{family}` cannot be made a graph: {error}") from error
    graph = getattr(exported, "program", None)
    if graph is None:  # transformers 5.17 returns the program of torch itself
        graph = exported.model
    size = sum(parameter.numel() * 4 for parameter in encoder.parameters())
    external = f"{ONNX_FILE}.data" if size > 0.9 * PROTOBUF_LIMIT else None
    ClearMetadataAndDocStringPass()(graph)  # stack traces with the folders of this machine
    onnx_ir.save(graph, Path(folder, ONNX_FILE), external_data=external)
    model.config.text_config.save_pretrained(folder)
    _fitted(model, tokenizer).save_pretrained(folder)

    pairs = []
    for _, batch, expected in _expected_outputs(model, tokenizer):
        real = batch["attention_mask"].bool()  # (batch, length): padding is left out
        hidden, pooled = _run_onnx(Path(folder, ONNX_FILE), batch)
        pairs.append((hidden[real], expected.last_hidden_state[real]))  # (tokens, hidden)
        pairs.append((pooled, expected.pooler_output))  # (batch, dim)
    return _largest_difference("onnx", pairs)


@torch.no_grad()
def quantize_onnx(
    model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike
) -> float:
    """Writes `model_quantized.onnx` beside the `model.onnx` of `export_onnx`: int8 weights, activations as they come.

    Returns:
        The smallest cosine of its sentence vectors and those of `model`.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    graph = onnx.load(Path(folder, ONNX_FILE), load_external_data=False).graph
    vectors = {weights.name for weights in graph.initializer if len(weights.dims) == 1}
    # The query of attention pooling: ONNX Runtime has no product of int8 with a single vector.
    kept = [node.name for node in graph.node if node.op_type == "MatMul" and vectors & set(node.input)]
    # Seven bits of the eight: two products of eight bits overflow on processors without VNNI, and vectors turn wrong.
    with _quiet():
        quantize_dynamic(
            Path(folder, ONNX_FILE),
            Path(folder, QUANTIZED_FILE),
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=kept,
            use_external_data_format=Path(folder, f"{ONNX_FILE}.data").exists(),
        )
    smallest = []
    for _, batch, expected in _expected_outputs(model, tokenizer):
        _, pooled = _run_onnx(Path(folder, QUANTIZED_FILE), batch)
        cosines = torch.cosine_similarity(pooled, expected.pooler_output)  # (batch, dim) twice -> (batch,)
        smallest.append(cosines.min().item())
    return min(smallest)


@torch.no_grad()
def export_checkpoint(
    model: SimMIMPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    *,
    keep_projection: bool = False,
) -> float:
    """Writes the checkpoint as one shares it: weights in safetensors, configuration, code and tokenizer.

    Args:
        keep_projection: keep the projection between pooling and contrastive loss, to go on with pre-training

    Returns:
        The largest difference of the sentence vectors to those of `model`, relative to the largest value.

    Raises:
        ExportError: the difference is above 1e-5, or a weight is missing or left over.
    """
    shared = copy.deepcopy(model)
    if not keep_projection:
        shared.config.projection_dim = None
        if hasattr(shared, "projection"):
            shared.projection = None
    shared.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder = _reload(type(model), folder).base_model
    pairs = []
    for _, batch, expected in _expected_outputs(model, tokenizer):
        pairs.append((encoder(**batch).pooler_output, expected.pooler_output))  # (batch, dim)
    return _largest_difference("safetensors-only", pairs)


def native_model(model: SimMIMPreTrainedModel) -> PreTrainedModel:
    """The encoder in transformers' own class, with the language-model head where it fits its family's.

    A decoder that was trained in both directions gets `is_causal=False` in its configuration, and an encoder that was
    trained from left to right `is_decoder=True`, which transformers obeys.

    Raises:
        ValueError: transformers' class of an encoder cannot read from left to right, as this one was trained.
    """
    model = _reference(model, model.dtype)
    text_config = _native_config(model)
    native, why_not = _native_with_head(model, text_config)
    if native is None:
        logger.warning(f"Exported without a language-model head: {why_not}.")
        native = _bare_encoder(model, text_config)
    return native.eval()


def _native_config(model: SimMIMPreTrainedModel) -> PreTrainedConfig:
    config = model.config
    text_config = copy.deepcopy(config.text_config)
    family = text_config.model_type
    text_config._attn_implementation = None  # ours is known in this process only
    text_config.tie_word_embeddings = config.tie_word_embeddings
    # Not by the encoder's layers: `SimMIMForCausalLM` makes a decoder of every backbone.
    if is_decoder_family(family) or getattr(text_config, "is_decoder", False):
        if not config.objective.is_causal:
            text_config.is_causal = False
    elif config.objective.is_causal:
        if not can_be_decoder(family):
            raise ValueError(
                f"this model was trained to read from left to right only, and transformers' own class of a `{family}` "
                "reads in both directions. Export it with --to onnx or --to safetensors-only."
            )
        text_config.is_decoder = True
    return text_config


def _bare_encoder(model: SimMIMPreTrainedModel, text_config: PreTrainedConfig) -> PreTrainedModel:
    encoder = model.base_model.encoder
    bare = AutoModel.from_config(text_config, dtype=encoder.dtype, **without_pooler(type(encoder)))
    bare.load_state_dict(encoder.state_dict())
    return bare.eval()


def _native_with_head(
    model: SimMIMPreTrainedModel, text_config: PreTrainedConfig
) -> tuple[PreTrainedModel | None, str]:
    """The backbone with its family's head, or None and why the head cannot be had."""
    family = text_config.model_type
    head = native_head(text_config)
    if not hasattr(model, "lm_head"):
        return None, f"`{type(model).__name__}` has none"
    if head is None:
        return None, f"that of `{family}` is not known here"
    head_class: Any = class_with_head(text_config)  # an Auto class, which every family with a known head has
    native = head_class.from_config(text_config, dtype=model.dtype).eval()
    native.base_model.load_state_dict(model.base_model.encoder.state_dict())
    for ours, theirs in head.parts().items():
        native.get_submodule(theirs).load_state_dict(getattr(model.lm_head, ours).state_dict())
    # BERT and its kin name the decoder's bias twice; where the decoder is not tied, these are two parameters.
    owner = native.get_submodule(head.decoder.rpartition(".")[0])
    if isinstance(getattr(owner, "bias", None), torch.nn.Parameter):
        owner.bias.data.copy_(model.lm_head.decoder.bias.data)
    if not model.has_logits_of(native):
        return None, f"that of `{family}` computes more than ours, such as a scale or a cap on its logits"
    return native, ""


def _reload(model_class: type[PreTrainedModel], folder: str | os.PathLike, **options) -> PreTrainedModel:
    """The saved model as others load it, in float32; refuses it where weights are missing or left over."""
    loaded, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if wrong:
        raise ExportError(f"the exported `{model_class.__name__}` does not load completely: {wrong}")
    return loaded.eval()


def _reference(model: SimMIMPreTrainedModel, dtype: torch.dtype = torch.float32) -> SimMIMPreTrainedModel:
    """The model in evaluation mode, on the CPU, in `dtype`: a copy where it is not so already."""
    if not model.training and model.dtype == dtype and model.device.type == "cpu":
        return model
    return copy.deepcopy(model).to("cpu", dtype).eval()


def _check_padding(model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    text_config = model.config.text_config
    if model.base_model.first_position and tokenizer.pad_token_id != text_config.pad_token_id:
        raise ValueError(
            f"the tokenizer's `pad_token_id` is {tokenizer.pad_token_id} and that of the model is "
            f"{text_config.pad_token_id}, by which transformers' own `{text_config.model_type}` counts positions: its "
            "vectors would be wrong. Export to onnx, or use the tokenizer of the backbone."
        )


def _fitted(model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options) -> PreTrainedTokenizerBase:
    """A copy that truncates to what the model reads, and gives the inputs that it was trained on."""
    tokenizer = copy.deepcopy(tokenizer)
    text_config = model.config.text_config
    options["model_max_length"] = min(tokenizer.model_max_length, model.base_model.max_length)
    names = list(tokenizer.model_input_names)
    if "token_type_ids" in names and not hasattr(text_config, "type_vocab_size"):
        names.remove("token_type_ids")  # GPT-2, for one, would look them up among the words
    options["model_input_names"] = names
    for name, value in options.items():
        setattr(tokenizer, name, value)
        tokenizer.init_kwargs[name] = value  # only what is in there is saved
    return tokenizer


@torch.no_grad()
def _expected_outputs(
    model: SimMIMPreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[str], dict[str, torch.Tensor], BaseModelOutputWithPooling]]:
    """A batch of several sentences and then one of a long text, on which every export is compared with its source:
    the texts, the columns of the tokenizer, (batch, length) each, and the outputs of the encoder of `model`."""
    if tokenizer.pad_token is None:
        raise ValueError(
            "the tokenizer of --model has no pad token, and a batch of texts cannot be made: set `pad_token` first."
        )
    source = _reference(model)
    tokenizer = _fitted(model, tokenizer, padding_side="right")  # which does not move absolute positions
    for texts in (SENTENCES, [LONG_TEXT]):
        batch = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
        yield texts, batch, source.base_model(**batch)


def _run_onnx(file: Path, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`last_hidden_state` (batch, length, hidden) and `pooler_output` (batch, dim) of ONNX Runtime on the CPU."""
    from onnxruntime import InferenceSession

    feed = {name: column.numpy() for name, column in batch.items()}
    try:
        session = InferenceSession(file, providers=["CPUExecutionProvider"])
        hidden, pooled = session.run(["last_hidden_state", "pooler_output"], feed)
    except Exception as error:  # its errors have no class in common
        raise ExportError(f"ONNX Runtime cannot run the graph {Path(file).name}: {reason(error)}") from error
    return torch.from_numpy(hidden), torch.from_numpy(pooled)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress, and their warning that other versions were tested: every result is compared."""
    disabled = python_logging.root.manager.disable
    python_logging.disable(python_logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        python_logging.disable(disabled)


def _largest_difference(route: str, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Of actual and expected values, relative to the largest expected one where that is above 1."""
    differences = []
    for actual, expected in pairs:  # of one shape each
        scale = expected.abs().max().clamp(min=1)  # ()
        differences.append((actual - expected).abs().max() / scale)
    difference = torch.stack(differences).max().item()
    if not difference <= TOLERANCE[route]:  # NaN included
        raise ExportError(
            f"the exported model differs from its source by {difference:.1e}, more than {TOLERANCE[route]:.0e}. This "
            "is a fault of the export: please report it with the checkpoint's config.json."
        )
    return difference
