"""Fine-tuning by a recipe: the official settings, every kind of task from raw data to a saved model, and bad input."""

import base64
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_model
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import EvalPrediction

from modeling_ofa import OFAForConditionalGeneration, OFAImageProcessorPil, OFAProcessor, OFATokenizer
from modeling_ofa.data.noise import count_words
from modeling_ofa.data.transforms import training_transform
from modeling_ofa.tasks_ofa import TASKS


pytest.importorskip("datasets", reason="fine-tuning reads data: pip install 'modeling-ofa[train]'")

import datasets  # noqa: E402

from modeling_ofa.data.readers import load_examples  # noqa: E402
from modeling_ofa.training.finetuning import FinetuningCollator, TaskMetrics  # noqa: E402
from modeling_ofa.training.freezing import PARTS  # noqa: E402


ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SCENES = ROOT / "modeling_ofa" / "assets" / "scenes"


def load_script():
    sys.path.append(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("finetune_script", ROOT / "scripts" / "finetune.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """`datasets` keeps what it prepares in a folder of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR, which takes seconds to start, has its tests elsewhere."""
    monkeypatch.setattr("modeling_ofa.evaluation.captions.java_package", lambda: None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with a random model that can speak of boxes and draw."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([task.instruction for task in TASKS.values()], trainer)
    words = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in words["merges"]]
    tokenizer = OFATokenizer(words["vocab"], merges, num_codes=64, num_bins=100, model_max_length=128)
    pixels = OFAImageProcessorPil(size={"height": 64, "width": 64})
    folder = tmp_path_factory.mktemp("checkpoint")
    OFAProcessor(pixels, tokenizer, max_image_size=96, num_beams=2).save_pretrained(folder)
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(folder)
    return folder


def image(i: int) -> str:
    return base64.urlsafe_b64encode((SCENES / f"scene_{i + 1}.png").read_bytes()).decode()


SENTENCES = ("the dog sleeps", "a dog is asleep")
# By recipe the lines of its TSV file.
DATA = {
    "caption_stage1_base": [[f"c{i}", 17 + i, "a dog&&the dog", "", image(i)] for i in range(3)],
    "caption_stage2_base": [[f"c{i}", 17 + i, "a dog&&the dog", "", image(i)] for i in range(3)],
    "vqa_base": [[i, 9, "what is it?", "0.6|!+dog&&1.0|!+cat", "car&&dog", image(i)] for i in range(3)],
    "refcoco_base": [[i, 9, "the dog", "5,6.5,70,80", image(i)] for i in range(3)],
    "snli_ve_base": [[i, 9, image(i), "a dog", "it is", one] for i, one in enumerate(["entailment", "neutral"])],
    "imagenet_large": [[image(0), 1, "dog"], [image(1), 2, "cat"]],
    "image_generation_stage1_large": [["a", "1 5 63 7", "a dog"], ["b", "2 2 2 0", "a cat"]],
    "gigaword_large": [["the dog slept all day", "dog sleeps"], ["a car was found", "car found"]],
    "cola_large": [["x", SENTENCES[0], 1], ["x", "dog the", 0]],
}
DATA |= {f"refcoco_{kind}_large": DATA["refcoco_base"][:1] for kind in ("adapter", "prefix", "bitfit")}


def write(path: Path, lines: list[list]) -> Path:
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return script.main([str(argument) for argument in arguments])


def command(name: str, checkpoint: Path, folder: Path, *more: object) -> list[object]:
    """A recipe on tiny data, with a tiny model and two steps."""
    data = write(folder / f"{name}.tsv", DATA[name])
    (folder / "answers.txt").write_text("dog\ncat\nfire engine\n")
    small = ["--image_size", 64] if script.read_yaml(RECIPES / f"{name}.yaml").get("image_size") else []
    lists = {"vqa_base": "vqa", "imagenet_large": "image_classification"}
    answers = [f"--answers.{lists[name]}", folder / "answers.txt"] if name in lists else []
    options = (
        "--max_steps 2 --eval_strategy steps --eval_steps 2 --save_strategy steps --save_steps 2 --logging_steps 1"
    )
    options += " --per_device_train_batch_size 1 --total_batch_size 2 --dataloader_num_workers 0 --bf16 false"
    options += " --use_cpu true --disable_tqdm true"
    paths = ["--train_data.path", data, "--eval_data.path", data, "--output_dir", folder / "out"]
    model = ["--model_name_or_path", checkpoint]
    return ["--config", RECIPES / f"{name}.yaml", *model, *paths, *small, *answers, *options.split(), *more]


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- the official settings -----------------------------------------------------------------------------------------

# Rows of a step (GPUs x rows x accumulation), length of training, learning rate, warm-up, label smoothing, drop path,
# side of the pictures, frozen embeddings: what the scripts in run_scripts/ pass on.
OFFICIAL = {
    "caption_stage1_base": (4 * 8 * 4, "5 epochs", 1e-5, 0.06, 0.1, 0.1, 480, True),
    "caption_stage1_large": (4 * 8 * 4, "2 epochs", 1e-5, 0.06, 0.1, 0.1, 480, True),
    "caption_stage1_el_large": (4 * 8 * 4, "2 epochs", 1e-5, 0.06, 0.1, 0.1, 480, True),
    "caption_stage2_base": (8 * 2 * 4, "3 epochs", 1e-5, 0.06, 0.0, 0.0, 480, True),
    "caption_stage2_large": (8 * 2 * 4, "3 epochs", 1e-5, 0.06, 0.0, 0.0, 480, True),
    "vqa_base": (32 * 4 * 4, "15 epochs", 5e-5, 0.04, 0.1, 0.1, 480, True),
    "vqa_large": (32 * 4 * 4, "40000 steps", 5e-5, 1000, 0.1, 0.2, 480, True),
    **{
        f"{name}_base": (4 * 4 * 8, "10 epochs", 5e-5, 0.06, 0.1, 0.1, 512, False)
        for name in ("refcoco", "refcocoplus")
    },
    "refcocog_base": (4 * 4 * 8, "12 epochs", 5e-5, 0.06, 0.1, 0.1, 512, False),
    **{
        f"{name}{loss}_large": (4 * 4 * 8, "10 epochs", 3e-5, 0.06, 0.1, 0.2, 512, False)
        for name in ("refcoco", "refcocoplus", "refcocog")
        for loss in ("", "_el")
    },
    "refcoco_adapter_large": (8 * 16 * 8, "100 epochs", 1e-4, 0.06, 0.1, 0.2, 480, False),
    "refcoco_prefix_large": (8 * 16 * 8, "100 epochs", 0.03, 0.06, 0.1, 0.2, 480, False),
    "refcoco_bitfit_large": (8 * 16 * 8, "100 epochs", 1e-4, 0.06, 0.1, 0.2, 480, False),
    "snli_ve_base": (8 * 4 * 8, "5 epochs", 5e-5, 0.06, 0.0, 0.1, 480, False),
    "snli_ve_large": (8 * 4 * 8, "6 epochs", 2e-5, 0.06, 0.0, 0.2, 480, False),
    "imagenet_large": (16 * 4 * 4, "160000 steps", 5e-5, 1000, 0.1, 0.1, 480, True),
    "image_generation_stage1_large": (32 * 4 * 4, "40000 steps", 1e-3, 2000, 0.0, 0.1, None, False),
    "gigaword_large": (4 * 64 * 2, "6 epochs", 1e-4, 0.06, 0.1, 0.1, None, False),
    "cola_large": (2 * 16, "5 epochs", 3e-5, 0.06, 0.0, 0.1, None, False),
    "mrpc_large": (2 * 16, "5 epochs", 3e-5, 0.06, 0.0, 0.1, None, False),
    "rte_large": (2 * 8 * 2, "5 epochs", 3e-5, 0.06, 0.0, 0.1, None, False),
    "sst2_large": (4 * 16, "5 epochs", 3e-5, 0.06, 0.0, 0.1, None, False),
    **{
        f"{name}_large": (8 * 8 * 2, "5 epochs", 3e-5, 0.06, 0.0, 0.1, None, False) for name in ("mnli", "qnli", "qqp")
    },
}
# What else they pass on.
DROPS_WORST = {
    "caption_stage1_base": (0.2, 6000),
    "caption_stage1_large": (0.2, 2500),
    "caption_stage1_el_large": (0.05, 2500),
}
PROMPTS = {"vqa": "prev_output", "snli": "prev_output"} | dict.fromkeys(
    ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"), "src"
)
TRAINED_ALONE = {"adapter": ["adapters"], "prefix": ["prefix"], "bitfit": ["official_bias"]}


def test_every_recipe_is_compared_with_the_official_settings():
    files = {path.stem for path in RECIPES.glob("*.yaml")}
    assert {name for name in files if not name.startswith(("pretrain_", "tiny_example", "world_"))} == set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_recipe_has_the_official_settings(name):
    rows, length, rate, warm_up, smoothing, drop_path, side, is_frozen = OFFICIAL[name]
    recipe, args = script.parse(["--config", str(RECIPES / f"{name}.yaml"), "--use_cpu", "true"])
    config = json.loads(recipe.model_config)
    is_scst = name.startswith("caption_stage2")

    assert recipe.total_batch_size == args.per_device_train_batch_size * args.gradient_accumulation_steps == rows
    assert length == (f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs")
    assert (args.learning_rate, args.warmup_steps) == (rate, warm_up)
    assert args.label_smoothing_factor == smoothing
    assert [config[f"{stack}_drop_path_rate"] for stack in ("encoder", "decoder", "resnet")] == [
        drop_path,
        drop_path,
        0,
    ]
    assert (config["dropout"], config["attention_dropout"]) == (0.0 if is_scst else 0.1, 0.0)
    assert recipe.image_size == side
    assert ("embeddings" in recipe.freeze) == is_frozen

    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (args.weight_decay, args.max_grad_norm, args.lr_scheduler_type) == (0.01, 1.0, "polynomial")
    last = 2e-7 if name == "caption_stage2_large" else 0.0
    assert args.lr_scheduler_kwargs == {"lr_end": last, "power": 1.0}
    size, task = name.split("_")[-1], name.split("_")[0]
    assert size in recipe.model_name_or_path
    assert recipe.decoder_prompt == PROMPTS.get(task)
    assert recipe.train_only == next((kept for kind, kept in TRAINED_ALONE.items() if kind in name), [])
    assert (recipe.target_noise, recipe.augment) == (0.2 * (task == "gigaword"), task == "imagenet")
    assert (recipe.reward, getattr(args, "num_samples", None)) == (("cider", 5) if is_scst else (None, None))
    if not is_scst:
        closed = task in (*PROMPTS, "imagenet")
        assert args.constrained_loss == closed
        assert args.constraint_range == ([50265, 58457] if name.startswith("image_generation") else None)
        assert (args.drop_worst_ratio, args.drop_worst_after) == DROPS_WORST.get(name, (0.0, 0))
        assert args.encouraging_log_end == (0.75 if "_el_" in name else None)
        assert (args.ema_decay, args.rdrop_alpha) == (0.9999 if task == "vqa" else None, None)
    if name == "refcoco_adapter_large":
        assert config["adapter_dim"] == 100
    if name == "refcoco_prefix_large":
        assert (config["encoder_prompt_length"], config["decoder_prompt_length"]) == (100, 100)


def test_the_batch_stays_the_same_on_any_number_of_processes(monkeypatch):
    # Arguments that do not look for the other processes, which this test does not start.
    monkeypatch.setattr(script.OFATrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setattr(script.OFATrainingArguments, "n_gpu", 1)

    def steps(*arguments: str) -> int:
        _, args = script.parse(["--config", str(RECIPES / "vqa_base.yaml"), *arguments])
        return args.gradient_accumulation_steps

    assert steps() == 128
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert steps() == 4
    assert steps("--per_device_train_batch_size", "16") == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="512 rows a step .* no multiple of 3 processes"):
        steps()


# --- from raw data to a saved model --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DATA if name != "caption_stage2_base"])
def test_a_recipe_runs_from_raw_data_to_a_saved_and_evaluated_model(name, checkpoint, tmp_path, capsys):
    # Codes of the tiny model, and tokens dropped from the first step on.
    own = {
        "image_generation_stage1_large": "--constraint_range 400 464 --model_config.code_image_size 32",
        "caption_stage1_base": "--drop_worst_after 0",
    }
    assert run(*command(name, checkpoint, tmp_path, *own.get(name, "").split())) == 0
    out = tmp_path / "out"
    state = read(out / "checkpoint-2" / "trainer_state.json")
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    printed = capsys.readouterr().out
    assert f"{out}: model and processor" in printed

    before, after = weights(checkpoint), weights(out)
    [embeddings] = [key for key in after if key.endswith("embed_tokens.weight")]
    recipe, _ = script.parse(["--config", str(RECIPES / f"{name}.yaml"), "--use_cpu", "true"])
    is_frozen = "embeddings" in recipe.freeze or bool(recipe.train_only)
    assert torch.equal(before[embeddings], after[embeddings]) == is_frozen
    changed = [key for key in after if key not in before or not torch.equal(before[key], after[key])]
    assert changed
    for part in recipe.train_only:
        assert all(re.search(PARTS[part], key) for key in changed)
    OFAForConditionalGeneration.from_pretrained(out)
    processor = OFAProcessor.from_pretrained(out)
    assert processor.decoder_prompt == (recipe.decoder_prompt or "none")
    if recipe.answers is not None:
        assert list(processor.answers.values()) == [["dog", "cat", "fire engine"]]
    if name == "vqa_base":
        assert (out / "checkpoint-2" / "ema.safetensors").is_file()
    if name == "image_generation_stage1_large":
        return  # drawn pictures are judged elsewhere
    [(task, found)] = read(out / "evaluation" / "metrics.json").items()
    assert found["scored"] == len(DATA[name])
    assert f"{task}: {found['scored']} of {found['scored']} scored: " in printed
    assert f"eval_{found['headline']}" in next(e for e in state["log_history"] if "eval_loss" in e)


def test_self_critical_training_goes_on_from_a_saved_model(checkpoint, tmp_path):
    more = ["--per_device_train_batch_size", 2, "--num_samples", 2, "--learning_rate", 1e-3]
    assert run(*command("caption_stage2_base", checkpoint, tmp_path, *more)) == 0
    out = tmp_path / "out"
    history = read(out / "checkpoint-2" / "trainer_state.json")["log_history"]
    assert all(0 <= entry["reward"] <= 10 for entry in history if "reward" in entry)
    assert sum("reward" in entry for entry in history) == 2
    assert "eval_cider" in next(entry for entry in history if "eval_loss" in entry)
    assert set(read(out / "evaluation" / "metrics.json")) == {"caption"}


def test_lora_is_an_option_and_saves_the_adapter_alone(checkpoint, tmp_path, capsys):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'modeling-ofa[train]'")
    more = ["--peft.r", 2, "--peft.target_modules", "[q_proj, v_proj]", "--learning_rate", 0.1, "--warmup_steps", 0]
    assert run(*command("refcoco_base", checkpoint, tmp_path, *more)) == 0
    out = tmp_path / "out"
    assert "adapter and processor" in capsys.readouterr().out
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert read(out / "adapter_config.json")["r"] == 2
    base = OFAForConditionalGeneration.from_pretrained(checkpoint)
    adapted = peft.PeftModel.from_pretrained(base, out)
    assert any(one.abs().max() > 0 for key, one in adapted.named_parameters() if "lora_B" in key)
    assert set(read(out / "evaluation" / "metrics.json")) == {"visual_grounding"}


def test_the_smallest_recipe_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = (
        "--use_cpu true --disable_tqdm true --max_steps 8 --eval_strategy no --save_strategy no --logging_steps 1"
    )
    assert run("--config", "recipes/tiny_example.yaml", "--output_dir", tmp_path, *options.split()) == 0
    assert "vqa: 12 of 12 scored: score " in capsys.readouterr().out
    losses = [e["loss"] for e in read(tmp_path / "trainer_state.json")["log_history"] if "loss" in e]
    assert losses[-1] < losses[0] / 2


def test_a_stream_is_trained_on_without_being_loaded(checkpoint, tmp_path):
    arguments = command("gigaword_large", checkpoint, tmp_path, "--train_data.streaming", "true")
    assert run(*arguments) == 0


# --- stopped and gone on with --------------------------------------------------------------------------------------


def killed_at(step: int, arguments: list[object]) -> None:
    """Runs the script until this step has been made, and kills it in the midst of the next one."""
    training_step = script.OFATrainer.training_step

    def step_or_die(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(trainer, *args, **kwargs)

    script.OFATrainer.training_step = step_or_die
    run(*arguments)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(checkpoint, tmp_path):
    def losses(folder: Path) -> list[float]:
        history = read(folder / "out" / "checkpoint-5" / "trainer_state.json")["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    more = ["--max_steps", 5, "--save_steps", 1, "--eval_strategy", "no", "--load_best_model_at_end", "false"]
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    whole, killed = (command("vqa_base", checkpoint, folder, *more) for folder in folders)
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(3, killed))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (folders[1] / "out" / "checkpoint-3").is_dir() and not (folders[1] / "out" / "model.safetensors").exists()
    assert run(*killed) == 0 and run(*whole) == 0
    torch.testing.assert_close(losses(folders[1]), losses(folders[0]), rtol=0, atol=1e-6)
    first, second = (weights(folder / "out") for folder in folders)
    torch.testing.assert_close(second, first, rtol=0, atol=1e-6)


# --- changes to rows of training, and metrics ----------------------------------------------------------------------


def test_noise_changes_what_the_decoder_reads_in_training_alone(checkpoint):
    processor = OFAProcessor.from_pretrained(checkpoint)
    collator = FinetuningCollator(processor, target_noise=1.0)
    rows = [{"task": "summarization", "text": "a dog sleeps", "target": target} for target in ("the dog", "text")]
    data = datasets.Dataset.from_list(rows)
    torch.manual_seed(0)
    plain, noisy = collator(list(data)), collator(list(collator.training_rows(data)))
    assert torch.equal(plain["labels"], noisy["labels"])
    ids, changed = plain["decoder_input_ids"], noisy["decoder_input_ids"]
    tokens = torch.zeros_like(ids, dtype=torch.bool)
    tokens[:, 1:] = (plain["labels"][:, :-1] > 2) & (plain["labels"][:, 1:] != -100)
    assert torch.equal(ids[~tokens], changed[~tokens])  # the start and padding
    assert (ids[tokens] != changed[tokens]).float().mean() > 0.9
    assert changed[tokens].min() >= 4 and changed[tokens].max() < count_words(processor.tokenizer)


def test_augmentation_changes_pictures_in_training_alone(checkpoint):
    processor = OFAProcessor.from_pretrained(checkpoint)
    collator = FinetuningCollator(processor, training_transform("image_classification", 64))
    rows = [{"task": "image_classification", "image": Image.open(SCENES / "scene_1.png"), "target": "dog"}]
    data = datasets.Dataset.from_list(rows)
    torch.manual_seed(0)
    plain = collator([data[0]])["pixel_values"]
    assert torch.equal(plain, collator([data[0]])["pixel_values"])
    training = collator.training_rows(data)
    changed = [collator([training[0]])["pixel_values"] for _ in range(3)]
    assert all(one.shape == plain.shape for one in changed)
    assert not any(torch.equal(one, other) for one, other in zip([plain, *changed], [*changed, plain], strict=True))


def test_generated_ids_are_scored_by_the_metrics_of_their_tasks(checkpoint, tmp_path):
    processor = OFAProcessor.from_pretrained(checkpoint)
    captions = write(tmp_path / "captions.tsv", DATA["caption_stage1_base"])
    boxes = write(tmp_path / "boxes.tsv", DATA["refcoco_base"][:1])
    data = [load_examples("tsv", captions, task="caption"), load_examples("tsv", boxes, task="visual_grounding")]
    data = datasets.concatenate_datasets(data)
    collator = FinetuningCollator(processor, size=96)
    ids = [collator([row])["labels"][0].tolist() for row in data]
    width = max(map(len, ids))
    right = torch.tensor([one + [-100] * (width - len(one)) for one in ids]).numpy()
    scores = TaskMetrics(processor, data, size=96)
    found = scores(EvalPrediction(right, None))
    assert found["visual_grounding_accuracy"] == 1.0
    assert found["caption_bleu_1"] == pytest.approx(1.0)
    assert scores.names() == list(found)
    wrong = right.copy()
    wrong[3, :4] = wrong[3, 0]  # an empty box
    assert scores(EvalPrediction(wrong, None))["visual_grounding_accuracy"] == 0.0


# --- bad input -----------------------------------------------------------------------------------------------------


def broken(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint whose configuration has a layer more than its weights."""
    model = OFAForConditionalGeneration.from_pretrained(checkpoint)
    OFAProcessor.from_pretrained(checkpoint).save_pretrained(folder)
    model.config.encoder_layers = 3
    model.save_pretrained(folder)
    return folder


BEST = ["--load_best_model_at_end", "true", "--save_strategy", "epoch", "--eval_strategy", "epoch"]
BEST += ["--metric_for_best_model"]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("caption_stage1_base", ["--learning_rte", "1e-4"], "there is no setting 'learning_rte'; did you mean"),
        ("caption_stage1_base", ["--config", "CONFIG"], "there is no setting 'lerning_rate'; did you mean"),
        ("caption_stage1_base", ["--config", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
        ("caption_stage1_base", ["--train_data.path", "nowhere.tsv"], "nowhere.tsv"),
        ("caption_stage1_base", ["--train_data.pth", "x"], "has no option pth"),
        ("caption_stage1_base", ["--data", "{}"], "The data has no format"),
        ("caption_stage1_base", ["--data", "tsv"], "data is a mapping, such as {key: value}, and not tsv"),
        ("caption_stage1_base", ["--model_name_or_path", "./nowhere"], "no such folder: ./nowhere"),
        ("caption_stage1_base", ["--model_name_or_path", "BROKEN"], "lacks 23 weights of the model"),
        ("caption_stage1_base", ["--model_config.dropuot", "0"], "model_config: there is no setting 'dropuot'"),
        ("caption_stage1_base", ["--model_config.d_model", "64"], "cannot load the checkpoint"),
        ("caption_stage1_base", ["--image_size", "480"], "positions for 128 at most: make image_size smaller"),
        ("caption_stage1_base", ["--freeze", "resent"], "A model has no part 'resent'"),
        ("caption_stage1_base", ["--total_batch_size", "3", "--per_device_train_batch_size", "2"], "no multiple of"),
        ("caption_stage1_base", ["--decoder_prompt", "sorc"], "invalid choice: 'sorc'"),
        ("caption_stage2_base", ["--reward", "bleu"], "invalid choice: 'bleu'"),
        ("caption_stage1_base", ["--eval_data.streaming", "true"], "--eval_data.streaming false"),
        ("vqa_base", ["--answers.vqa", "nowhere.json"], "No such file or directory: 'nowhere.json'"),
        ("vqa_base", ["--answers.vqa", "OTHER"], "targets of task 'vqa', such as 'cat', are not among its 1 answers"),
        ("imagenet_large", ["--answers", "{}"], "'image_classification' chooses from a closed list"),
        ("gigaword_large", ["--target_noise", "2"], "share of 0 to 1"),
        ("cola_large", ["--augment", "true"], "changes no pictures of task 'cola'"),
        ("caption_stage2_base", ["--train_data.streaming", "true"], "give cider_frequencies"),
        ("caption_stage2_base", ["--rdrop_alpha", "1.0"], "rdrop_alpha is of training with given answers"),
        ("refcoco_base", ["--peft.rr", "4"], "peft: there is no setting 'rr'"),
        ("refcoco_base", ["--peft.peft_type", "LORRA"], "peft has no method 'LORRA'; its methods are"),
        ("refcoco_base", ["--image_size", "0"], "image_size is 0, but a patch of a picture has 16 pixels a side"),
        ("refcoco_base", ["--sample_patch_num", "17"], "pictures of 64 × 64 pixels have 16 patches"),
        ("refcoco_base", ["--max_steps", "1", "--warmup_steps", "1"], "All steps are warm-up with max_steps 1"),
        ("refcoco_base", [*BEST, "cider"], "metric_for_best_model is cider, but evaluation gives loss, nll_loss, acc"),
        ("vqa_base", ["--answers", "{}"], "give one as answers, or leave constrained_loss out"),
    ],
)
def test_bad_input_is_one_line_before_the_first_step(name, more, message, checkpoint, tmp_path, capsys, monkeypatch):
    def train(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(script.Seq2SeqTrainer, "train", train)
    (tmp_path / "config.yaml").write_text("lerning_rate: 1e-4\n")
    (tmp_path / "other.txt").write_text("dog\n")
    names = {"CONFIG": tmp_path / "config.yaml", "OTHER": tmp_path / "other.txt"}
    if "BROKEN" in more:
        names["BROKEN"] = broken(checkpoint, tmp_path / "broken")
    assert run(*command(name, checkpoint, tmp_path, *(names.get(one, one) for one in more))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("finetune.py: error: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("augment", ["true", "false"])
def test_a_damaged_picture_is_named_in_one_line(augment, tmp_path, capsys):
    whole = (SCENES / "scene_1.png").read_bytes()
    for name, picture in (("whole.png", whole), ("half.png", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(picture)
    (tmp_path / "rows.csv").write_text("file_name,text,target\nwhole.png,what?,a\nhalf.png,what?,b\n")
    recipe = ["--config", RECIPES / "tiny_example.yaml", "--output_dir", tmp_path / "out", "--use_cpu", "true"]
    recipe += ["--augment", augment]
    assert run(*recipe, "--data.path", tmp_path / "rows.csv", "--train_data", "{}", "--eval_data", "{}") == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune.py: error: ")]
    assert "half.png is truncated or damaged" in error


def test_another_run_does_not_go_on_in_the_same_folder(checkpoint, tmp_path, capsys):
    arguments = command("cola_large", checkpoint, tmp_path)
    assert run(*arguments) == 0
    assert run(*arguments, "--freeze", "decoder") == 2
    assert "holds a run with another freeze" in capsys.readouterr().err
