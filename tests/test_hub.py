"""The Hub: what trainers and `ofa push` publish, and what others load from there. The Hub is one of our own."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import peft
import pytest
import torch
import transformers
from hub_server import HubServer, serve
from PIL import Image as PILImage
from tiny import tiny_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForImageTextToText, AutoProcessor, Seq2SeqTrainer, Seq2SeqTrainingArguments

import modeling_ofa
from modeling_ofa import (
    DataCollatorForOFA,
    OFAForConditionalGeneration,
    OFAForSequenceClassification,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
    cli,
)
from modeling_ofa.data import load_examples
from modeling_ofa.hub import Card, prepare
from modeling_ofa.tasks_ofa import TASKS
from modeling_ofa.training import OFATrainer, OFATrainingArguments


SIZE = {"height": 64, "width": 64}
SCENES = Path(modeling_ofa.DEFAULT_CHECKPOINT).parent / "scenes"


def load_script(name: str) -> Any:
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch, tmp_path) -> HubServer:
    """A Hub, empty, in the place of the real one; its user is `tester`. Nothing is cached from test to test."""
    with serve() as server:
        constants = huggingface_hub.constants
        monkeypatch.setenv("HF_TOKEN", "hf_tester")
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose protocol the server does not speak
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(
            datasets.config, "HUB_DATASETS_URL", server.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
        )
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        yield server


@pytest.fixture(scope="module")
def processor() -> OFAProcessor:
    return OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, size=SIZE)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    picture = PILImage.open(SCENES / "scene_1.png").convert("RGB")
    return [
        {"task": "vqa", "image": picture, "text": "what is it?", "target": "dog"},
        {"task": "caption", "image": picture, "target": "a dog and a red cup"},
    ]


def small_model(processor: OFAProcessor, seed: int = 0) -> OFAForConditionalGeneration:
    sizes = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 128}
    return tiny_model(seed=seed, **sizes)


def arguments(cls: type, folder: Path, **kwargs: Any) -> Any:
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "max_steps": 2}
    saving = {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "remove_unused_columns": False}
    return cls(**{"output_dir": str(folder), **quiet, **saving, **kwargs})


@torch.no_grad()
def outputs(model: torch.nn.Module, processor: OFAProcessor, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, Any]:
    """Logits and generated ids for rows."""
    inputs = DataCollatorForOFA(processor, size=SIZE)(rows)
    model = model.eval()
    asked = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**inputs).logits, model.generate(**asked, max_new_tokens=5, num_beams=2)


def assert_bit_equal(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# --- trainers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer_type, arguments_type", [(Seq2SeqTrainer, Seq2SeqTrainingArguments), (OFATrainer, OFATrainingArguments)]
)
def test_a_trainer_publishes_all_that_loading_needs(trainer_type, arguments_type, hub, processor, rows, tmp_path):
    model = small_model(processor)
    model.generation_config.update(num_beams=3, max_new_tokens=7)
    trainer = trainer_type(
        model,
        arguments(arguments_type, tmp_path / "captions", hub_private_repo=True),
        data_collator=DataCollatorForOFA(processor, size=SIZE),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub(commit_message="After two steps", license="apache-2.0")
    repo = hub.repo("tester/captions")
    assert repo.private and repo.commits[repo.refs["main"]].title == "After two steps"
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= set(repo.files)
    assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(repo.files)
    assert not any(path.startswith("checkpoint-") for path in repo.files)
    card = huggingface_hub.ModelCard(repo.files["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("transformers", "apache-2.0")

    loaded = AutoModelForImageTextToText.from_pretrained("tester/captions")
    assert isinstance(loaded, OFAForConditionalGeneration)
    assert (loaded.generation_config.num_beams, loaded.generation_config.max_new_tokens) == (3, 7)
    same = AutoProcessor.from_pretrained("tester/captions")
    assert_bit_equal(outputs(loaded, same, rows), outputs(model, processor, rows))


def test_a_run_goes_on_from_the_checkpoint_that_it_published(hub, processor, rows, tmp_path):
    def trainer(folder: str, **kwargs: Any) -> OFATrainer:
        return OFATrainer(
            small_model(processor),
            arguments(OFATrainingArguments, tmp_path / folder, max_steps=3, lr_scheduler_type="constant", **kwargs),
            data_collator=DataCollatorForOFA(processor, size=SIZE),
            train_dataset=rows,
            processing_class=processor,
        )

    whole = trainer("whole", push_to_hub=False)
    whole.train()
    first = trainer("run", hub_strategy="checkpoint", hub_always_push=True)
    first.args.max_steps = 2
    first.train()
    files = hub.repo("tester/run").files
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json", "model.safetensors"} <= set(files)
    assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == 2

    folder = huggingface_hub.snapshot_download("tester/run", allow_patterns="last-checkpoint/*")
    second = trainer("elsewhere", push_to_hub=False)
    second.train(resume_from_checkpoint=str(Path(folder) / "last-checkpoint"))
    weights = whole.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in second.model.state_dict().items())


def test_an_adapter_publishes_and_loads_on_the_published_base(hub, processor, rows, tmp_path):
    base = small_model(processor)
    base.push_to_hub("tester/base")
    model = OFAForConditionalGeneration.from_pretrained("tester/base")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False))
    trainer = OFATrainer(
        model,
        arguments(OFATrainingArguments, tmp_path / "lora", hub_model_id="tester/adapter"),
        data_collator=DataCollatorForOFA(processor, size=SIZE),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub()
    repo = hub.repo("tester/adapter")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(repo.files)
    assert "model.safetensors" not in repo.files
    card = huggingface_hub.ModelCard(repo.files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("peft", "tester/base")

    expected = outputs(model, processor, rows)
    same = OFAProcessor.from_pretrained("tester/adapter")
    loaded = peft.PeftModel.from_pretrained(
        OFAForConditionalGeneration.from_pretrained("tester/base"), "tester/adapter"
    )
    assert_bit_equal(outputs(loaded, same, rows), expected)
    # transformers finds the base that an adapter names.
    assert_bit_equal(outputs(AutoModelForImageTextToText.from_pretrained("tester/adapter"), same, rows), expected)


def test_finetune_publishes_what_its_recipe_trains(hub, tmp_path, capsys):
    script = load_script("finetune")
    shutil.copy(SCENES / "scene_1.png", tmp_path)
    (tmp_path / "data.csv").write_text("image,target\nscene_1.png,a dog\nscene_1.png,a red cup\n")
    settings = {
        "data": {"format": "folder", "task": "caption"},
        "train_data": {"path": str(tmp_path / "data.csv")},
        "output_dir": str(tmp_path / "run"),
        "push_to_hub": True,
        "hub_model_id": "tester/recipe",
        "max_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "decoder_prompt": "src",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))  # which is YAML
    assert script.main(["--config", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().err
    repo = hub.repo("tester/recipe")
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= set(repo.files)
    assert OFAProcessor.from_pretrained("tester/recipe").decoder_prompt == "src"
    local, published = (
        OFAForConditionalGeneration.from_pretrained(one) for one in (tmp_path / "run", "tester/recipe")
    )
    weights = published.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in local.state_dict().items())


# --- ofa push ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(processor, tmp_path) -> Path:
    """A folder as a run leaves it, whose decoder prompt and beams are no defaults."""
    folder = tmp_path / "run"
    same = OFAProcessor(processor.image_processor, processor.tokenizer, decoder_prompt="src", num_beams=2)
    same.save_pretrained(folder)
    model = small_model(processor)
    model.generation_config.update(max_new_tokens=6)
    model.save_pretrained(folder)
    for name in ("checkpoint-5/model.safetensors", "runs/events", "training_args.bin", "optimizer.pt", ".secret"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays here")
    return folder


def push(*words: object) -> int:
    return cli.main(["push", *map(str, words)])


def refused(capsys, *words: object) -> str:
    assert push(*words) == 2
    err = capsys.readouterr().err
    line = err.splitlines()[-1]  # behind the bars of what was sent
    assert line.startswith("ofa: error: ") and "Traceback" not in err
    return line


# What runs on a machine of somebody who has transformers, peft and a picture, but not this package.
ELSEWHERE = """
import re, sys
sys.modules["modeling_ofa"] = None  # importing it is an error

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoProcessor

