"""`simmim adapt`: an encoder and text of one's own, without labels, in; the encoder that knows this text out.

It is `simmim pretrain` with the defaults for an encoder that is trained already, and what comes out is what went in: a
sentence-transformers model keeps all but its weights.
"""

import copy
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from huggingface_hub import snapshot_download
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .. import export, folders
from ..evaluation.tasks import half_pairs
from ..model.configuration_simmim import OBJECTIVES
from ..model.modeling_simmim import SimMIMForPreTraining
from ..model.st_format import FILES_BESIDE_WEIGHTS, source_pooling
from ..options import is_number, option
from ..training import card, checkpoints
from ..training.signals import Interrupted
from ..training.trainer import SimMIMTrainer
from . import console
from .build import build_trainer
from .options import DataArguments, ModelArguments, PretrainingArguments
from .pretrain import Pretraining

logger = logging.get_logger(__name__)

RUN = "simmim"  # the folder, in that of the adapted model, of how it was made
# Of an objective that has both terms: vectors that are good already are lost where masked-token prediction leads.
WEIGHTS = {"contrastive_weight": 1.0, "mlm_weight": 0.1}
STEPS = 40  # that docs/adapt.md measures: a short text is read again until it has given so many
HEAD_LEARNING_RATE = 1e-3  # of a new head, while the encoder is frozen
NOT_OPTIONS = ("text_config", "tokenizer_name", "vocab_size", "num_hidden_layers")  # the adapted model keeps them


@dataclass(kw_only=True)
class AdaptedModelArguments(ModelArguments):
    """`ModelArguments` of a model that is there already."""

    model_name_or_path: str = option(help="Folder or Hub id of a sentence-transformers model or an encoder to adapt.")
    objective: str = option("spans", "What is learned from the text.", choices=list(OBJECTIVES))


@dataclass
class AdaptationTextArguments(DataArguments):
    """`DataArguments` with the default that measured best where an encoder goes on, see docs/adapt.md."""

    first_sentence_probability: float = option(
        0.5,
        "With --objective spans or snippets: how often one view is the first sentence of the text, often a title or a "
        "summary, and the other the rest.",
    )


@dataclass
class AdaptationArguments(PretrainingArguments):
    """`PretrainingArguments` with defaults for an encoder that is trained already."""

    output_dir: str = option(
        "simmim-adapted", f"Folder for the adapted model; how it was made is in the folder `{RUN}` inside."
    )
    num_train_epochs: float | None = option(
        None, f"Passes over the training text. Default: 1, or as many as give {STEPS} steps."
    )
    per_device_train_batch_size: int = option(32, "Sequences a step and device; the others are the negatives.")
    learning_rate: float | None = option(3e-5, "The highest learning rate.")
    warmup_steps: float = option(0.1, "Steps of linear warm-up; below 1: share of all steps.")
    head_warmup: float = option(
        0.1,
        "Where the model has no masked-LM head: a new one is trained beforehand, with the encoder frozen, for so many "
        "steps as this share of all.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.head_warmup, 0, 1):
            raise ValueError(f"--head_warmup is {self.head_warmup!r}: give a share of the steps, from 0 to 1.")


ADAPTATION = (AdaptedModelArguments, AdaptationTextArguments, AdaptationArguments)
ADAPTATION_HELP = {
    "model": ["model_name_or_path", "objective"],
    "text": ["train_file", "validation_file", "dataset_name", "text_column", "text_unit", "max_seq_length"],
    "training": [
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "num_train_epochs", "max_steps"),
        *("per_device_train_batch_size", "learning_rate", "head_warmup", "bf16", "seed"),
    ],
    "evaluation": ["similarity_file"],
}


