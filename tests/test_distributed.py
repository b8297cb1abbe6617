"""Training on two processes, with plain data parallelism and with FSDP: the curves and weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer, TrainerControl, TrainerState, TrainingArguments

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.training import EMACallback


pytest.importorskip("accelerate", reason="several processes need accelerate: pip install 'modeling-ofa[train]'")
datasets = pytest.importorskip("datasets", reason="fine-tuning reads data: pip install 'modeling-ofa[train]'")

import fsspec  # noqa: E402
from accelerate.commands.config.config_args import load_config_from_file  # noqa: E402
from accelerate.utils import DistributedType, merge_fsdp_weights  # noqa: E402
from distributed_run import ROOT, SAVED, STEPS, answers, build, build_full, curve, finetune  # noqa: E402

from modeling_ofa.data.readers import load_examples  # noqa: E402


CONFIGURATIONS = ROOT / "recipes" / "accelerate"
NEAR = {"rtol": 0.0, "atol": 1e-4}


def launch(configuration: str, *words: Any, processes: int = 2) -> dict[str, Any]:
    """Runs distributed_run.py as docs/scale.md says, but on CPUs, over gloo; gives what it found."""
    options = ["--config_file", CONFIGURATIONS / f"{configuration}.yaml", "--num_processes", processes]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", 0]
    command += [Path(__file__).with_name("distributed_run.py"), *words]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ran = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads((words[0] / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("one")
    trainer = build_full(folder)
    trainer.train()
    found = {"curve": curve(trainer), "answers": answers(trainer), "folder": folder}
    trainer.save_model(str(folder / "model"))
    plain = build(folder / "plain", Seq2SeqTrainer)
    plain.train()
    found["plain"] = curve(plain)
    found["finetune"] = curve(finetune(folder / "finetune"))
    losses = [entry[0] for entry in found["curve"]]
    assert losses[-1] < losses[0] - 0.4 and len(set(found["answers"][1])) > 3  # there is something to compare
    return found


def assert_same(found: dict[str, Any], folder: Path, one: dict[str, Any]) -> None:
    """Compares curves, answers and weights of several processes with those of one."""
    for name in ("curve", "plain", "finetune"):
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(one[name]), **NEAR, msg=name)
    assert found["answers"][1] == one["answers"][1]
    assert found["answers"][0] == pytest.approx(one["answers"][0], abs=1e-4)
    for name in ("model", "finetune"):
        two, wanted = (load_file(path / name / "model.safetensors") for path in (folder, one["folder"]))
        torch.testing.assert_close(two, wanted, **NEAR)


def test_two_processes_with_data_parallelism_train_as_one(one: dict[str, Any], tmp_path: Path):
    found = launch("ddp", tmp_path)
    assert_same(found, tmp_path, one)
    assert found["kind"] == "MULTI_CPU" and found["units"] == []


def test_two_processes_with_fsdp_train_as_one_and_what_they_save_in_pieces_loads_back(
    one: dict[str, Any], tmp_path: Path
):
    found = launch("fsdp", tmp_path)
    assert_same(found, tmp_path, one)
    assert found["kind"] == "FSDP" and found["whole"] == []
    assert 0.45 < found["own_numbers"] / found["numbers"] < 0.55
    layers = {f"model.{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in (0, 1)}
    tied = {"model.encoder.embed_tokens", "lm_head"}  # which accelerate divides as one
    assert set(found["units"]) == {"", "model.encoder.embed_images", *layers, *tied}

    torch.testing.assert_close(torch.tensor(found["resumed"]), torch.tensor(one["curve"]), **NEAR)
    layerdrop, codes, whole = found["refused"]
    assert "set encoder_layerdrop and decoder_layerdrop to 0" in layerdrop
    assert "targets of image codes" in codes and "SHARDED_STATE_DICT" in whole

    # The pieces as one file, which is the model that was saved at the end: both have the average of the weights.
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    assert not list(checkpoint.glob("model*"))
    merge_fsdp_weights(str(checkpoint / "pytorch_model_fsdp_0"), str(checkpoint))
    merged = OFAForConditionalGeneration.from_pretrained(checkpoint)
    assert merged.lm_head.weight is merged.model.decoder.embed_tokens.weight
    saved = OFAForConditionalGeneration.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(merged.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert len(OFAProcessor.from_pretrained(checkpoint).tokenizer) == merged.config.vocab_size


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_from_the_pieces(one: dict[str, Any], tmp_path: Path):
    launch("fsdp", tmp_path)
    for processes in (1, 4):
        found = launch("fsdp", tmp_path / str(processes), tmp_path / f"checkpoint-{SAVED}", processes=processes)
        torch.testing.assert_close(torch.tensor(found["curve"]), torch.tensor(one["curve"]), **NEAR)


@pytest.mark.parametrize("file", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_every_configuration(file: Path):
    configuration = load_config_from_file(str(file))
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(file.stem, "DEEPSPEED")
    assert configuration.distributed_type == DistributedType(kind) and configuration.num_machines == 1
    stage = configuration.deepspeed_config.get("zero_stage")
    assert stage == (int(file.stem[-1]) if kind == "DEEPSPEED" else None)


def test_an_object_store_is_streamed_and_its_files_are_for_several_processes():
    store = fsspec.filesystem("memory")
    for i in range(2):
        rows = [{"task": "sst2", "text": f"film {i}{j}", "target": "positive"} for j in range(3)]
        with store.open(f"bucket/data/train-{i}.parquet", "wb") as file:
            datasets.Dataset.from_list(rows).to_parquet(file)
    files = {"data_files": "memory://bucket/data/train-*.parquet"}
    found = load_examples("hub", "parquet", split="train", streaming=True, **files)
    assert found.num_shards == 2
    assert sorted(row["text"] for row in found) == [f"film {i}{j}" for i in range(2) for j in range(3)]


def test_an_average_of_weights_that_deepspeed_has_is_refused(monkeypatch: pytest.MonkeyPatch):
    state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False)
    monkeypatch.setattr("modeling_ofa.training.ema.AcceleratorState", lambda: state)
    with pytest.raises(ValueError, match="DEEPSPEED keeps the weights to itself"):
        EMACallback().on_train_begin(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())
