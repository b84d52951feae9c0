"""What `simmim pretrain` refuses before it reads text: everything that could only fail, or learn nothing, later."""

import math
import time

import psutil
import torch
from transformers import AutoConfig, Trainer, TrainingArguments, get_scheduler
from transformers.debug_utils import DebugOption
from transformers.integrations import get_reporting_integration_callbacks, is_mlflow_available
from transformers.utils import is_liger_kernel_available, is_torch_xla_available, logging

from ..data.collator import DataCollatorForSimMIM
from ..model.configuration_simmim import COMMON_OPTIONS, TOKEN_IDS, WEIGHTS, SimMIMConfig, nearest
from ..model.modeling_simmim import SimMIMForPreTraining
from ..options import error_prefix
from ..training import card
from .options import DataArguments, ModelArguments, PretrainingArguments, check_ranges, read_text_config

logger = logging.get_logger(__name__)

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")

WORKERS = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")


def check(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments) -> None:
    """Refuses what could only fail, or learn nothing, once training runs.

    Raises:
        ValueError: the message names the value and the remedy.
    """
    for options in (model_args, data_args):
        check_ranges(options)
    check_training(args)
    card.check_options(args.hub_model_id, ())
    if args.bf16 and args.device.type == "cpu" and (slowdown := slowdown_of_bf16()) > 1.2:
        logger.warning_once(
            f"--bf16: products of matrices take {slowdown:.1f} times as long in bfloat16 as in float32 on this CPU, "
            "which has no units for them. Leave it out."
        )
    config = check_model(model_args)
    DataCollatorForSimMIM.check_options(data_args.collator_options())
    if config.contrastive_weight and args.per_device_train_batch_size * args.world_size < 2:
        raise ValueError(
            "--per_device_train_batch_size 1 leaves a contrastive objective without negatives. Give 2 or more "
            "(64 is usual), or an objective without a contrastive term: --objective mlm."
        )
    if args.label_smoothing_factor or args.label_names:
        raise ValueError("--label_smoothing_factor and --label_names are for other losses and labels: leave them out.")
    terms = [weight.removesuffix("_weight") for weight in WEIGHTS if getattr(config, weight)]
    logged = ["loss", *(f"{term}_loss" for term in terms), *(f"{term}_accuracy" for term in terms if term != "clm")]
    if args.metric_for_best_model and args.metric_for_best_model.removeprefix("eval_") not in logged:
        raise ValueError(
            f"--metric_for_best_model `{args.metric_for_best_model}` is not measured: choose from {', '.join(logged)}."
        )
    if data_args.train_file and data_args.dataset_name:
        raise ValueError("Give --train_file or --dataset_name, not both.")
    if data_args.mixture_weights is not None:
        check_mixture(data_args)
    if DebugOption.TPU_METRICS_DEBUG in args.debug and not is_torch_xla_available():
        raise ValueError("--debug tpu_metrics_debug needs a TPU: leave it out.")
    if DebugOption.UNDERFLOW_OVERFLOW in args.debug:
        raise ValueError(
            "--debug underflow_overflow of transformers fails at attention masks, which are Boolean: leave it out. A "
            "step that is not finite is skipped and counted in the log."
        )
    if args.bf16_full_eval or args.fp16_full_eval:
        raise ValueError(
            "--bf16_full_eval and --fp16_full_eval would leave the weights in half precision, for the first "
            "evaluation comes before training. Give --bf16 or --fp16, which evaluate in it too."
        )
    if data_args.streaming and args.max_steps <= 0:
        raise ValueError("--streaming does not know where an epoch ends: give --max_steps.")
    buffer = data_args.shuffle_buffer_size
    if buffer is not None and not (data_args.streaming and 1 <= buffer <= 10_000_000):
        raise ValueError(
            f"--shuffle_buffer_size is {buffer}: give a number from 1 to 10,000,000, and only with --streaming; all "
            "other text is shuffled as a whole."
        )
    if not 0 < data_args.validation_split_percentage < 100:
        raise ValueError(
            f"--validation_split_percentage is {data_args.validation_split_percentage}: give a number between 0 and "
            "100, or a --validation_file."
        )