class Adaptation(Pretraining):
    """One run of `simmim adapt`, as `Pretraining` is one of `simmim pretrain`.

    Raises:
        ValueError, OSError, ImportError: input that cannot work, which includes a model that could not be written in
            the end; the message names the value and the remedy.
    """

    def __init__(
        self, model_args: AdaptedModelArguments, data_args: AdaptationTextArguments, args: AdaptationArguments
    ) -> None:
        export.require(*export.NEEDED["sentence-transformers"])
        check_source(model_args, args)
        preset = OBJECTIVES[model_args.objective]
        has_both_terms = all(preset[name] for name in WEIGHTS)
        for name, weight in WEIGHTS.items():
            if has_both_terms and getattr(model_args, name) is None:
                setattr(model_args, name, weight)
        folder = Path(args.output_dir)
        if folders.is_used(folder, RUN) and not (args.resume_from_checkpoint or args.overwrite_output_dir):
            raise ValueError(
                f"--output_dir `{folder}` is not empty. Give another folder, or --overwrite_output_dir to write over "
                "it."
            )
        args.output_dir = str(folder / RUN)
        self.epochs_are_given = args.num_train_epochs is not None
        super().__init__(model_args, data_args, args)
        if self._warms_up_head and (self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled):
            raise ValueError(
                f"--head_warmup {args.head_warmup}: FSDP and DeepSpeed prepare a model once, and the warm-up would be "
                "a training before the training. Give --head_warmup 0, or leave FSDP and DeepSpeed out."
            )
        self.source = source_folder(model_args.model_name_or_path)
        if args.process_index == 0:
            self._check_that_it_can_be_written()

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir).parent

    def _build_trainer(self) -> SimMIMTrainer:
        args = self.args
        rows = self.text.train
        if not self.epochs_are_given and isinstance(rows, Dataset):
            step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            args.num_train_epochs = max(1.0, float(math.ceil(STEPS * step / len(rows))))
        return super()._build_trainer()

    def _check_that_it_can_be_written(self) -> None:
        """Writes the model as it is: what sentence-transformers reads in another way is found before training."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                export.export_sentence_transformers(self.model, self.tokenizer, folder, self.source)
            except export.ExportError as error:
                name = self.model_args.model_name_or_path
                raise ValueError(
                    f"`{name}` cannot be adapted, for its vectors are not those that are made of it here: {error}"
                ) from error

    def _retrieval_pairs(self) -> Dataset | None:
        """Of the built-in text summaries and bodies, of other text the halves of each held-out document."""
        return super()._retrieval_pairs() or half_pairs(self.held_out["text"], longest=4 * self.max_length)

    @property
    def _warms_up_head(self) -> bool:
        is_needed = self.model.head_is_new and self.model.config.mlm_weight and not self.checkpoint
        return bool(is_needed and self.args.head_warmup)

    def train(self) -> TrainOutput:
        share = self.args.head_warmup
        if self._warms_up_head:
            logger.warning(
                f"`{self.model_args.model_name_or_path}` has no masked-LM head. A new one is trained with the encoder "
                f"frozen for {share:.0%} of the steps, before these (--head_warmup): its first gradients are random."
            )
            self._warm_up_head(share)
            if self.signals.came(self.args.device):
                raise Interrupted
        return super().train()

    def _warm_up_head(self, share: float) -> None:
        """Trains the masked-LM head alone. Nothing of it is saved: a run that is killed meanwhile begins anew."""
        args = copy.copy(self.args)
        frozen = [parameter for parameter in self.model.base_model.parameters() if parameter.requires_grad]
        assert args.num_train_epochs is not None  # `fill_defaults` has set it
        if args.max_steps > 0:
            args.max_steps = max(1, round(share * args.max_steps))
        args.num_train_epochs *= share
        args.learning_rate = HEAD_LEARNING_RATE
        args.save_strategy = "no"
        args.report_to = []
        args.eval_on_start = False
        args.weight_schedule = None
        if self.model.config.contrastive_weight:
            args.weight_schedule = ["contrastive_weight=0:0"]
        for parameter in frozen:
            parameter.requires_grad_(False)
        with tempfile.TemporaryDirectory() as args.output_dir:  # for what a signal makes the Trainer save
            trainer = build_trainer(self.model, self.tokenizer, self.text, self.data_args, args)
            trainer.add_callback(self.signals)
            trainer.train()
        for parameter in frozen:
            parameter.requires_grad_(True)

    def _report(self, results: dict, model: SimMIMForPreTraining) -> None:
        if self.model.head_is_new:
            results["head_warmup"] = self.args.head_warmup
        written = self.folder / folders.SAVING
        shutil.rmtree(written, ignore_errors=True)
        try:
            export.export_sentence_transformers(model, self.tokenizer, written, self.source)
            checkpoints.replace_model(written, self.folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)
        super()._report(results, model)
        card.save_adapted_card(results, self.folder, RUN)

    def _how_to_use(self) -> str:
        return console.adapted_note(str(self.folder), RUN)


def check_source(model_args: AdaptedModelArguments, args: AdaptationArguments) -> None:
    """Refuses what an adapted model could not keep of its source.

    Raises:
        ValueError: an option that would change it, or vectors that are made in a way that is not known here.
    """
    name = model_args.model_name_or_path
    for option_name in NOT_OPTIONS:
        if getattr(model_args, option_name) is not None:
            raise ValueError(
                f"--{option_name}: `simmim adapt` keeps what `{name}` is; `simmim pretrain` has the option."
            )
    if args.push_to_hub:
        raise ValueError(
            f"--push_to_hub: upload the adapted model when it is there: hf upload user/name {args.output_dir} "
            f'--exclude "{RUN}/*"'
        )
    try:
        pooling = source_pooling(name)
    except ValueError as error:
        raise ValueError(f"{error} `simmim adapt` would have to keep it.") from error
    if pooling and model_args.pooling not in (None, pooling):
        raise ValueError(
            f"--pooling {model_args.pooling}: `{name}` has the pooling {pooling}, which is kept: leave it out."
        )


def source_folder(name_or_path: str) -> str | None:
    """Where the files of a sentence-transformers model lie on this machine; None for another checkpoint."""
    if source_pooling(name_or_path) is None:
        return None
    if os.path.isdir(name_or_path):
        return name_or_path
    return snapshot_download(
        name_or_path, allow_patterns=[*FILES_BESIDE_WEIGHTS, "config.json", "model*.safetensors*"]
    )
