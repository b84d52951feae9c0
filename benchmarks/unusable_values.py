"""Values that no one should give to an option."""

import argparse
import random

NUMBERS = "nan inf -inf -1 0 1 2 3 0.5 -0.5 1e-30 1e10 1e300 1e999 99999999999999999999 1_000 0x10 1,5 ٣".split()
STRINGS = ["", " ", "x", "None", "null", "true", "名前", "a b", "a\nb", "x" * 5000, "--", "..", "\udcff", "{}", "[1]"]
PATHS = ["missing", "missing.jsonl", "folder", "empty.txt", "junk.txt", "junk.json", "/dev/null", "/dev/null/x"]
PATHS += ["x" * 300, "loop.txt", "owner/name", "owner/name:x", "*.nothing", "[", "~nobody/x", "é.txt", "text.txt/x"]
JSON = ["{", "[]", "null", "1", '{"a": 1}', '{"a": {"b": []}}', '{"min_lr": NaN}', '{"num_cycles": "x"}', "a=1"]
JSON += ["a=1,b=x", '{"min_lr": -1}', '{"use_reentrant": 3}', '{"split_batches": true}', '{"even_batches": "no"}']
JSON += ['{"lr_end": 1e9}']
MANY = {  # what an option takes that neither its type nor its choices tell
    "report_to": "all none nowhere wandb tensorboard mlflow comet_ml clearml trackio dvclive".split(),
    "weight_schedule": "x x=0:1 mlm_weight=0:1,1:0 mlm_weight=1:1,0:1 mlm_weight=nan:1 mlm_weight=0:inf".split(),
    "model_name_or_path": "model model-2 bert-base-uncased".split(),
    "tokenizer_name": "model bert-base-uncased".split(),
    "model": "model bert-base-uncased".split(),
    "dataset_name": "folder text data".split(),
    "resume_from_checkpoint": "last true false model model/checkpoint-2".split(),
    "fsdp": ["full_shard", "offload", "full_shard auto_wrap", "true"],
    "optim_target_modules": "all-linear encoder x".split(),
    "metric_for_best_model": "loss eval_loss mlm_loss".split(),
    "debug": "underflow_overflow tpu_metrics_debug x".split(),
    "text_column": "text label sentence1".split(),
    "tasks": "docstrings pairs.jsonl text.txt labels.csv".split(),
    "mteb": "STSBenchmark".split(),
    "arms": "arms.yaml".split(),
    "device": "cpu cuda cuda:7 meta mps".split(),
    "language": "en english".split(),
    "license": "mit".split(),
    "hub_model_id": "user/name a/b/c name".split(),
}
OF_PATHS = tuple("file dir path name config checkpoint model tasks arms deepspeed fsdp spec".split())
OF_JSON = ("kwargs", "config", "args", "schedule", "text_config")
# What decides how long a run takes: only one of them at a time, so that another one ends it.
LENGTHS = ("max_steps", "num_train_epochs", "max_minutes", "gradient_accumulation_steps")
FEW = ("dataloader_num_workers", "preprocessing_num_workers", "seeds")  # processes, or trainings
BACKBONE = ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
BACKBONE += ["max_position_embeddings", "hidden_act", "vocab_size", "pad_token_id", "layer_types"]
BACKBONE += ["attention_probs_dropout_prob", "layer_norm_eps", "is_decoder", "initializer_range", "rope_theta"]
BACKBONE += ["dtype", "num_key_value_heads", "tie_word_embeddings", "is_encoder_decoder", "architectures"]
BACKBONE += ["hiden_size", "norm_eps"]
IN_JSON = [None, True, 0, -1, 1, 3, 7, 0.5, 1e30, 1000000000000, float("nan"), "x", "", [], [1], {}, "gelu"]
IN_JSON += ["float16", "auto"]
FAMILIES = "bert roberta distilbert electra modernbert llama gpt2 t5 clip mpnet x vit".split()


def unusable_value(rng: random.Random, option: argparse.Action, name: str) -> str | None:
    """A word for an option, None for none at all."""
    if option.nargs == 0 or (option.nargs == "?" and rng.random() < 0.4):
        return None
    if name in FEW:
        return rng.choice(["nan", "-1", "0", "1", "2", "x", ""])
    kind = rng.random()
    if kind < 0.15:
        return rng.choice([*NUMBERS, *STRINGS])
    if option.choices and kind < 0.9:
        return str(rng.choice(list(option.choices)))
    pools = [MANY[name]] * 3 if name in MANY else []
    if option.type in (int, float):
        pools += [NUMBERS]
    elif option.nargs == "?" or "bool" in getattr(option.type, "__name__", ""):
        pools += [["true", "false", "1", "x"]]
    else:
        pools += [PATHS] if name.endswith(OF_PATHS) else [STRINGS]
        pools += [JSON] if name.endswith(OF_JSON) else []
    return rng.choice(rng.choice(pools))


def unusable_json(rng: random.Random):
    """What JSON or YAML may have in place of a value."""
    return rng.choice(IN_JSON)


def unusable_backbone(rng: random.Random) -> dict:
    """Options of a backbone, some of which cannot be."""
    family = {"model_type": rng.choice(FAMILIES)} if rng.random() < 0.5 else {}
    return {**family, **{rng.choice(BACKBONE): rng.choice(IN_JSON) for _ in range(rng.choice([1, 1, 2]))}}
