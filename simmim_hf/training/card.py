"""The model card: what was recorded about a run, and nothing else."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer
from transformers.utils import logging

from .. import records, tables
from ..evaluation.bootstrap import CONFIDENCE
from ..evaluation.results import markdown_table
from ..metric_catalogue import BASELINES, METRICS, as_text, listed, metric_of, title
from ..model.configuration_simmim import POSITIVE_VIEWS
from ..options import error_prefix, option
from .curves import plot_training

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
PLOT = "training.png"
CHECKSUM = "<!-- Written by simmim_hf, which replaces this file only while the text above is as it wrote it: {} -->\n"


# By the weight that an objective has: the tags of what it learns, and the first of those present is the widget's task.
TAGS = {
    "mlm_weight": ("fill-mask", "masked-lm"),
    "contrastive_weight": ("feature-extraction", "sentence-similarity", "contrastive-learning"),
    "clm_weight": ("text-generation", "causal-lm"),
}
BUILT_IN_TEXT = "the docstrings of the installed Python, torch and transformers"


def model_card(
    facts: dict,
    name: str,
    *,
    hub_model_id: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    tags: Sequence[str] = (),
    plot: str | None = None,
    evaluations: Sequence[str] = (),
) -> ModelCard:
    """The card of a run.

    Args:
        facts: what `results.json` holds, or `run_facts` of a Trainer
        name: the title
        hub_model_id: the id to load the model by; without one the card loads the folder in which it lies
        license: an identifier of the Hub, such as `apache-2.0`
        language: ISO 639 codes
        tags: beside those of the objective
        plot: the training curves, relative to the card
        evaluations: folders that `simmim evaluate` wrote

    Raises:
        ValueError: a language or an id that the Hub does not accept, or no results of an evaluation.
    """
    check_options(hub_model_id, language)
    facts = records.printable(facts)
    name = records.printable(name)
    objective = _learned_by_all(facts)
    data = facts.get("data", {})
    results = _eval_results(facts.get("after", {}), data)
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
        learned=listed(_learned(objective)),
        predicts=objective["mlm_weight"] > 0,
        generates=objective["clm_weight"] > 0,
        text=_text(data),
        procedure=_procedure(facts),
        earlier=[(run, _procedure(run)) for run in facts.get("earlier_runs", ())],
        plot=plot,
        options=_all_options(facts),
        metrics=_metrics(facts),
        evaluations=[_evaluation(Path(folder)) for folder in evaluations],
        notes=_notes(facts),
        missing=listed([what for what, given in missing.items() if not given]),
    )


def check_options(hub_model_id: str | None, language: Sequence[str]) -> None:
    """Refuses what the Hub does not accept. Raises a ValueError."""
    for code in language:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", code):
            raise ValueError(f"`{code}` is not a language code: give ISO 639 codes such as `en`, or `multilingual`.")
    if hub_model_id:
        with error_prefix("--hub_model_id"):
            validate_repo_id(hub_model_id)


def _learned_by_all(facts: dict) -> dict:
    """The objective of a run, with the weights of the one before it where this one left the encoder as it was."""
    objective = facts["objective"]
    runs = facts.get("earlier_runs", [])
    leaves_encoder = objective.get("contrastive_gradient") == "pooler" and not objective["mlm_weight"]
    if not (leaves_encoder and not objective["clm_weight"] and runs):
        return objective
    before = runs[-1].get("objective", {})
    return {**objective, **{weight: objective[weight] or before.get(weight, 0) for weight in TAGS}}


def _learned(objective: dict) -> list[str]:
    positive = POSITIVE_VIEWS[objective["positive_view"]]
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
    if not names:
        return None
    if markdown and "datasets" in data:
        names = [f"[{name}](https://huggingface.co/datasets/{name})" for name in names]
    elif markdown:
        names = [f"`{name}`" for name in names]
    text = listed(names)
    if "dataset_config" in data:
        text += f", configuration {data['dataset_config']}"
    return text


def _eval_results(after: dict[str, float], data: dict) -> list[EvalResult]:
    """The measured metrics for the `model-index`; one that is not finite is left out."""
    text = _text(data, markdown=False) or "text that was not recorded"
    if "held_out" in data:
        text += f"; held out: {data['held_out']}"
    results = []
    for name, value in after.items():
        metric = metric_of(name)
        if not metric.hub_metric or value is None or not math.isfinite(value):
            continue
        task_type, metric_type = metric.hub_metric
        is_similarity = name == "similarity_spearman"
        result = EvalResult(
            task_type=task_type,
            dataset_type="unknown",  # the id on the Hub of the held-out part, which has none
            dataset_name=data["similarity_file"] if is_similarity else text,
            metric_type=metric_type,
            metric_name=metric.title,
            metric_value=round(value, 4),
        )
        results.append(result)
    return results


def _procedure(facts: dict) -> list[tuple[str, str]]:
    """The facts of a run as rows of a table, without those that are not known."""
    data = facts.get("data", {})
    tokens_of_all = _tokens_of_all(facts) if facts.get("earlier_runs") else None
    rows = {
        "training documents": _number(data.get("train_documents")),
        "training sequences": _number(data.get("train_sequences")),
        "tokens in them": _number(data.get("train_tokens")),
        "held-out sequences": _number(data.get("held_out_sequences")),
        "longest sequence": _longest_sequence(data),
        "tokenizer": data.get("tokenizer"),
        "steps": _steps(facts),
        "epochs": _number(facts.get("epochs"), ".2f"),
        "tokens that the encoder read, without padding": _number(facts.get("tokens_read")),
        "with those of the runs before": _number(tokens_of_all),
        "training time": _training_time(facts),
        "precision": facts.get("precision"),
        "hardware of a process": facts.get("hardware"),
        "processes": _number(facts.get("processes")),
        "seed": facts.get("seed"),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    return [(title, value) for title, value in rows.items() if value is not None]


def _longest_sequence(data: dict) -> str | None:
    if "max_length" not in data:
        return None
    length = f"{data['max_length']:,} tokens"
    if data.get("dropped_tokens"):
        length += f"; {data['dropped_tokens']:,} tokens of longer documents were cut off"
    return length


def _steps(facts: dict) -> str:
    steps = facts["steps"]
    planned = facts.get("planned_steps", steps)
    if steps < planned:
        return f"{steps:,} of {planned:,} planned"
    return f"{steps:,}"


def _training_time(facts: dict) -> str | None:
    if "train_seconds" not in facts:
        return None
    time = f"{facts['train_seconds']:,} seconds"
    if "resumed_at_step" in facts:
        time += f", from step {facts['resumed_at_step']:,} on"
    return time


def _tokens_of_all(facts: dict) -> int:
    return sum(run.get("tokens_read", 0) for run in (facts, *facts["earlier_runs"]))


def _all_options(facts: dict) -> list[tuple[str, str]]:
    groups = {group: facts.get(group, {}) for group in ("backbone", "objective", "corruption", "training")}
    groups["data"] = facts.get("data", {}).get("options", {})
    options = [(f"{group}: {name}", value) for group, values in groups.items() for name, value in values.items()]
    return [(name, json.dumps(value, ensure_ascii=False).replace("|", "\\|")) for name, value in options]


def _metrics(facts: dict) -> list[list[str]]:
    """The cells of the table of held-out metrics, its head first, without columns in which nothing stands."""
    rows = [[*cells, f"{baseline} {name}".strip()] for *cells, baseline, name in held_out_rows(facts)]
    if not rows:
        return []
    step = facts.get("evaluated_at_step")
    after = f"after {step:,} steps" if step else "after training"
    head = ["held out", "before training", after, "baseline"]
    kept = [column for column in range(len(head)) if any(row[column] for row in rows)]
    return [[row[column] for column in kept] for row in (head, *rows)]


def _evaluation(folder: Path) -> str:
    """What `simmim evaluate` measured, by the metrics that lead: a table and how it was made."""
    with error_prefix(f"--evaluation: there are no results of `simmim evaluate` in `{folder}`"):
        results = records.printable(records.read_json(folder / "results.json"))
        table = markdown_table(
            results, [key for key, found in METRICS.items() if found.is_headline or found.hub_metric]
        )
    lines = [*table, ""]
    if results.get("differences"):
        lines += [f"In brackets: the difference to the first model and its {CONFIDENCE:.0%} interval.", ""]
    if "command" in results:
        lines += ["```bash", results["command"], "```"]
    return "\n".join(lines)


def _notes(facts: dict) -> list[str]:
    """What the metrics mean, and where training did not help."""
    after = facts.get("after", {})
    lines = notes(facts)
    if "similarity_spearman" in after:
        scored = facts["data"]["similarity_file"]
        lines.append(f"Similarity is the correlation of cosines with the scores of the pairs in `{scored}`.")
    for other, values in {"before training": facts.get("before", {}), "the baseline": baselines(facts)}.items():
        compared = [name for name in values if name in after and metric_of(name).hub_metric]
        behind = [title(name) for name in compared if not metric_of(name).is_better(after[name], values[name])]
        if behind:
            lines.append(f"**No better than {other}: {listed(behind)}.**")
    return lines


def _number(value: float | None, format: str = "") -> str | None:
    return None if value is None else f"{value:,{format}}"


def save_card(card: ModelCard, folder: str | Path, overwrite: bool = False) -> Path:
    """Writes README.md with a checksum in its last line, by which an edited card is known.

    Raises:
        FileExistsError: there is a README.md that is not as this function wrote it, and `overwrite` is False.
    """
    path = Path(folder, "README.md")
    if path.exists() and not overwrite and not _is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise FileExistsError(f"`{path}` was edited or written by a person and stays; --overwrite replaces it.")
    path.write_text(_signed(f"{str(card).rstrip()}\n\n"), encoding="utf-8")
    return path


def _signed(text: str) -> str:
    return text + CHECKSUM.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def _is_ours(readme: str) -> bool:
    return readme == _signed(readme[: readme.rfind(CHECKSUM.split("{")[0])])


def write_trainer_card(trainer: Trainer, facts: dict, name: str | None, **options) -> None:
    """README.md and the training curves in a Trainer's `output_dir`; an edited README.md stays, with a warning.

    Args:
        facts: as for `model_card`
        name: the title; by default the name on the Hub, or that of the folder
        options: `license`, `language` and `tags` of `model_card`
    """
    folder = Path(trainer.args.output_dir)
    plot = None
    if any(entry.keys() & {"loss", "eval_loss"} for entry in trainer.state.log_history):
        plot = PLOT
        plot_training(trainer.state.log_history, str(folder / PLOT))
    hub_model_id = trainer.hub_model_id or trainer.args.hub_model_id
    name = name or _name(hub_model_id, folder)
    _save_unless_edited(model_card(facts, name, hub_model_id=hub_model_id, plot=plot, **options), folder)


def save_adapted_card(facts: dict, folder: Path, run: str) -> None:
    """README.md of an adapted sentence-transformers model; an edited one stays, with a warning.

    Args:
        facts: what `results.json` holds
        run: the folder in that of the model that has the card of the run
    """
    facts = records.printable(facts)
    name = records.printable(_name(None, folder))
    source = facts.get("base_model")
    origin = f"[{source}](https://huggingface.co/{source})"
    if not source:
        origin = facts["initial_weights"]
    text = _text(facts.get("data", {})) or "text that was not recorded"
    head, *rows = _metrics(facts)
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "simmim", "feature-extraction"],
        base_model=source,
    )
    table = tables.markdown([head, *rows], align="<" + ">" * (len(head) - 1))
    body = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"Sentence vectors for {text}: {origin}, adapted to this text without labels by `simmim adapt`. Its modules, "
        "pooling and maximum length are those of its source; only the weights are others.\n",
        f"```python\n{search_snippet('.')}\n```\n",
        *table,
        "",
        " ".join(_notes(facts)),
        f"\nHow it was trained: [{run}/README.md]({run}/README.md).",
    ]
    _save_unless_edited(ModelCard("\n".join(body)), folder)


def _save_unless_edited(card: ModelCard, folder: Path) -> None:
    try:
        save_card(card, folder)
    except FileExistsError as error:
        logger.warning(f"No model card is written: {error}")


def _name(hub_model_id: str | None, folder: Path) -> str:
    if hub_model_id:
        return hub_model_id.split("/")[-1]
    return folder.resolve().name


@dataclass
class CardArguments:
    """The options of `simmim card`."""

    model: str = option(help="Folder that `simmim pretrain` wrote.")
    license: str | None = option(None, "Licence, as the Hub spells it: apache-2.0, mit, ...")
    language: list[str] | None = option(None, "ISO 639 codes of the text: en, zh, ...")
    hub_model_id: str | None = option(None, "user/name on the Hub, by which the card loads.")
    evaluation: list[str] | None = option(
        None, "Folders that `simmim evaluate` wrote, whose tables stand in the card then."
    )
    overwrite: bool = option(False, "Replace a README.md that a person has edited.")


def write_card(arguments: CardArguments) -> Path:
    """README.md of a folder from its `results.json`, and the plot from `trainer_state.json` if there is none.

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
            f"--model: `{folder}` has no results.json. `simmim pretrain` records a run in it, and a card states "
            "nothing else."
        )
    results = records.read_json(folder / "results.json")
    if "objective" not in results:
        raise ValueError(f"--model: `{folder}/results.json` does not record the model: another version wrote it.")
    check_options(arguments.hub_model_id, arguments.language or ())
    plot = folder / PLOT
    state = folder / "trainer_state.json"
    if not plot.exists() and state.exists():
        with error_prefix(f"--model: `{state}` is damaged"):
            plot_training(records.read_json(state)["log_history"], str(plot))
    with error_prefix(f"--model: `{folder}/results.json` is damaged"):
        card = model_card(
            results,
            _name(arguments.hub_model_id, folder),
            hub_model_id=arguments.hub_model_id,
            license=arguments.license,
            language=arguments.language or (),
            plot=PLOT if plot.exists() else None,
            evaluations=arguments.evaluation or (),
        )
    return save_card(card, folder, arguments.overwrite)