found = {}
picture = Image.open("picture.png")
for repo in ("tester/model", "tester/adapter"):
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True).eval()
    inputs = processor(task=["vqa", "caption"], images=[picture] * 2, text=["what is it?", None], return_tensors="pt")
    with torch.no_grad():
        found[repo + " logits"] = model(**inputs).logits  # of the decoder prompt
        found[repo + " ids"] = model.generate(**inputs, **processor.generation_kwargs(["vqa", "caption"]))
        found[repo + " default ids"] = model.generate(**inputs)
found["prompt"] = processor.decoder_prompt
with torch.no_grad():
    for auto in (AutoModel, AutoModelForSeq2SeqLM):
        model = auto.from_pretrained("tester/model", trust_remote_code=True).eval()
        found[auto.__name__] = model(**inputs)[0]
for repo in ("tester/model", "tester/adapter"):  # the usage in the cards runs
    card = open(hf_hub_download(repo, "README.md"), encoding="utf-8").read()
    snippets = re.findall("```python\\n(.*?)```", card, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(snippet, {})
assert not any(name == "modeling_ofa" and module for name, module in sys.modules.items())
torch.save(found, "found.pt")
"""


def test_what_is_pushed_works_without_the_package(hub, folder, processor, rows, tmp_path):
    adapted = peft.get_peft_model(
        OFAForConditionalGeneration.from_pretrained(folder),
        peft.LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False),
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    same = OFAProcessor.from_pretrained(folder)
    same.save_pretrained(tmp_path / "adapter")
    assert push(folder, "tester/model") == 0
    assert push(tmp_path / "adapter", "tester/adapter", "--base-model", "tester/model") == 0

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    rows[0]["image"].save(elsewhere / "picture.png")
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(elsewhere / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE]
    run = subprocess.run(command, env=environment, cwd=elsewhere, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = torch.load(elsewhere / "found.pt")

    tasks = ["vqa", "caption"]
    texts = {"text": ["what is it?", None], "return_tensors": "pt"}
    inputs = same(task=tasks, images=[row["image"] for row in rows], **texts)
    model = OFAForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, local in (("tester/model", model), ("tester/adapter", adapted)):
            assert torch.equal(found[f"{name} logits"], local(**inputs).logits)
            ids = local.generate(**inputs, **same.generation_kwargs(tasks))
            assert torch.equal(found[f"{name} ids"], ids)
            assert torch.equal(found[f"{name} default ids"], local.generate(**inputs))
        assert torch.equal(found["AutoModel"], model.model(**inputs)[0])
        assert torch.equal(found["AutoModelForSeq2SeqLM"], model(**inputs).logits)
    assert found["prompt"] == "src"


def test_a_push_holds_what_loading_needs_and_nothing_of_the_run(hub, folder, capsys):
    (folder / "LICENSE").write_text("Yours.")
    (folder / "sample.png").write_bytes(b"picture")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert push(folder, "captions", "--private", "--include", "*.png", "--message", "First") == 0
    out = capsys.readouterr().out
    repo = hub.repo("tester/captions")
    assert repo.private and out.rstrip().endswith(f"/tester/captions/commit/{repo.refs['main']}")
    assert repo.commits[repo.refs["main"]].title == "First"
    code = {path for path in repo.files if path.endswith(".py")}
    assert {f"{name}_ofa.py" for name in ("configuration", "modeling", "processing", "tokenization")} < code
    settings = {"config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"}
    others = {".gitattributes", "LICENSE", "README.md", "model.safetensors", "sample.png", "tokenizer.json"}
    assert set(repo.files) - code == settings | others
    assert repo.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert modeling_ofa.OFAProcessor._auto_class is None and modeling_ofa.OFAConfig._auto_class is None


def test_the_package_loads_what_it_pushed_without_running_its_code(hub, folder):
    assert push(folder, "tester/captions") == 0
    model = AutoModelForImageTextToText.from_pretrained("tester/captions")
    assert type(model) is OFAForConditionalGeneration
    assert type(AutoProcessor.from_pretrained("tester/captions")) is OFAProcessor
    model.save_pretrained(folder)  # whose configuration now names code of the repository
    assert push(folder, "tester/again") == 0
    config = json.loads(hub.repo("tester/again").files["config.json"])
    assert config["auto_map"]["AutoConfig"] == "configuration_ofa.OFAConfig"


def test_a_dry_run_lists_what_would_go_and_sends_nothing(hub, folder, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert push(folder, "tester/captions", "--dry-run") == 0
    out = capsys.readouterr().out
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:>15,}  model.safetensors" in out and "# captions" in out and "stays here" not in out
    assert push(folder, "tester/captions", "--dry-run", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["type"] == "model" and record["files"]["model.safetensors"] == size
    assert "optimizer.pt" not in record["files"] and "training_args.bin" not in record["files"]
    assert hub.log == []


def test_branches_and_pull_requests_leave_main_alone(hub, folder, capsys, monkeypatch):
    assert push(folder, "tester/captions") == 0
    first = dict(hub.repo("tester/captions").refs)
    small_model(OFAProcessor.from_pretrained(folder), seed=1).save_pretrained(folder)
    assert push(folder, "tester/captions", "--revision", "second") == 0
    monkeypatch.setenv("HF_TOKEN", "hf_guest")  # who may not write there
    assert "Forbidden" in refused(capsys, folder, "tester/captions")
    assert push(folder, "tester/captions", "--pull-request") == 0
    assert capsys.readouterr().out.rstrip().endswith("/tester/captions/discussions/1")
    repo = hub.repo("tester/captions")
    assert repo.refs["main"] == first["main"] and set(repo.refs) == {"main", "second", "refs/pr/1"}
    weights = (folder / "model.safetensors").read_bytes()
    assert repo.at("second").files["model.safetensors"] == weights != repo.files["model.safetensors"]
    assert repo.at("refs/pr/1").files["model.safetensors"] == weights
    assert OFAForConditionalGeneration.from_pretrained("tester/captions", revision="refs/pr/1") is not None


def test_an_interrupted_push_goes_on_where_it_was(hub, folder, tmp_path, capsys):
    model = OFAForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = len(list(folder.glob("model-*.safetensors")))
    assert shards > 3

    hub.refusals = [413]
    assert "goes on from it" in refused(capsys, folder, "tester/captions")
    assert set(hub.repo("tester/captions").files) == {".gitattributes"}  # nobody loads half of a model
    sent = len(hub.large)

    hub.capacity = sent + 1 if sent < shards - 1 else sent  # then the line goes dead, and the process is killed
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    script = Path(__file__).parents[1] / "scripts" / "push_to_hub.py"
    root = {"PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(folder), "tester/captions"]
    process = subprocess.Popen(command, env=environment | root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.hangs.wait(120)
    process.kill()
    process.wait()
    assert set(hub.repo("tester/captions").files) == {".gitattributes"}

    hub.capacity, before = None, set(hub.large)
    hub.log.clear()
    assert push(folder, "tester/captions") == 0
    assert len(before) >= sent and len(hub.large) == shards and not before & set(hub.uploads())
    loaded = OFAForConditionalGeneration.from_pretrained("tester/captions")
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_data_sets_publish_and_load_back(hub, rows, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    rows[0]["image"].save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "table.csv").write_text("image,text,target\na.png,what is it?,a dog\na.png,why?,no idea\n")
    source = tmp_path / "photos" / "table.csv"
    assert load_script("prepare_data").main(["folder", str(source), str(tmp_path / "out"), "--task", "vqa"]) in (
        0,
        None,
    )
    words = ("--type", "dataset", "--license", "cc0-1.0", "--task", "vqa")
    assert push(tmp_path / "out", "tester/questions", *words) == 0
    repo = hub.repo("tester/questions", "dataset")
    assert set(repo.files) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    card = repo.files["README.md"].decode()
    assert huggingface_hub.DatasetCard(card).data.license == "cc0-1.0" and "`train`: 2 rows" in card
    scope: dict[str, Any] = {}
    exec(re.findall("```python\n(.*?)```", card, flags=re.DOTALL)[0], scope)
    found = scope["rows"]
    assert found["text"] == ["what is it?", "why?"] and found[0]["image"].size == rows[0]["image"].size

    saved = load_examples("folder", source, task="vqa")
    saved.save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    assert "push_to_hub(REPO)" in refused(capsys, tmp_path / "saved", "tester/saved", "--type", "dataset")
    datasets.load_from_disk(tmp_path / "saved").push_to_hub("tester/saved", private=True)
    again = load_examples("hub", "tester/saved", split="train")
    assert again["target"] == ["a dog", "no idea"] and again[1]["image"].size == rows[0]["image"].size


def test_what_would_be_of_no_use_is_refused_before_anything_is_sent(hub, folder, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "--type dataset" in refused(capsys, empty, "tester/x")
    assert "has no files" in refused(capsys, empty, "tester/x", "--type", "dataset")
    assert "no folder" in refused(capsys, tmp_path / "none", "tester/x")
    assert "visual_groundin" in refused(capsys, folder, "tester/x", "--task", "visual_groundin")
    assert "OWNER/NAME" in refused(capsys, folder, "a/b/c")
    assert "has no file *.gif" in refused(capsys, folder, "tester/x", "--include", "*.gif")
    (empty / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert "adapter_model.safetensors" in refused(capsys, empty, "tester/x")
    (empty / "adapter_model.safetensors").write_bytes(b"")
    assert "--base-model OWNER/NAME" in refused(capsys, empty, "tester/x")

    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    assert "cannot be loaded" in refused(capsys, folder, "tester/x")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "python -m convert huggingface" in refused(capsys, folder, "tester/x")
    tiny_model(vocab_size=200).save_pretrained(folder)
    assert "different models" in refused(capsys, folder, "tester/x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_layers": 3}))
    assert "lack" in refused(capsys, folder, "tester/x")
    (folder / "processor_config.json").unlink()
    assert hub.log == []


def test_a_public_repository_is_no_place_for_private_weights(hub, folder, capsys, monkeypatch):
    assert push(folder, "tester/captions") == 0
    before = dict(hub.repo("tester/captions").refs)
    assert "is public" in refused(capsys, folder, "tester/captions", "--private")
    assert "leave the revision out" in refused(capsys, folder, "tester/captions", "--pull-request", "--revision", "a")
    assert "no repository tester/none" in refused(capsys, folder, "tester/none", "--pull-request")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    assert "hf auth login" in refused(capsys, folder, "tester/captions")
    assert hub.repo("tester/captions").refs == before


# --- cards ---------------------------------------------------------------------------------------------------------


def card_of(repo: str, folder: Path, **kwargs: Any) -> str:
    with prepare(folder, repo, **kwargs) as contents:
        return contents.files["README.md"].read_text(encoding="utf-8")


def snippets(card: str) -> list[str]:
    return re.findall("```python\n(.*?)```", card, flags=re.DOTALL)


def test_a_card_holds_the_facts_that_a_run_left(folder):
    recipe = {"model_name_or_path": "OFA-Sys/ofa-tiny", "data": '{"format": "tsv", "task": "caption"}'}
    recipe |= {"train_data": '{"path": "/home/me/coco_train.tsv"}', "eval_data": '{"path": "/home/me/coco_val.tsv"}'}
    recipe |= {"freeze": ["resnet"], "peft": None}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    history = [{"loss": 5.5, "step": 1}, {"loss": 2.25, "step": 9}, {"train_runtime": 5400.0, "step": 9}]
    state = {"global_step": 1234, "epoch": 2.5, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "evaluation").mkdir()
    scores = {"cider": 1.23456, "bleu4": 0.25}
    found = {"metric": "coco_caption", "headline": "cider", "examples": 5000, "scored": 5000, "scores": scores}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps({"caption": found}))
    manifest = {"version": "0.1.0", "dtype": "torch.float32", "strategy": "auto", "decoder_prompt": None}
    (folder / "evaluation" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "README.md").write_text("# A draft\n\n[More Information Needed]\n")

    text = card_of("tester/captions", folder, card=Card(license="apache-2.0", language=["en"], datasets=["me/coco"]))
    card = huggingface_hub.ModelCard(text)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "OFA-Sys/ofa-tiny")
    assert (data.datasets, data.metrics, data.model_name) == (["me/coco"], ["bleu4", "cider"], "captions")
    results = {one.metric_type: one for one in data.eval_results}
    assert results["cider"].metric_value == 1.2346 and results["cider"].dataset_name == "coco_val.tsv"
    assert results["cider"].task_type == "image-to-text" and results["bleu4"].metric_value == 0.25
    for fact in ("`coco_train.tsv`", "1,234 steps, 2.50 epochs", "5.500 at first, 2.250", "Frozen: resnet"):
        assert fact in text
    for fact in (
        "| caption | coco_val.tsv | cider* | 1.2346 | 5,000 |",
        "1.50 hours",
        "version 0.1.0",
        "wang2022ofa",
    ):
        assert fact in text
    assert "/home/me" not in text and "Made from [OFA-Sys/ofa-tiny]" in text
    parameters = sum(one.numel() for one in OFAForConditionalGeneration.from_pretrained(folder).parameters())
    assert f"{parameters / 1e6:.1f} million parameters" in text
    [usage] = snippets(text)
    assert 'task="caption"' in usage and "vqa" not in usage


def test_a_card_says_what_nobody_recorded_and_leaves_a_written_one_alone(folder):
    text = card_of("tester/captions", folder)
    assert text.count("not recorded") + text.count("Not recorded") >= 2 and "Nothing was measured" in text
    data = huggingface_hub.ModelCard(text).data
    assert data.license is data.base_model is data.eval_results is None
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    assert card_of("tester/captions", folder) == "# Mine\n"


@pytest.fixture
def able_folder(tmp_path) -> Path:
    """A random model that can do every task, image codes included."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = OFATokenizer(vocabulary, [], num_codes=64, num_bins=100, model_max_length=300)
    folder = tmp_path / "able"
    OFAProcessor(OFAImageProcessorPil(size=SIZE), tokenizer, max_image_size=64).save_pretrained(folder)
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=300, image_bucket_size=32).save_pretrained(folder)
    return folder


