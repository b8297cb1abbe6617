"""A ResNet learns to name patches, and the model begins with it."""

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file

from modeling_ofa import (
    DEFAULT_CHECKPOINT,
    OFAConfig,
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
)
from modeling_ofa.data.example import complete
from modeling_ofa.data.readers import EXAMPLE_FEATURES
from modeling_ofa.modeling_ofa import OFAEncoder


def load_script(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclasses look there
    spec.loader.exec_module(script)
    return script


script = load_script("pretrain_backbone")
load_backbone = load_script("pretrain").load_backbone

COLOURS = {"sea": (0, 60, 200), "leaf": (30, 180, 40), "brick": (190, 50, 30)}
CONFIG = {"resnet_depths": [1, 1, 1], "resnet_embedding_size": 8, "d_model": 32, "encoder_attention_heads": 4}


def rows(number: int) -> list[dict]:
    """Grey pictures with two squares each, whose colours are their names."""
    rng, made = np.random.default_rng(0), []
    for i in range(number):
        picture, boxes, names = Image.new("RGB", (64, 64), (128, 128, 128)), [], []
        for x in (0, 32):
            name = rng.choice(list(COLOURS))
            y = int(rng.integers(0, 3)) * 16
            box = (x, y, x + 32, y + 16)
            picture.paste(COLOURS[name], box)
            boxes.append(box)
            names.append(str(name))
        file = io.BytesIO()
        picture.save(file, "PNG")
        columns = {"id": str(i), "task": "object_detection", "image": file.getvalue(), "boxes": boxes, "labels": names}
        made.append(complete(columns, labelled=True))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boxes") / "data"
    folder.mkdir()
    Dataset.from_list(rows(64), features=EXAMPLE_FEATURES).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder.parent


def words(data: Path, output: Path, *more: str) -> list[str]:
    settings = {"data": json.dumps({"format": "parquet", "path": str(data)}), "model_config": json.dumps(CONFIG)}
    settings |= {"image_size": 64, "output_dir": str(output), "max_steps": 30, "per_device_train_batch_size": 16}
    settings |= {"learning_rate": 1e-2, "use_cpu": True, "report_to": "none", "logging_steps": 5, "save_steps": 10}
    settings |= {"lr_scheduler_type": "constant", "processor": DEFAULT_CHECKPOINT}
    return [*(word for name, value in settings.items() for word in (f"--{name}", str(value))), *more]


def test_a_patch_has_the_name_of_the_smallest_box_around_its_middle():
    places = {"frame": 1, "thing": 2}
    collate = script.PatchCollator(OFAImageProcessorPil(size={"height": 64, "width": 64}), places)
    row = {
        "image": Image.new("RGB", (128, 128)),
        "boxes": [[30.0, 50.0, 90.0, 128.0], [0.0, 0.0, 128.0, 128.0]],
        "labels": ["thing", "frame"],
    }
    without = {"image": Image.new("RGB", (50, 60)), "boxes": [], "labels": []}
    batch = collate([row, without])
    # Patches of 64 pixels in 4 x 4 have their middles at 16, 48, 80 and 112 of the 128.
    assert batch["labels"].view(2, 4, 4)[0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 1], [1, 2, 2, 1]]
    assert not batch["labels"][1].any() and batch["pixel_values"].shape == (2, 3, 64, 64)
    # From the middle of the third patch of the third row, at (80, 80), to the sides of the thing.
    expected = torch.tensor([50, 30, 10, 48]) / 128
    torch.testing.assert_close(batch["sides"].view(2, 4, 4, 4)[0, 2, 2], expected)
    assert not batch["sides"][1].any()
    middles = batch["middles"].view(2, 4, 4)
    assert middles.sum(dim=(1, 2)).tolist() == [2, 0]
    # That of the thing, at (60, 89), is in the third row, and between the second column and the third.
    assert middles[0, 2, 1] > middles[0, 2, 2] > middles[0, 1, 1] and middles[0, :2, :].sum() > middles[0, 3].sum()