def slowdown_of_bf16() -> float:
    """How many times as long as in float32 a linear layer takes in bfloat16 on this CPU; a tenth of a second."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in [*seconds] * 3:  # the best of three
        matrix = torch.ones(512, 512, dtype=dtype)
        start = time.perf_counter()
        torch.nn.functional.linear(matrix, matrix)
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def check_mixture(data_args: DataArguments) -> None:
    """Refuses weights that do not fit the sources, or a stream of which nothing can be held out.

    Raises:
        ValueError: the message names the remedy.
    """
    weights = data_args.mixture_weights or []
    sources = data_args.train_file or []
    if len(weights) != len(sources) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"--mixture_weights {' '.join(map(str, weights))}: give a number above 0 for each of the {len(sources)} "
            "sources of --train_file (a file, a glob in quotation marks, or a folder)."
        )
    if data_args.streaming and not data_args.validation_file:
        raise ValueError("--mixture_weights reads a stream again when it ends: give a --validation_file.")


def check_model(model_args: ModelArguments) -> SimMIMConfig:
    """The configuration of a model from scratch; refuses one that cannot be built, by building it without memory.

    Raises:
        ValueError: an option of the backbone that does not exist, or a value or size that cannot work.
    """
    text_config = read_text_config(model_args.text_config)
    given = isinstance(model_args.text_config, dict) or str(model_args.text_config).lstrip().startswith("{")
    with error_prefix("--text_config"):
        default = AutoConfig.for_model(text_config.get("model_type", "bert"))
        known = [*vars(default), *default.attribute_map, *COMMON_OPTIONS]
        for name, value in text_config.items():
            if given and name not in known:  # a file may come from another version of transformers
                raise ValueError(f"`{default.model_type}` has no option `{name}`.{nearest(name, known)}")
            if name in SIZES and isinstance(value, int) and value < 1:
                raise ValueError(f"`{name}` is {value}: give 1 or more.")
    with error_prefix("the model cannot be built"):
        assert model_args.vocab_size is not None  # `fill_defaults` has set it
        config = model_args.new_config(model_args.vocab_size, dict.fromkeys(TOKEN_IDS, 0))
        if model_args.model_name_or_path:
            config.contrastive_gradient = "encoder"  # what else there is to teach, the model knows that is continued
        elif not config.teaches_encoder:
            raise ValueError(
                "no loss would teach the encoder, whose weights are random: give --contrastive_gradient encoder, "
                "--mlm_weight 1, or a trained encoder as --model_name_or_path."
            )
        with torch.device("meta"):
            size = 4 * sum(parameter.numel() for parameter in SimMIMForPreTraining(config).parameters())
    memory = psutil.virtual_memory().total
    if size > memory:
        raise ValueError(
            f"the weights would take {size / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}: lower the sizes "
            "in --text_config, --vocab_size or --projection_dim."
        )
    return config


def check_training(args: TrainingArguments) -> None:
    """Makes what the options name, as Trainer does later, for one parameter: whatever is missing shows here.

    Raises:
        ValueError: a package that is not installed, or arguments that an optimizer or a schedule does not take.
    """
    with error_prefix(f"--report_to {' '.join(args.report_to)}"):
        if {"mlflow", "dagshub"} & {*args.report_to} and not is_mlflow_available():
            raise ImportError("pip install mlflow")  # their callback, half made, would leave a traceback behind
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("--use_liger_kernel needs a package: pip install liger-kernel, or leave it out.")
    workers = {name: getattr(args, f"dataloader_{name}") for name in WORKERS}
    with error_prefix(
        f"the options of the DataLoader ({', '.join(f'--dataloader_{n} {v}' for n, v in workers.items())})"
    ):
        torch.utils.data.DataLoader([0], **workers)
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    if not args.optim_target_modules:  # which are looked for in the real model, when it is there
        optimizer = make_optimizer(args, layer)
    if args.gradient_checkpointing:
        with error_prefix(f"--gradient_checkpointing_kwargs {args.gradient_checkpointing_kwargs}"):
            options = {"use_reentrant": False, **(args.gradient_checkpointing_kwargs or {})}
            torch.utils.checkpoint.checkpoint(layer, torch.ones(1, 1), **options)
    kind = args.lr_scheduler_type
    kwargs = args.lr_scheduler_kwargs
    with error_prefix(f"--lr_scheduler_type {kind.value}, --lr_scheduler_kwargs {kwargs}"):
        get_scheduler(kind, optimizer, args.get_warmup_steps(100), 100, scheduler_specific_kwargs=kwargs)


def make_optimizer(args: TrainingArguments, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the options name.

    Raises:
        ValueError: a package that is not installed, or arguments that it does not take.
    """
    with error_prefix(f"--optim {args.optim.value}, --optim_args {args.optim_args}"):
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return optimizer_class(options.pop("params", model.parameters()), **options)