def test_the_usage_of_every_task_runs(hub, able_folder, rows, tmp_path, capsys, monkeypatch):
    tasks = [name for name, task in TASKS.items() if not task.takes_audio]
    words = [word for task in tasks for word in ("--task", task)]
    assert push(able_folder, "tester/able", *words) == 0
    rows[0]["image"].save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    [usage] = snippets(hub.repo("tester/able").files["README.md"].decode())
    assert usage.count("model.generate(") == len(tasks)
    capsys.readouterr()
    exec(usage.replace(", trust_remote_code=True", ""), {})  # as the card says that one may where the package is
    assert len(capsys.readouterr().out.splitlines()) >= len(tasks)


def test_a_classifier_publishes_with_a_usage_that_runs(hub, folder, processor, tmp_path, monkeypatch, capsys):
    sizes = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 128, "num_labels": 3}
    model = tiny_model(OFAForSequenceClassification, **sizes)
    model.save_pretrained(folder)
    assert push(folder, "tester/classifier", "--task", "sst2") == 0
    text = hub.repo("tester/classifier").files["README.md"].decode()
    assert huggingface_hub.ModelCard(text).data.pipeline_tag is None
    capsys.readouterr()
    exec(snippets(text)[0].replace(", trust_remote_code=True", ""), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_the_card_of_the_embedded_checkpoint_is_complete_and_its_usage_runs(rows, tmp_path, monkeypatch, capsys):
    text = (Path(modeling_ofa.DEFAULT_CHECKPOINT) / "README.md").read_text(encoding="utf-8")
    data = huggingface_hub.ModelCard(text).data
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "image-text-to-text")
    measured = json.loads((Path(modeling_ofa.DEFAULT_CHECKPOINT) / "metrics.json").read_text(encoding="utf-8"))
    results = {(one.task_name, one.dataset_name): one.metric_value for one in data.eval_results}
    for split, tasks in measured.items():
        for task in ("caption", "visual_grounding"):
            assert results[task, f"the small world: {split}"] == round(tasks[task]["score"], 4)
    for section in ("Use", "Training", "Evaluation", "Limits", "Environment", "Citation"):
        assert f"\n## {section}\n" in text
    rows[0]["image"].save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    [usage] = snippets(text)
    exec(usage, {})
    assert capsys.readouterr().out.strip()