def test_middles_are_shared_by_the_patches_around_them():
    boxes = np.array([[0.0, 0.0, 0.25, 0.25], [0.5, 0.5, 1.0, 0.75], [0.9, 0.9, 1.0, 1.0]])
    middles = script.middles_of(boxes, 4, 4)
    assert middles.sum() == pytest.approx(3) and middles[3, 3] == 1
    assert middles[0, 0] == 1
    assert middles[2, 2:].tolist() == [0.5, 0.5]
    assert not script.middles_of(boxes[:0], 4, 4).any()


def test_names_that_begin_with_the_same_token_have_one_place():
    tokenizer = OFATokenizer.from_pretrained(DEFAULT_CHECKPOINT)
    first = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("dog", "cat")}
    ids, places = script.name_tokens(["dog", "dog dog", "cat"], tokenizer)
    assert ids == [tokenizer.unk_token_id, first["dog"], first["cat"]]
    assert places == {"dog": 1, "dog dog": 1, "cat": 2}


def test_it_learns_and_a_model_begins_with_what_it_learned(data, tmp_path, capsys):
    assert script.main(words(data, tmp_path / "run")) == 0
    weights = load_file(capsys.readouterr().out.strip().splitlines()[-1])
    tokenizer = OFATokenizer.from_pretrained(DEFAULT_CHECKPOINT)
    encoder = OFAEncoder(OFAConfig(**CONFIG, vocab_size=len(tokenizer))).eval()
    load_backbone(encoder, str(tmp_path / "run" / "backbone.safetensors"))
    own = encoder.embed_images.state_dict() | encoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items())

    # To the model patches now look like the words for what they show.
    ids, places = script.name_tokens(sorted(COLOURS), tokenizer)
    batch = script.PatchCollator(OFAImageProcessorPil(size={"height": 64, "width": 64}), places)(rows(8))
    with torch.no_grad():
        patches = encoder.image_proj(encoder.embed_images(batch["pixel_values"]).flatten(2).transpose(1, 2))
    named = (patches @ encoder.embed_tokens.weight[ids].T).argmax(-1)
    inside = batch["labels"] > 0
    assert (named == batch["labels"])[inside].float().mean() > 0.8

    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]

    # The same command is over at once, and a longer one goes on.
    assert script.main(words(data, tmp_path / "run")) == 0
    same = load_file(tmp_path / "run" / "backbone.safetensors")
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    assert script.main(words(data, tmp_path / "run", "--max_steps", "31")) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 31 and len(state["log_history"]) >= len(losses)
    again = load_file(tmp_path / "run" / "backbone.safetensors")
    assert 0 < (again["conv1.weight"] - weights["conv1.weight"]).abs().max() < 0.1


def test_the_resnet_of_a_model_goes_on_and_tells_middles(data, tmp_path, capsys):
    more = ["--checkpoint", DEFAULT_CHECKPOINT, "--model_config", "{}", "--learning_rate", "1e-3"]
    more += ["--ground_weight", "0", "--middles_weight", "20"]
    assert script.main(words(data, tmp_path / "run", *more)) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "run")
    before, after = (
        OFAForConditionalGeneration.from_pretrained(one, dtype=torch.float32)
        for one in (DEFAULT_CHECKPOINT, tmp_path / "run")
    )
    changed = [
        name
        for (name, one), other in zip(before.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(one, other)
    ]
    assert changed and all("embed_images" in name for name in changed)
    assert OFAProcessor.from_pretrained(tmp_path / "run").answers
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoint", DEFAULT_CHECKPOINT], "Leave out model_config"),
        (["--data", '{"format": "parquet", "path": "nowhere"}'], "nowhere"),
        (["--learning_rat", "1"], "did you mean 'learning_rate'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(data, tmp_path, capsys, more, message):
    assert script.main(words(data, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
