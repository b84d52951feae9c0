"""Checkpoints are whole or absent, the newest whole one is resumed, and no other run is written over."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from faults import DAMAGES, Faults
from helpers import TINY, corpus_lines, files_in, ragged_batch, refused, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from transformers import TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMForPreTraining, SimMIMTrainer, folders
from simmim_hf.cli import main
from simmim_hf.training import checkpoints

pytestmark = pytest.mark.slow  # it trains


def make_trainer(folder: Path, **options) -> SimMIMTrainer:
    """Six steps of tiny batches, a checkpoint after every second one."""
    defaults = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    defaults |= {"per_device_train_batch_size": 4, "max_steps": 6, "save_steps": 2, "logging_steps": 1}
    rows = ragged_batch([3 + i % 7 for i in range(40)])
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(rows["input_ids"], rows["attention_mask"])]
    data = Dataset.from_dict({"input_ids": texts})
    tokenizer = tiny_tokenizer()
    return SimMIMTrainer(
        model=tiny_model(),
        args=TrainingArguments(**{**defaults, **options}),
        train_dataset=data,
        eval_dataset=data.select(range(8)),
        data_collator=DataCollatorForSimMIM(tokenizer),
        processing_class=tokenizer,
    )


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints.checkpoints_in(folder)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_a_checkpoint_lists_its_files(finished):
    assert names(finished) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert not (finished / folders.SAVING).exists()
    folder = finished / "checkpoint-6"
    listed = json.loads((folder / checkpoints.MANIFEST).read_text())["files"]
    assert {*listed, checkpoints.MANIFEST} == files_in(folder)
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= {*listed}
    assert checkpoints.damage(folder) is None


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_in_one_line(run, caplog, kind):
    DAMAGES[kind](run / "checkpoint-6")
    assert checkpoints.last_checkpoint(run) == str(run / "checkpoint-4")
    (said,) = caplog.messages
    assert said.startswith("Skipped checkpoint-6 (") and said.endswith("going on from checkpoint-4.")
    with pytest.raises(ValueError, match="checkpoint-6` is damaged"):
        checkpoints.to_resume(str(run / "checkpoint-6"), run)


def test_what_a_checkpoint_names_moves_no_cursor(run, caplog):
    manifest, record = (run / "checkpoint-6" / name for name in (checkpoints.MANIFEST, checkpoints.RECORD))
    meaning = json.loads(record.read_text())["meaning"]
    record.write_text(json.dumps({"meaning": {"training": {"seed": "\x1b[2J"}}}))
    assert r"was \x1b[2J and is" in checkpoints.changes(str(record.parent), {"meaning": meaning})[0]
    files = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({"files": {"\x1b[2J": {"bytes": 1, "sha256": ""}, **files}}))
    checkpoints.last_checkpoint(run)
    assert r"\x1b[2J is missing" in caplog.text and "\x1b" not in caplog.text


def test_one_of_an_earlier_version_resumes(run):
    (run / "checkpoint-6" / checkpoints.MANIFEST).unlink()
    assert checkpoints.to_resume("last", run) == str(run / "checkpoint-6")


def test_where_none_is_whole_nothing_is_resumed(run, caplog):
    for name in names(run):
        (run / name / "optimizer.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint in .* is whole"):
        make_trainer(run).train(resume_from_checkpoint=True)
    assert "checkpoint-2 (optimizer.pt is missing): going on from no checkpoint" in caplog.text


def test_training_goes_on_from_the_newest_whole_one(run, finished):
    (run / "checkpoint-6" / "scheduler.pt").unlink()
    resumed = make_trainer(run, save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert names(run) == ["checkpoint-6"] and checkpoints.damage(run / "checkpoint-6") is None


def test_a_finished_run_takes_no_more_steps(run, finished):
    trainer = make_trainer(run)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    trainer.save_model()
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_rotation_keeps_what_is_whole(run):
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")
    checkpoints.rotate(run, 1, keep=[])
    assert names(run) == ["checkpoint-4", "checkpoint-6"]
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-5")
    checkpoints.rotate(run, 1, keep=[run / "checkpoint-4"])
    assert names(run) == ["checkpoint-4", "checkpoint-6"]


@pytest.fixture
def linked(run, tmp_path) -> Path:
    """A run whose second checkpoint lies elsewhere, such as on a larger disk."""
    elsewhere = shutil.move(run / "checkpoint-4", tmp_path / "elsewhere")
    (run / "checkpoint-4").symlink_to(elsewhere)
    return Path(elsewhere)


def test_of_a_linked_checkpoint_the_link_alone_is_removed(run, linked):
    before = files_in(linked)
    checkpoints.rotate(run, 1, keep=[])
    assert names(run) == ["checkpoint-6"] and not (run / "checkpoint-4").is_symlink()
    assert files_in(linked) == before


def test_a_linked_checkpoint_is_written_over_and_its_target_stays(run, linked, tmp_path):
    before = {path: path.read_bytes() for path in linked.rglob("*") if path.is_file()}
    (run / "checkpoint-2").rename(tmp_path / "moved")
    (run / "checkpoint-2").symlink_to(tmp_path / "gone")
    make_trainer(run, max_steps=4).train()
    assert not any((run / name).is_symlink() for name in ("checkpoint-2", "checkpoint-4"))
    assert {path: path.read_bytes() for path in linked.rglob("*") if path.is_file()} == before


def test_all_files_of_a_run_have_the_mode_that_the_umask_leaves(tmp_path):
    """safetensors lets no other user read the weights."""
    umask = os.umask(0o027)
    try:
        trainer = make_trainer(tmp_path / "run", max_steps=2)
        trainer.train()
        trainer.save_model()
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"model.safetensors", "optimizer.pt"} < modes.keys()
    assert set(modes.values()) == {0o640}, modes


def test_the_best_checkpoint_is_found_and_kept(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 1e-2}
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and best.name in names(tmp_path) and checkpoints.damage(best) is None
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    assert torch.equal(
        load_file(best / "model.safetensors")["simmim.encoder.embeddings.word_embeddings.weight"],
        trainer.model.state_dict()["simmim.encoder.embeddings.word_embeddings.weight"],
    )


class Broken(Exception):
    pass


def test_a_save_that_breaks_off_leaves_what_was_whole(run, finished, monkeypatch):
    trainer = make_trainer(run)
    with monkeypatch.context() as patch:
        patch.setattr(DataCollatorForSimMIM, "save_pretrained", lambda *args: (_ for _ in ()).throw(Broken()))
        with pytest.raises(Broken):
            trainer.save_model()
        with pytest.raises(Broken):
            trainer.train()
    assert not (run / folders.SAVING).exists()
    assert names(run) == names(finished)
    for path in filter(Path.is_file, finished.rglob("*")):
        assert (run / path.relative_to(finished)).read_bytes() == path.read_bytes(), path


def test_a_model_in_other_shards_replaces_the_earlier_one(run):
    model = tiny_model(backbone={"num_hidden_layers": 1})
    model.save_pretrained(run / "shards", max_shard_size="20KB")
    checkpoints.replace_model(run / "shards", run)
    assert not (run / "model.safetensors").exists()
    loaded = SimMIMForPreTraining.from_pretrained(run).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


# The command


def options(folder: Path, *more: str) -> list[str]:
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("\n".join(corpus_lines(60)))
    network = json.dumps({**TINY, "num_hidden_layers": 1})
    words = ["pretrain", "--use_cpu", "--train_file", str(corpus), "--output_dir", str(folder), "--report_to", "none"]
    words += ["--text_config", network, "--vocab_size", "120", "--per_device_train_batch_size", "8"]
    return [*words, "--max_steps", "2", "--save_steps", "1", *more]


@pytest.fixture(scope="module")
def commanded(tmp_path_factory) -> Path:
    """The folder of a run of the command, with two checkpoints."""
    folder = tmp_path_factory.mktemp("commanded") / "run"
    assert main(options(folder)) == 0
    return folder


def test_another_run_is_not_resumed_into_or_after_it_was_overwritten(commanded, tmp_path, capsys):
    other = shutil.copytree(commanded, tmp_path / "other")
    shutil.copytree(other / "checkpoint-1", other / "checkpoint-9")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    resumed = ("--resume_from_checkpoint", str(commanded / "checkpoint-1"))
    assert "is not empty" in refused(capsys, *options(other, *resumed))
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    assert main(options(other, *resumed, "--overwrite_output_dir")) == 0
    assert names(other) == ["checkpoint-2"]
    assert (other / "model.safetensors").read_bytes() == (commanded / "model.safetensors").read_bytes()


def test_overwriting_a_run_with_a_linked_checkpoint_leaves_the_target(commanded, tmp_path):
    run = shutil.copytree(commanded, tmp_path / "run")
    elsewhere = Path(shutil.move(run / "checkpoint-2", tmp_path / "elsewhere"))
    (run / "checkpoint-2").symlink_to(elsewhere)
    before = files_in(elsewhere)
    assert main(options(run, "--overwrite_output_dir", "--max_steps", "1")) == 0
    assert names(run) == ["checkpoint-1"] and files_in(elsewhere) == before


def test_a_changed_run_is_resumed_only_where_that_is_allowed(commanded, tmp_path, capsys):
    run = shutil.copytree(commanded, tmp_path / "run")
    record = json.loads((run / "checkpoint-2" / checkpoints.RECORD).read_text())
    assert {"versions", "revision", "hardware"} < record.keys()
    resumed = ("--resume_from_checkpoint", str(run / "checkpoint-1"))
    changed = ("--learning_rate", "1e-3", "--optim", "adafactor", "--seed", "7", "--objective", "mlm")
    changed += ("--mlm_probability", "0.2", "--per_device_train_batch_size", "4", "--text_config", json.dumps(TINY))
    message = refused(capsys, *options(run, *resumed, *changed))
    for said in (
        "backbone num_hidden_layers was 1 and is 2; ",
        "objective contrastive_weight was 0.1 and is 0.0; ",
        "corruption mlm_probability was 0.3 and is 0.2; ",
        "training learning_rate was 0.0005 and is 0.001; ",
        "training optim was adamw_torch_fused and is adafactor; ",
        "training per_device_train_batch_size was 8 and is 4; ",
        "training seed was 42 and is 7; ",
        "text training was ",
        "--allow_changed",
    ):
        assert said in message
    assert "temperature" not in message and "num_train_epochs" not in message
    capsys.readouterr()
    unimportant = ("--logging_steps", "1", "--max_skipped_steps", "3")
    assert main(options(run, *resumed, *unimportant, "--learning_rate", "1e-3", "--allow_changed")) == 0
    said = capsys.readouterr().out
    assert "Going on from checkpoint-1 with changes: training learning_rate was 0.0005 and is 0.001.\n" in said


def test_runs_with_faults_end_with_the_weights_of_an_unbroken_one(tmp_path):
    """Run `benchmarks/faults.py` itself for more of them."""
    faults = Faults(tmp_path, random.Random(3))
    faults.kill(0)
    faults.kill(1)
    faults.terminate(0)
    faults.damage("half of the optimizer")
    faults.fill(faults.saving[len(faults.saving) // 2])
    assert len(faults.results) == 5 and all(row["as_it_should"] for row in faults.results)
