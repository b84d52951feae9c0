"""Every option of `simmim pretrain` is checked before text is read: no traceback, one line, exit code 2."""

import json

import pytest
from helpers import TINY, refused

from simmim_hf.pretraining import checks

NOT_READ = "no-such-file.txt"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--learning_rate nan", "--learning_rate is nan"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size is 0"),
        ("--per_device_eval_batch_size 0", "--per_device_eval_batch_size is 0"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps is 0"),
        ("--gradient_accumulation_steps -1", "--gradient_accumulation_steps is -1"),
        ("--num_train_epochs nan", "--num_train_epochs is nan"),
        ("--num_train_epochs 0", "--num_train_epochs is 0.0: give a number above 0"),
        ("--adam_beta1 2", "--adam_beta1 is 2.0"),
        ("--max_seq_length 2", "--max_seq_length is 2"),
        ("--mlm_probability 0", "mlm_probability=0.0"),
        ("--temperature inf", "`temperature` is inf"),
        ("--lr_scheduler_type cosine_with_min_lr", "min_lr"),
        ('--lr_scheduler_kwargs {"a":1}', "--lr_scheduler_kwargs"),
        ("--optim_args nonsense", "--optim_args nonsense"),
        ("--report_to nowhere", "--report_to nowhere"),
        ("--shuffle_buffer_size 100", "--shuffle_buffer_size is 100: give a number from 1"),
        ("--report_to mlflow", "--report_to mlflow: pip install mlflow"),
        ("--deepspeed x.json", "pip install deepspeed"),
        ("--use_liger_kernel", "pip install liger-kernel"),
        ('--accelerator_config {"a":1}', "the options of the training: AcceleratorConfig"),
        ("--dataloader_persistent_workers", "--dataloader_num_workers 0"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor"),
        ("--metric_for_best_model spearman", "choose from loss, mlm_loss, contrastive_loss"),
        ('--text_config {"hidden_size":0}', "`hidden_size` is 0"),
        ('--text_config {"hidden_size":"wide"}', "hidden_size"),
        ('--text_config {"hiden_size":64}', "Did you mean `hidden_size`?"),
        ('--text_config {"hidden_act":"nope"}', "there is no 'nope'"),
        ('--text_config {"hidden_size":1200000}', "the weights would take"),
        ("--projection_dim 10000000000", "--projection_dim is 10000000000"),
        ("--vocab_size 100000000000", "--vocab_size is 100000000000"),
        ("--output_dir /dev/null/x", "/dev/null/x"),
        ("--mixture_weights 0", "--mixture_weights 0.0: give a number above 0"),
        ("--mixture_weights nan", "--mixture_weights nan"),
        ("--debug underflow_overflow", "--debug underflow_overflow"),
        ("--text_config nonsense", "--text_config `nonsense`"),
        ("--eval_delay=--", "`--eval_delay=--` has no value"),
        ("--run_name=\udcff", "'--run_name=\\udcff' is not UTF-8"),
        (f"--objective {'x' * 5000}", "--objective: invalid choice"),
        ("--gradient_checkpointing --gradient_checkpointing_kwargs=inf", "--gradient_checkpointing_kwargs inf: "),
        ("--torch_compile_mode=", "--torch_compile_mode: "),
        ("--hub_model_id=a/b/c", "--hub_model_id: "),
    ],
)
def test_what_cannot_work_is_refused_before_text_is_read(tmp_path, capsys, given, said):
    options = ["--train_file", NOT_READ, "--output_dir", tmp_path / "run", "--use_cpu", "--report_to", "none"]
    message = refused(capsys, "pretrain", *options, *given.split(" ", 1))
    assert said in message and "error:" in message and NOT_READ not in message
    assert len(message) < 1500  # transformers lists all of its models
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model_type", ["modernbert", "gpt2", json.dumps(TINY)])
def test_what_works_is_not_refused(tmp_path, capsys, model_type):
    """What is missing then is the text only."""
    options = ["--train_file", NOT_READ, "--output_dir", tmp_path / "run", "--use_cpu", "--text_config", model_type]
    schedule = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-5}']
    assert NOT_READ in refused(capsys, "pretrain", *options, *schedule, "--optim", "adafactor", "--max_steps", "-1")


def test_a_card_of_a_folder_without_a_record_is_refused(capsys, tmp_path):
    assert "there is no folder" in refused(capsys, "card", "--model", str(tmp_path / "missing"))
    assert "has no results.json" in refused(capsys, "card", "--model", str(tmp_path))
    (tmp_path / "results.json").write_text('{"steps": 3}')
    assert "does not record the model" in refused(capsys, "card", "--model", str(tmp_path))
    (tmp_path / "results.json").write_text('{"steps": "x", "objective": 1}')
    assert "results.json` is damaged: " in refused(capsys, "card", "--model", str(tmp_path))
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(("slowdown", "said"), [(3.0, True), (0.5, False)])
def test_bfloat16_that_is_slower_is_told(capsys, caplog, monkeypatch, slowdown, said):
    assert checks.slowdown_of_bf16() > 0
    checks.logger.warning_once.cache_clear()
    monkeypatch.setattr(checks, "slowdown_of_bf16", lambda: slowdown)
    refused(capsys, "pretrain", "--use_cpu", "--bf16", "--train_file", NOT_READ)
    assert ("take 3.0 times as long in bfloat16" in caplog.text) == said
