"""The world of composed scenes and the recipe of the embedded checkpoint, on drawings made up here."""

import argparse
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainingArguments

from modeling_ofa import DEFAULT_CHECKPOINT, OFAForConditionalGeneration


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))  # at the end: it has an evaluate.py

import build_world  # noqa: E402
import evaluate_embedded  # noqa: E402
import train_embedded  # noqa: E402


WORDS = ["car", "cat", "dog", "fish", "palm tree", "star"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six names drawn as coloured ellipses by seven designs."""
    size = build_world.RENDER
    y, x = np.mgrid[:size, :size] / size - 0.5
    drawings = np.zeros((len(build_world.SETS), len(WORDS), size, size, 4), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for index in np.ndindex(drawings.shape[:2]):
        width, height = rng.uniform(0.2, 0.45, 2)
        drawings[index][(x / width) ** 2 + (y / height) ** 2 < 1] = (*rng.integers(0, 256, 3), 255)
    path = tmp_path_factory.mktemp("world") / "world.npz"
    np.savez(path, drawings=drawings, designs=list(build_world.SETS), names=WORDS)
    return build_world.World(path)


@pytest.fixture(scope="module")
def processor():
    return train_embedded.build_processor()


@pytest.fixture(scope="module")
def scenes(world):
    return [world.compose(np.random.default_rng(seed)) for seed in range(60)]


# --- the artwork ---------------------------------------------------------------------------------------------------
def archive(folder, version, licence):
    path = folder / "set.tgz"
    members = {
        "package": {"version": version, "license": licence},
        "info": {"license": {"spdx": licence}},
        "icons": {"prefix": "noto", "icons": {}},
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_set_of_another_version_or_licence_is_refused(tmp_path):
    version, licence, _ = build_world.SETS["noto"]
    assert build_world.read_set("noto", archive(tmp_path, version, licence))["prefix"] == "noto"
    with pytest.raises(SystemExit, match="0.0.1"):
        build_world.read_set("noto", archive(tmp_path, "0.0.1", licence))
    with pytest.raises(SystemExit, match="proprietary"):
        build_world.read_set("noto", archive(tmp_path, version, "proprietary"))


def test_an_archive_with_another_digest_is_refused(tmp_path):
    (tmp_path / f"iconify-json-noto-{build_world.SETS['noto'][0]}.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the pinned archive"):
        build_world.fetch("noto", tmp_path)


def test_without_npm_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(build_world.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="Install Node.js.*npm pack @iconify-json/noto@"):
        build_world.fetch("noto", tmp_path)


def test_a_test_drawing_that_is_a_training_drawing_is_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(build_world, "fetch", lambda design, cache: None)
    monkeypatch.setattr(build_world, "read_set", lambda design, archive: {"design": design})
    same = np.zeros((4, 4, 4), dtype=np.uint8)
    copies = ["noto", "twemoji"]

    def draw(icons, slugs):
        copied = icons["design"] in copies and slugs == ["dog"]
        return same if copied else rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)

    monkeypatch.setattr(build_world, "draw", draw)
    with pytest.raises(SystemExit, match="twemoji is also a training drawing"):
        build_world.build(tmp_path)
    assert not (tmp_path / "world.npz").exists()
    copies.remove("twemoji")
    assert build_world.build(tmp_path).exists()


def test_an_icon_is_found_whatever_its_hyphens_and_drawn_with_its_alpha():
    pytest.importorskip("resvg_py", reason="resvg-py draws the icons; it comes with the extra `world`")
    icons = {
        "prefix": "x",
        "width": 10,
        "height": 10,
        "icons": {"redapple": {"body": '<path fill="#f00" d="M0 0h5v10H0z"/>'}},
        "aliases": {"apple": {"parent": "redapple"}},
    }
    drawing = build_world.draw(icons, ["red-apple"])
    assert drawing.shape == (build_world.RENDER, build_world.RENDER, 4)
    assert drawing[10, 10].tolist() == [255, 0, 0, 255] and drawing[10, -10, 3] == 0
    assert np.array_equal(build_world.draw(icons, ["apple"]), drawing)
    with pytest.raises(SystemExit, match="no icon named pear"):
        build_world.draw(icons, ["pear"])


def test_a_missing_world_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_world.py"):
        build_world.World(tmp_path / "world.npz")


# --- the scenes ----------------------------------------------------------------------------------------------------
def test_a_seed_gives_one_scene(world):
    first, again = (world.compose(np.random.default_rng(7), augment=True) for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels) and first.names == again.names
    assert not np.array_equal(first.pixels, world.compose(np.random.default_rng(8), augment=True).pixels)


def test_boxes_are_those_of_the_visible_pixels(scenes):
    for scene in scenes:
        for i, box in enumerate(scene.boxes):
            y, x = np.nonzero(scene.owner == i)
            seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert np.abs(seen - box).max() <= 2  # half-transparent rims count for the box, not for the owner


def test_objects_stand_apart_in_the_order_from_left_to_right(scenes):
    for scene in scenes:
        centres = (scene.boxes[:, 0] + scene.boxes[:, 2]) / 2
        assert (np.diff(centres) >= 0.07 * scene.pixels.shape[0]).all()
    assert {len(scene.names) for scene in scenes} == {1, 2, 3, 4}


def test_captions_count_equal_objects():
    scene = build_world.Scene(None, ["elephant", "mouse", "palm tree", "mouse"], None, None)
    assert build_world.caption(scene) == "an elephant and two mice and a palm tree"
    assert evaluate_embedded.objects_of(build_world.caption(scene)) == Counter(scene.names)


def test_every_answer_is_true_of_the_scene(scenes, world):
    seen = Counter()
    for seed, scene in enumerate(scenes):
        asked = build_world.questions(scene, np.random.default_rng(seed), world.names)
        centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 - scene.pixels.shape[0] / 2
        for kind, (question, answer) in asked.items():
            seen[kind, answer if kind in ("exists", "where") else ""] += 1
            if kind == "exists":
                name = question[len("is there a ") : -1].strip()
                assert answer == ("yes" if name in scene.names else "no")
            elif kind == "count":
                assert int(answer) == len(scene.names)
            elif kind == "count of":
                named = next(name for name in WORDS if question == f"how many {build_world.plural(name)} are there?")
                assert int(answer) == scene.names.count(named)
            elif kind == "what":
                assert [answer] == scene.names
            elif kind == "side":
                side = question.rstrip("?").split(" ")[-1]
                end = np.argmin if side in ("left", "top") else np.argmax
                assert answer == scene.names[end(centres[:, int(side in ("top", "bottom"))])]
            elif kind == "where":
                x, y = centres[scene.names.index(question[len("where is the ") : -1])]
                assert answer == (("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("top", "bottom")[int(y > 0)])
    assert {kind for kind, _ in seen} == {"exists", "count", "count of", "what", "side", "where"}
    assert 0.3 < seen["exists", "yes"] / (seen["exists", "yes"] + seen["exists", "no"]) < 0.7


def test_phrases_mean_one_object_only(scenes):
    for scene in scenes:
        for text, box in build_world.phrases(scene, np.random.default_rng(0)):
            name = text.removeprefix("the ").removeprefix("a ").removeprefix("an ")
            assert scene.names.count(name) == 1
            assert np.array_equal(scene.boxes[scene.names.index(name)], box)


def test_demo_scenes_come_with_what_to_ask(world, tmp_path):
    build_world.write_demo(world, tmp_path, [1, 2])
    rows = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert len(rows) == 2
    for row in rows:
        assert Image.open(tmp_path / row["file"]).size == (320, 320)
        assert row["phrase"] and all(question.endswith("?") for question in row["questions"])


# --- the recipe ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def dataset(world, processor):
    return train_embedded.SceneDataset(world, processor.tokenizer, length=40, seed=0)


def test_training_rows_are_those_of_the_processor(world, processor, dataset):
    tasks = Counter()
    for seed in range(20):
        scene = world.compose(np.random.default_rng(seed), size=train_embedded.SIZE)
        image = Image.fromarray(scene.pixels)
        rows = dataset.rows(scene, np.random.default_rng(seed))
        item = {"pixels": scene.pixels, "patch_names": dataset.patch_names(scene), "rows": rows}
        pixels = train_embedded.collate([item])["pixel_values"][0]

        rng = np.random.default_rng(seed)  # draws in the order in which `rows` draws
        asked = build_world.questions(scene, rng, world.names).values()
        rng.permutation(len(asked))
        targets = [("caption", {}, build_world.caption(scene))]
        targets += [("visual_grounding", {"text": text}, box) for text, box in build_world.phrases(scene, rng)]
        targets += [("vqa", {"text": question}, answer) for question, answer in asked]
        expected = {}
        for task, text, target in targets:
            inputs = processor(task=task, images=image, target=target, **text)
            expected[tuple(inputs["input_ids"][0])] = task, list(inputs["labels"][0])
            torch.testing.assert_close(pixels, torch.as_tensor(np.asarray(inputs["pixel_values"][0])))
        for source, labels in rows:
            task, wanted = expected[tuple(source)]
            assert labels == wanted
            tasks[task] += 1
    assert set(tasks) == {"caption", "visual_grounding", "vqa"}


def test_training_data_is_the_same_each_time(world, dataset):
    items = [dataset[i] for i in range(len(dataset))]
    assert {len(item["rows"]) for item in items} == {train_embedded.ROWS}
    again = dataset[5]
    assert np.array_equal(again["pixels"], items[5]["pixels"]) and again["rows"] == items[5]["rows"]
    objects = train_embedded.ObjectDataset(world, length=8, seed=0)
    assert torch.equal(objects[3]["pixel_values"], objects[3]["pixel_values"])
    assert not torch.equal(objects[3]["pixel_values"], objects[4]["pixel_values"])
    assert all(0 <= objects[i]["labels"] < len(WORDS) for i in range(8))


def test_patches_carry_the_name_of_the_object_on_them(world, processor, dataset):
    size, patch = train_embedded.SIZE, train_embedded.PATCH
    scene = world.compose(np.random.default_rng(3), counts=(1,), size=size)
    names = dataset.patch_names(scene)
    x, y = ((scene.boxes[0, :2] + scene.boxes[0, 2:]) / 2 // patch).astype(int)
    middle = names[y * (size // patch) + x]
    assert processor.tokenizer.decode([middle]).strip() == scene.names[0].split()[0]
    assert set(names) == {middle, processor.tokenizer.mask_token_id}


def test_every_name_starts_with_a_token_of_its_own(processor):
    encode = processor.tokenizer
    firsts = {encode(f" {name}")["input_ids"][1] for name in build_world.NAMES}
    assert len(firsts) == len(build_world.NAMES)


@pytest.fixture(scope="module")
def recipe(world, tmp_path_factory):
    """One step of each part of the training."""
    folder = tmp_path_factory.mktemp("recipe")
    objects, scenes = train_embedded.OBJECT_BATCH, train_embedded.SCENE_BATCH
    arguments = argparse.Namespace(
        output=folder / "out", work=folder / "work", objects=objects, scenes=scenes, lr=1e-3, seed=0, resume=False
    )
    train_embedded.train(arguments, world)
    return arguments


def test_the_recipe_saves_half_precision_that_loads_in_single(recipe):
    weights = load_file(recipe.output / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}
    model = OFAForConditionalGeneration.from_pretrained(recipe.output)
    assert model.dtype == torch.float32
    weight = model.model.encoder.image_proj.weight
    assert torch.equal(weight, weights["model.encoder.image_proj.weight"].float())
    assert model.num_parameters() < 6.5e6


def test_the_recipe_resumes_where_it_stopped(recipe, world):
    before = (recipe.output / "model.safetensors").read_bytes()
    recipe.resume = True
    train_embedded.train(recipe, world)  # both parts are over: nothing is left to learn
    assert (recipe.output / "model.safetensors").read_bytes() == before
    recipe.scenes *= 2
    train_embedded.train(recipe, world)
    assert (recipe.output / "model.safetensors").read_bytes() != before


def test_metrics_and_model_card_are_written_for_a_saved_checkpoint(recipe, world):
    metrics = evaluate_embedded.evaluate(recipe.output, world, scenes=6)
    evaluate_embedded.write_card(recipe.output, metrics, scenes=8, evaluated=6)
    assert set(metrics) == {"seen designs", "twemoji", "openmoji"}
    assert json.loads((recipe.output / "metrics.json").read_text(encoding="utf-8")) == metrics
    card = (recipe.output / "README.md").read_text(encoding="utf-8")
    assert "| Box |" in card and "not photographs" in card


def trainer_of(model, dataset, folder):
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    ids = {"first_bin": dataset.first_bin, "ground_id": dataset.ground_id}
    return train_embedded.SceneTrainer(model=model, args=arguments, **ids)


def test_features_computed_once_per_scene_give_the_loss_of_repeated_pictures(processor, dataset, tmp_path):
    model = train_embedded.build_model(len(processor.tokenizer)).eval()
    trainer = trainer_of(model, dataset, tmp_path)
    items = [dataset[i] for i in range(2)]
    for item in items:
        item["rows"] = item["rows"][:1] * train_embedded.ROWS  # so that the names of patches are asked alike, too
    batch = train_embedded.collate(items)
    repeated = dict(batch)
    for name in ("pixel_values", "patch_names"):
        repeated[name] = batch[name].repeat_interleave(train_embedded.ROWS, dim=0)
    torch.testing.assert_close(trainer.compute_loss(model, batch), trainer.compute_loss(model, repeated))


def test_box_targets_are_spread_over_neighbouring_bins(processor, dataset, tmp_path):
    model = train_embedded.build_model(len(processor.tokenizer))
    trainer = trainer_of(model, dataset, tmp_path)
    spread = trainer.neighbours
    torch.testing.assert_close(spread.sum(-1), torch.ones(len(spread)))
    assert spread[500, 500] > spread[500, 510] > spread[500, 540]


def test_overlap_is_intersection_over_union():
    box = np.array([0.0, 0.0, 4.0, 4.0])
    assert evaluate_embedded.iou(box, box) == 1
    assert evaluate_embedded.iou(box, box + [2, 0, 2, 0]) == pytest.approx(8 / 24)
    assert evaluate_embedded.iou(box, box + 10) == 0


# --- the checkpoint that ships -------------------------------------------------------------------------------------
def test_the_embedded_checkpoint_is_small_and_beats_chance_on_the_design_it_never_saw():
    folder = Path(DEFAULT_CHECKPOINT)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15e6
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["twemoji"]
    assert measured["caption"]["exact"] > 10 * max(measured["caption"]["exact by chance"], 0.002)
    assert measured["vqa"]["all"]["accuracy"] > measured["vqa"]["all"]["by chance"] + 0.1
    boxes = measured["visual_grounding"]
    assert boxes["accuracy"] > 5 * boxes["by chance"]
