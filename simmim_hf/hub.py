"""The model card: what was recorded about a run, and nothing else."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from . import reporting
from .configuration_simmim import SimMIMConfig
from .data_collator import DataCollatorForSimMIM

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
PICTURE = "training.png"
CHECKSUM = "<!-- Written by simmim_hf, which replaces this file only while the text above is as it wrote it: {} -->\n"

# The options that a card tells; `config.json` and `training_args.json` beside it have them all.
BACKBONE_OPTIONS = (
    *("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings"),
)
OBJECTIVE_OPTIONS = tuple(name for name in SimMIMConfig.__annotations__ if name != "text_config")
TRAINING_OPTIONS = (
    *("num_train_epochs", "max_steps", "max_minutes", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("chunk_size", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha"),
    *("train_sampling_strategy", "dataloader_drop_last", "gradient_checkpointing", "bf16", "fp16", "seed"),
    "data_seed",
)

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}
POSITIVES = {
    "masked": "its masked copy",
    "dropout": "itself under another dropout mask",
    "deleted": "a copy with tokens deleted",
    "cropped": "another stretch of the same text",
}
# By the weight that an objective has: the tags of what it learns, and the first of those present is the widget's task.
TAGS = {
    "mlm_weight": ("fill-mask", "masked-lm"),
    "contrastive_weight": ("feature-extraction", "sentence-similarity", "contrastive-learning"),
    "clm_weight": ("text-generation", "causal-lm"),
}
BUILT_IN_TEXT = "the docstrings of the installed Python, torch and transformers"


@dataclass(frozen=True)
class Metric:
    """How the `model-index` of a card spells a figure of `results.json`."""

    task: str
    type: str
    name: str
    more_is_better: bool = True


METRICS = {
    "mlm_loss": Metric("fill-mask", "loss", "MLM loss, nats a token", more_is_better=False),
    "mlm_accuracy": Metric("fill-mask", "accuracy", "MLM accuracy"),
    "clm_loss": Metric("text-generation", "loss", "CLM loss, nats a token", more_is_better=False),
    "retrieval_mrr@10": Metric("information-retrieval", "cosine_mrr@10", "MRR@10"),
    "similarity_spearman": Metric("sentence-similarity", "cosine_spearman", "Spearman correlation x 100"),
}


# ---------------------------------------------------------------------------------------------- what a run knows


def run_facts(trainer: Trainer) -> dict:
    """What a Trainer knows of its run, by the keys of `results.json`; what it does not know is left out."""
    args, state, collator = trainer.args, trainer.state, trainer.data_collator
    model = trainer.accelerator.unwrap_model(trainer.model)
    seconds = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    metrics = reporting.HELD_OUT_METRICS
    evaluations = [entry for entry in state.log_history if entry.keys() & metrics.keys()]
    measured = evaluations[-1] if evaluations else {}
    corruption = [f.name for f in dataclasses.fields(collator)] if isinstance(collator, DataCollatorForSimMIM) else []
    held_out = trainer.eval_dataset if not isinstance(trainer.eval_dataset, dict) else None
    sets = {"train_sequences": trainer.train_dataset, "held_out_sequences": held_out}
    facts = {
        "seed": args.seed,
        "versions": reporting.versions(),
        "parameters": model.num_parameters(),
        "backbone": options_of(model.config.text_config, BACKBONE_OPTIONS),
        "objective": options_of(model.config, OBJECTIVE_OPTIONS),
        "corruption": options_of(collator, [name for name in corruption if name != "tokenizer"]),
        "training": options_of(args, TRAINING_OPTIONS) | options_of(trainer, ["weight_schedule"]),
        "precision": _precision(trainer),
        "hardware": reporting.hardware(args),
        "processes": args.world_size,
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "epochs": state.epoch,
        "tokens_seen": state.num_input_tokens_seen if args.include_num_input_tokens_seen == "non_padding" else None,
        "train_seconds": round(seconds[-1], 1) if seconds else None,
        "data": {name: len(rows) for name, rows in sets.items() if hasattr(rows, "__len__")},
        "after": {name.removeprefix("eval_"): measured[name] for name in metrics if name in measured},
        "evaluated_at_step": measured.get("step"),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def options_of(owner, names: Iterable[str]) -> dict:
    """The options that are set, without folders of this machine."""
    values = {name: getattr(owner, name, None) for name in names}
    return reporting.without_folders({name: value for name, value in values.items() if value not in (None, {}, [])})


def _precision(trainer: Trainer) -> str:
    weights = str(trainer.accelerator.unwrap_model(trainer.model).dtype).removeprefix("torch.")
    autocast = AUTOCAST.get(trainer.accelerator.mixed_precision)
    precision = f"{autocast} autocast over {weights} weights" if autocast else weights
    return precision + (", TensorFloat-32 matrix products" if trainer.args.tf32 else "")


# ---------------------------------------------------------------------------------------------- the card


def model_card(
    facts: dict,
    name: str,
    *,
    hub_model_id: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    tags: Sequence[str] = (),
    picture: str | None = None,
) -> ModelCard:
    """The card of a run.

    Args:
        facts: what `results.json` holds, or `run_facts` of a Trainer
        name: the title
        hub_model_id: the id to load the model by; without one the card loads the folder in which it lies
        license: an identifier of the Hub, such as `apache-2.0`
        language: ISO 639 codes
        tags: beside those of the objective
        picture: the training curves, relative to the card

    Raises:
        ValueError: a language or an id that the Hub does not accept.
    """
    for code in language:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", code):
            raise ValueError(f"`{code}` is not a language code: give ISO 639 codes such as `en`, or `multilingual`.")
    if hub_model_id:
        validate_repo_id(hub_model_id)
    objective, data = facts["objective"], facts.get("data", {})
    before, after, baseline = facts.get("before", {}), facts.get("after", {}), reporting.baselines(facts)
    results = _eval_results(after, data)
    learned = [tag for weight, tags_of_term in TAGS.items() if objective[weight] for tag in tags_of_term]
    missing = {"the language of the text": language, "a licence": license}
    return ModelCard.from_template(
        ModelCardData(
            language=list(language) or None,
            license=license,
            library_name="transformers",
            pipeline_tag=learned[0],
            tags=["simmim", *learned, *tags],
            base_model=facts.get("base_model"),
            datasets=data.get("datasets"),
            model_name=name if results else None,
            eval_results=results or None,
        ),
        template_path=str(TEMPLATE),
        facts=facts,
        name=name,
        model_id=hub_model_id or ".",
        is_local=not hub_model_id,
        learned=_listed(_learned(objective)),
        generates=objective["clm_weight"] and facts["backbone"]["model_type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        text=_text(data),
        procedure=_procedure(facts),
        picture=picture,
        options=_all_options(facts),
        figures=_figures(before, after, baseline, facts.get("evaluated_at_step")),
        notes=_notes(facts, before, after, baseline),
        missing=_listed([what for what, given in missing.items() if not given]),
    )


def _learned(objective: dict) -> list[str]:
    positive = POSITIVES[objective["positive_view"]]
    terms = {
        "mlm_weight": "to predict masked tokens",
        "contrastive_weight": f"to tell the vector of a text from those of others, with {positive} as the positive",
        "clm_weight": "to predict the next token",
    }
    return [term for weight, term in terms.items() if objective[weight]]


def _text(data: dict, markdown: bool = True) -> str | None:
    """What the model was trained on; None where it was not recorded."""
    if data.get("built_in"):
        return BUILT_IN_TEXT
    names = data.get("datasets", data.get("files", []))
    if markdown:
        names = [f"[{n}](https://huggingface.co/datasets/{n})" if "datasets" in data else f"`{n}`" for n in names]
    config = f", configuration {data['dataset_config']}" if "dataset_config" in data else ""
    return f"{_listed(names)}{config}" if names else None


def _eval_results(after: dict[str, float], data: dict) -> list[EvalResult]:
    """The measured figures for the `model-index`; one that is not finite is none."""
    text = _text(data, markdown=False) or "text that was not recorded"
    sources = dict.fromkeys(METRICS, f"{text}; held out: {data['held_out']}" if "held_out" in data else text)
    sources["similarity_spearman"] = data.get("similarity_file")
    return [
        EvalResult(
            task_type=metric.task,
            dataset_type="unknown",  # the id on the Hub of the held-out part, which has none
            dataset_name=sources[name],
            metric_type=metric.type,
            metric_name=metric.name,
            metric_value=round(after[name], 4),
        )
        for name, metric in METRICS.items()
        if name in after and math.isfinite(after[name])
    ]


def _procedure(facts: dict) -> list[tuple[str, str]]:
    """The facts of a run as rows of a table, without those that are not known."""
    data, steps = facts.get("data", {}), facts["steps"]
    planned = facts.get("planned_steps", steps)
    resumed = f", from step {facts['resumed_at_step']:,} on" if "resumed_at_step" in facts else ""
    length = f"{data['max_length']:,} tokens" if "max_length" in data else None
    if length and data.get("truncated_sequences"):
        length += f"; {data['truncated_sequences']:,} longer training sequences were cut"
    rows = {
        "training sequences": _number(data.get("train_sequences")),
        "tokens in them": _number(data.get("train_tokens")),
        "held-out sequences": _number(data.get("held_out_sequences")),
        "longest sequence": length,
        "tokenizer": data.get("tokenizer"),
        "steps": f"{steps:,}" + (f" of {planned:,} planned" if steps < planned else ""),
        "epochs": _number(facts.get("epochs"), ".2f"),
        "tokens read, without padding and without copies": _number(facts.get("tokens_seen")),
        "training time": f"{facts['train_seconds']:,} seconds{resumed}" if "train_seconds" in facts else None,
        "precision": facts.get("precision"),
        "hardware of a process": facts.get("hardware"),
        "processes": _number(facts.get("processes")),
        "seed": facts.get("seed"),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    return [(title, value) for title, value in rows.items() if value is not None]


def _all_options(facts: dict) -> list[tuple[str, str]]:
    groups = {group: facts.get(group, {}) for group in ("backbone", "objective", "corruption", "training")}
    groups["data"] = facts.get("data", {}).get("options", {})
    options = [(f"{group}: {name}", value) for group, values in groups.items() for name, value in values.items()]
    return [(name, json.dumps(value, ensure_ascii=False).replace("|", "\\|")) for name, value in options]


def _figures(before: dict, after: dict, baseline: dict, step: int | None) -> list[list[str]]:
    """The cells of the table of held-out figures, its head first, without columns in which nothing stands."""
    head = ["held out", "before training", f"after {step:,} steps" if step else "after training", "baseline"]
    rows = [
        [title, *map(_figure, figures[:2]), " ".join(filter(None, [_figure(figures[2]), note]))]
        for title, *figures, note in reporting.held_out_rows(before, after, baseline)
    ]
    kept = [column for column in range(len(head)) if any(row[column] for row in rows)]
    return [[row[column] for column in kept] for row in (head, *rows)] if rows else []


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def _notes(facts: dict, before: dict, after: dict, baseline: dict) -> list[str]:
    """What the figures mean, and where training did not help."""
    notes = []
    if "retrieval_candidates" in facts:
        candidates = f"{facts['retrieval_candidates']:,} held-out candidates"
        notes.append(f"Retrieval finds a docstring's body by its summary line among {candidates}.")
    if "similarity_spearman" in after:
        scored = facts["data"]["similarity_file"]
        notes.append(f"Similarity is the correlation of cosines with the scores of the pairs in `{scored}`.")
    for others, said in ((before, "No better than before training"), (baseline, "No better than the baseline")):
        compared = [name for name in METRICS if name in after and name in others]
        behind = [reporting.titles()[name] for name in compared if not _is_better(METRICS[name], after, others, name)]
        notes += [f"**{said}: {_listed(behind)}.**"] if behind else []
    return notes


def _is_better(metric: Metric, after: dict, others: dict, name: str) -> bool:
    return after[name] > others[name] if metric.more_is_better else after[name] < others[name]


def _number(value: float | None, format: str = "") -> str | None:
    return None if value is None else f"{value:,{format}}"


def _listed(parts: Sequence[str], conjunction: str = "and") -> str:
    return f" {conjunction} ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


# ---------------------------------------------------------------------------------------------- files


def save_card(card: ModelCard, folder: str | Path, overwrite: bool = False) -> Path:
    """Writes README.md with a checksum in its last line, by which an edited card is known.

    Raises:
        FileExistsError: there is a README.md that is not as this function wrote it, and `overwrite` is False.
    """
    path = Path(folder, "README.md")
    if path.exists() and not overwrite and not _is_ours(path.read_text(encoding="utf-8")):
        raise FileExistsError(f"`{path}` was edited or written by a person and stays; --overwrite replaces it.")
    text = f"{str(card).rstrip()}\n\n"
    path.write_text(text + CHECKSUM.format(_checksum(text)), encoding="utf-8")
    return path


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_ours(readme: str) -> bool:
    start = readme.rfind(CHECKSUM.split("{")[0])
    return start >= 0 and readme[start:] == CHECKSUM.format(_checksum(readme[:start]))


def write_trainer_card(trainer: Trainer, facts: dict, name: str | None, **options) -> None:
    """README.md and the training curves in a Trainer's `output_dir`; an edited README.md stays, with a warning.

    Args:
        facts: as for `model_card`
        name: the title; by default the name on the Hub, or that of the folder
        options: `license`, `language` and `tags` of `model_card`
    """
    folder, picture = Path(trainer.args.output_dir), None
    if any(entry.keys() & {"loss", "eval_loss"} for entry in trainer.state.log_history):
        picture = PICTURE
        reporting.plot_training(trainer.state.log_history, str(folder / PICTURE))
    hub_model_id = trainer.hub_model_id or trainer.args.hub_model_id
    name = name or _name(hub_model_id, folder)
    try:
        save_card(model_card(facts, name, hub_model_id=hub_model_id, picture=picture, **options), folder)
    except FileExistsError as error:
        logger.warning(f"No model card is written: {error}")


def _name(hub_model_id: str | None, folder: Path) -> str:
    return hub_model_id.split("/")[-1] if hub_model_id else folder.resolve().name


@dataclass
class CardArguments:
    """What `simmim card` is told."""

    model: str = field(metadata={"help": "Folder that `simmim pretrain` wrote."})
    license: str | None = field(default=None, metadata={"help": "Licence, as the Hub spells it: apache-2.0, mit, ..."})
    language: list[str] | None = field(default=None, metadata={"help": "ISO 639 codes of the text: en, zh, ..."})
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name on the Hub, by which the card loads."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a README.md that a person has edited."})


def write_card(arguments: CardArguments) -> Path:
    """README.md of a folder from its `results.json`, and the picture from `trainer_state.json` if there is none.

    Raises:
        FileNotFoundError: there is no such folder, or no `results.json` in it.
        FileExistsError: there is a README.md that a person has edited.
        ValueError: a file that cannot be read, or an option that the Hub does not accept.
    """
    folder = Path(arguments.model)
    if not folder.is_dir():
        raise FileNotFoundError(f"--model: there is no folder `{folder}`.")
    if not (folder / "results.json").is_file():
        raise FileNotFoundError(
            f"`{folder}` has no results.json. `simmim pretrain` records a run in it, and a card states nothing else."
        )
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if "objective" not in results:
        raise ValueError(f"`{folder}/results.json` does not record the model: it is not of this version's pretrain.")
    picture, state = folder / PICTURE, folder / "trainer_state.json"
    if not picture.exists() and state.exists():
        reporting.plot_training(json.loads(state.read_text(encoding="utf-8"))["log_history"], str(picture))
    card = model_card(
        results,
        _name(arguments.hub_model_id, folder),
        hub_model_id=arguments.hub_model_id,
        license=arguments.license,
        language=arguments.language or (),
        picture=PICTURE if picture.exists() else None,
    )
    return save_card(card, folder, arguments.overwrite)