def baselines(results: dict) -> dict[str, float]:
    """The metrics of `results.json` that need no training, by the metric to which they compare."""
    return {metric: results[key] for metric, (key, _) in BASELINES.items() if key in results}


def held_out_rows(results: dict) -> list[list[str]]:
    """What was measured, printed: title, before training, after training, baseline, name of the baseline.

    Args:
        results: what `results.json` holds
    """
    before = results.get("before", {})
    after = results.get("after", {})
    baseline = baselines(results)
    rows = []
    for name in after:
        cells = [as_text(values[name]) if name in values else "" for values in (before, after, baseline)]
        baseline_name = BASELINES[name][1] if name in baseline else ""
        rows.append([title(name), *cells, baseline_name])
    return rows


def notes(results: dict) -> list[str]:
    """What a reader of the metrics has to know: what is retrieved, and how sure the gains are."""
    found = []
    if "retrieval_candidates" in results:
        what = "the second half of a text by its first"
        if results["data"].get("built_in"):
            what = "a docstring's body by its summary line"
        found.append(f"Retrieval finds {what} among {results['retrieval_candidates']:,} held-out candidates.")
    for name, gain in results.get("differences", {}).items():
        value, low, high = (f"{gain[part]:+.{metric_of(name).digits}f}" for part in ("value", "low", "high"))
        found.append(f"{title(name)}: {value} by the training, 95 % interval {low} to {high} (paired bootstrap).")
    return found


def search_snippet(model: str) -> str:
    """Python that searches with a sentence-transformers model."""
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model}")
texts = ["A text.", "Another one."]
scores = model.similarity(model.encode(["A question?"]), model.encode(texts))"""
