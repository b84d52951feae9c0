"""The arms of a comparison: names for sets of options of `simmim pretrain`, all checked before anything is trained."""

import re
from dataclasses import fields

from ..model.configuration_simmim import OBJECTIVES, SimMIMConfig, nearest
from ..options import build, read_settings, typed
from ..pretraining.options import DEFAULT_OBJECTIVE, PRETRAINING, ModelArguments

THERE_ARE = f"There are: {', '.join(OBJECTIVES)}."
RESERVED = ("random weights", "starting weights")

# Options of `simmim pretrain` that a comparison sets by itself, and what to use instead.
DECIDED = {
    **dict.fromkeys(("max_steps", "num_train_epochs"), "the budget decides: --budget_tokens"),
    "objective": "the arms have it: --objectives",
    "streaming": "a comparison plans its steps from the lengths of all texts: leave it out",
    "similarity_file": "give the file as a task: --tasks",
    "resume_from_checkpoint": "a comparison that was interrupted goes on by itself: leave it out",
    "allow_changed": "a comparison that has changed is another one: leave it out",
    "overwrite_output_dir": "give another --output_dir",
    "push_to_hub": "push the winner afterwards",
}
# Options that all arms share: without them they would not be compared on the same text from the same weights.
SHARED_TEXT = ("train_file", "validation_file", "dataset_name", "dataset_config_name", "text_column")
SHARED_WEIGHTS = ("tokenizer_name", "vocab_size", "text_config", "model_name_or_path")
SHARED = (*SHARED_TEXT, "output_dir", "seed", "validation_split_percentage", *SHARED_WEIGHTS)


def read_arms(objectives: list[str] | None, file: str | None) -> dict[str, dict]:
    """Arms by name, each a dict of options of `simmim pretrain`: presets, and those of a YAML or JSON file.

    Raises:
        FileNotFoundError, ValueError: no such objective, file or option; the message names the arm and the nearest.
    """
    arms = {}
    for name in objectives or ([] if file else OBJECTIVES):
        if name not in OBJECTIVES:
            raise ValueError(f"--objectives: there is no `{name}`.{nearest(name, OBJECTIVES)} {THERE_ARE}")
        arms[name] = {"objective": name}
    of_file = read_settings(file) if file else {}
    for name, options in of_file.items():
        if name in arms:
            raise ValueError(f"the arm `{name}` of `{file}` is also in --objectives: give it another name.")
        arms[name] = options
    return arms


def check_arms(arms: dict[str, dict]) -> dict[str, dict]:
    """The arms with the values that `simmim pretrain` reads from their options.

    Raises:
        ValueError: a name that cannot be a folder, or an option that does not exist or that all arms have to share.
    """
    if not arms:
        raise ValueError(f"there is no arm to compare. {THERE_ARE}")
    return {str(name): _checked(name, options) for name, options in arms.items()}


def _checked(name: str, options: dict) -> dict:
    """The options of an arm, as `simmim pretrain` reads them."""
    if not re.fullmatch(r"[\w+=-][\w.+= -]*", str(name)) or name in RESERVED:
        raise ValueError(f"`{name}` cannot be the name of an arm: take letters, digits, spaces and - _ + = . only.")
    if not isinstance(options, dict) or not options:
        raise ValueError(f"the arm `{name}` must hold options of `simmim pretrain`, such as `objective: simmim`.")
    objective = options.get("objective", DEFAULT_OBJECTIVE)
    if objective not in OBJECTIVES:
        near = nearest(str(objective), OBJECTIVES)
        raise ValueError(f"the arm `{name}`: there is no objective `{objective}`.{near} {THERE_ARE}")
    try:
        read = typed(PRETRAINING, options)
        for shared in SHARED:
            if shared in read:
                raise ValueError(f"all arms have the same {shared}: give --{shared} beside --arms.")
        refuse_decided({option: value for option, value in read.items() if option != "objective"})
        build(PRETRAINING, read)
        SimMIMConfig(**config_options(read))
    except ValueError as error:
        raise ValueError(f"the arm `{name}`: {error}") from error
    return {"objective": DEFAULT_OBJECTIVE, **read}


def config_options(options: dict) -> dict:
    """The options of `SimMIMConfig` among those of an arm, over those of its objective."""
    names = [field_.name for field_ in fields(ModelArguments)]
    return ModelArguments(**{name: value for name, value in options.items() if name in names}).config_options()


def refuse_decided(options: dict) -> None:
    for name in options:
        if name in DECIDED:
            raise ValueError(f"--{name} is no option of a comparison; {DECIDED[name]}.")
