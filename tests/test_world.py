"""The world of composed scenes, its data sets, and the recipe of the embedded checkpoint, on drawings made up here."""

import io
import json
import re
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load

from modeling_ofa import DEFAULT_CHECKPOINT, DataCollatorForOFA, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.data import load_examples
from modeling_ofa.tasks import get_task
from modeling_ofa.training.pretraining import Negatives, PretrainingCollator, PretrainingMixture, PretrainingRows
from modeling_ofa.training.pretraining_data import MixedStream
from modeling_ofa.training.streams import RowStream


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))  # at the end: it has an evaluate.py

import align_heads  # noqa: E402
import build_world  # noqa: E402
import count_heads  # noqa: E402
import evaluate_embedded  # noqa: E402
import point_heads  # noqa: E402
import train_embedded  # noqa: E402
from pretrain_backbone import middles_of  # noqa: E402
from world import artwork  # noqa: E402
from world.artwork import CACHE, FILE, SETS, TRAIN_DESIGNS, Drawings, WorldError  # noqa: E402
from world.grounds import COLOURS, draw_ground  # noqa: E402
from world.processor import build_processor  # noqa: E402
from world.publish import TEST_PARTS, TRAINING_PARTS, write_negatives, write_split  # noqa: E402
from world.questions import claim, question, questions  # noqa: E402
from world.scenes import World  # noqa: E402
from world.splits import SPLITS, make_example, misspell, stream  # noqa: E402
from world.tasks import TASKS, several_questions  # noqa: E402
from world.things import GROUPS, THINGS, group_of  # noqa: E402
from world.words import MOST, NUMBERS, caption, one, phrases, plural, wrong_caption  # noqa: E402


WORDS = ["apple", "car", "cat", "dog", "fish", "palm", "pants", "star"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of eight things drawn as coloured ellipses by all designs."""
    size = artwork.RENDER
    y, x = np.mgrid[:size, :size] / size - 0.5
    rng = np.random.default_rng(0)
    designs, names = zip(*((design, name) for design in SETS for name in WORDS), strict=True)
    pixels = np.zeros((len(names), size, size, 4), dtype=np.uint8)
    for drawing in pixels:
        width, height = rng.uniform(0.2, 0.45, 2)
        drawing[(x / width) ** 2 + (y / height) ** 2 < 1] = (*rng.integers(0, 256, 3), 255)
    path = tmp_path_factory.mktemp("world") / FILE
    Drawings(pixels, designs, names).save(path)
    return path


@pytest.fixture(scope="module")
def world(path):
    return World(path)


@pytest.fixture(scope="module")
def scenes(world):
    return [world.compose(np.random.default_rng(seed)) for seed in range(150)]


@pytest.fixture(scope="module")
def embedded():
    return OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT)


# --- the artwork ---------------------------------------------------------------------------------------------------
def pack(folder, version, licence):
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
    icons = SETS["noto"]
    assert artwork.read_icons("noto", pack(tmp_path, icons.version, icons.licence))["prefix"] == "noto"
    with pytest.raises(WorldError, match="0.0.1"):
        artwork.read_icons("noto", pack(tmp_path, "0.0.1", icons.licence))
    with pytest.raises(WorldError, match="proprietary"):
        artwork.read_icons("noto", pack(tmp_path, icons.version, "proprietary"))


def test_no_set_to_train_on_has_a_licence_that_forbids_or_binds_what_is_made_of_it():
    assert {SETS[design].licence for design in TRAIN_DESIGNS} <= {"Apache-2.0", "MIT", "CC-BY-4.0"}
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for icons in SETS.values():
        assert re.search(r"https://[^)]+", icons.credit)[0] in notice


def test_an_archive_with_another_digest_is_refused(tmp_path):
    (tmp_path / f"iconify-json-noto-{SETS['noto'].version}.tgz").write_bytes(b"something else")
    with pytest.raises(WorldError, match="not the pinned archive"):
        artwork.fetch("noto", tmp_path)


def test_without_npm_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(artwork.shutil, "which", lambda name: None)
    with pytest.raises(WorldError, match="Install Node.js.*npm pack @iconify-json/noto@"):
        artwork.fetch("noto", tmp_path)


ICONS = {
    "prefix": "x",
    "width": 10,
    "height": 10,
    "icons": {
        "redapple": {"body": '<path fill="#f00" d="M0 0h5v10H0z"/>'},
        "pear-1": {"body": '<path d="M0 0h9v9z"/>'},
        "pear-2": {"body": '<path d="M0 0h8v8z"/>'},
        "2": {"body": ""},
    },
    "aliases": {"apple": {"parent": "fruit"}, "fruit": {"parent": "redapple"}},
}


def test_icons_are_found_whatever_their_hyphens_numbers_and_other_names():
    assert artwork.find_icons(ICONS, "red-apple") == artwork.find_icons(ICONS, "apple") == ["redapple"]
    assert artwork.find_icons(ICONS, "pear") == ["pear-1", "pear-2"]
    assert artwork.find_icons(ICONS, "plum") == []
    assert SETS["fxemoji"].its_name("cat") == "catside" and SETS["fxemoji"].its_name("bird") == ""
    assert SETS["noto"].its_name("cat") == "cat"


def test_an_icon_is_drawn_with_its_alpha():
    pytest.importorskip("resvg_py", reason="resvg-py draws the icons; it comes with the extra `world`")
    drawing = artwork.draw(ICONS, "redapple")
    assert drawing.shape == (artwork.RENDER, artwork.RENDER, 4)
    assert drawing[10, 10].tolist() == [255, 0, 0, 255] and drawing[10, -10, 3] == 0


@pytest.fixture
def artists(monkeypatch):
    """Sets of patches instead of the real ones: every design has all things, some drawn as the test says."""
    rng = np.random.default_rng(0)
    copies: dict[str, np.ndarray] = {}
    monkeypatch.setattr(artwork, "THINGS", {name: THINGS[name] for name in WORDS})
    monkeypatch.setattr(artwork, "fetch", lambda design, folder: None)
    monkeypatch.setattr(artwork, "read_icons", lambda design, archive: design)
    monkeypatch.setattr(artwork, "find_icons", lambda design, slug: [slug])

    def draw(design, icon):
        if icon == "dog" and design in copies:
            return copies[design]
        coarse = rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)
        return coarse.repeat(artwork.RENDER // 4, axis=0).repeat(artwork.RENDER // 4, axis=1)

    monkeypatch.setattr(artwork, "draw", draw)
    return copies


def test_a_test_drawing_that_is_nearly_a_training_drawing_is_refused(artists, tmp_path):
    drawing = np.full((artwork.RENDER, artwork.RENDER, 4), 255, dtype=np.uint8)
    artists["noto"], artists["twemoji"] = drawing, drawing - np.array([4, 4, 4, 0], dtype=np.uint8)
    with pytest.raises(WorldError, match="twemoji and noto draw a dog alike"):
        artwork.build(tmp_path)
    assert not (tmp_path / FILE).exists()
    artists["twemoji"] = drawing - np.array([100, 100, 100, 0], dtype=np.uint8)
    built = artwork.build(tmp_path)
    assert (tmp_path / FILE).exists() and set(built.of(["openmoji"])) == set(WORDS)


def test_a_thing_that_a_test_design_does_not_have_is_told(artists, tmp_path, monkeypatch):
    monkeypatch.setattr(artwork, "find_icons", lambda design, slug: [slug] * ((design, slug) != ("twemoji", "cat")))
    with pytest.raises(WorldError, match="twemoji has no drawing of cat"):
        artwork.build(tmp_path)


def test_what_is_drawn_already_is_not_drawn_again(path, monkeypatch):
    monkeypatch.setattr(artwork, "fetch", lambda design, folder: pytest.fail("fetched again"))
    assert artwork.build(path.parent).names == Drawings.load(path).names


def test_missing_or_older_drawings_say_how_to_make_them(tmp_path):
    with pytest.raises(WorldError, match="does not exist.*build_world.py"):
        World(tmp_path / FILE)
    np.savez(tmp_path / FILE, drawings=np.zeros(3), names=["dog"])
    with pytest.raises(WorldError, match="older version.*build_world.py"):
        World(tmp_path / FILE)


def test_no_real_drawing_to_test_with_is_one_to_train_with():
    if not (CACHE / FILE).exists():
        pytest.skip(f"{CACHE / FILE} does not exist: python scripts/build_world.py fetches the artwork")
    drawings = Drawings.load()
    digests = {True: set(), False: set()}
    for digest, design in zip(drawings.digests, drawings.designs, strict=True):
        digests[design in TRAIN_DESIGNS].add(digest)
    assert digests[True] and digests[False] and not digests[True] & digests[False]
    assert not list(drawings.copies())
    assert set(drawings.names) == set(THINGS)


# --- the scenes ----------------------------------------------------------------------------------------------------
def test_a_seed_gives_one_scene(world):
    first, again = (world.compose(np.random.default_rng(7), augment=True) for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels) and first.names == again.names
    assert not np.array_equal(first.pixels, world.compose(np.random.default_rng(8), augment=True).pixels)


@pytest.mark.parametrize("augment", [False, True])
def test_boxes_are_those_of_the_visible_pixels(world, augment):
    for seed in range(60):
        scene = world.compose(np.random.default_rng(seed), augment=augment)
        for i, box in enumerate(scene.boxes):
            y, x = np.nonzero(scene.owner == i)
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box.tolist()
        assert set(np.unique(scene.owner)) - {-1} == set(range(len(scene.names)))


def test_objects_go_from_left_to_right_in_every_number(scenes):
    for scene in scenes:
        assert (np.diff(scene.centres[:, 0]) >= 0).all()
        assert scene.pixels.dtype == np.uint8 and (scene.boxes >= 0).all() and (scene.boxes <= 128).all()
    assert {len(scene.names) for scene in scenes} == set(range(1, MOST + 1))


def test_at_most_a_quarter_of_an_object_is_hidden(world):
    size, hidden = 128, 0
    for seed in range(80):
        scene = world.compose(np.random.default_rng(seed), counts=(3,), size=size)
        for i, (x0, y0, x1, y1) in enumerate(scene.boxes):
            # Made-up drawings are ellipses turned a little: what is seen fills most of the box.
            shown = (scene.owner == i).sum() / ((x1 - x0) * (y1 - y0))
            hidden += shown < 0.7
            assert shown > 0.5
    assert hidden  # some are


def test_scenes_are_made_of_the_drawings_of_their_designs(world):
    for split, part in SPLITS.items():
        scene = world.compose(np.random.default_rng(3), part.designs, augment=part.augment)
        assert {world.artwork.designs[drawing] for drawing in scene.drawings} <= set(part.designs), split
        assert [world.artwork.names[drawing] for drawing in scene.drawings] == scene.names


def test_grounds_with_a_name_have_the_colour(world):
    named = 0
    for seed in range(200):
        pixels, colour = draw_ground(np.random.default_rng(seed), 32)
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.float32 and 0 <= pixels.min() <= pixels.max() <= 1
        if colour is not None:
            named += 1
            nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) / 255 - pixels[0, 0]).sum())
            assert nearest == colour and (pixels == pixels[0, 0]).all()
    assert 10 < named < 50


# --- what is said of them ------------------------------------------------------------------------------------------
def test_things_have_names_that_can_be_told_apart():
    assert len(THINGS) >= 80
    words = [*THINGS, *map(plural, THINGS), *GROUPS, *GROUPS.values()]
    same_plural = sum(plural(name) == name for name in THINGS)
    assert len(set(words)) == len(words) - same_plural
    for name, thing in THINGS.items():
        assert thing.slugs and thing.fact and len(name.split()) <= 2


def test_captions_count_equal_objects():
    assert caption(["cat", "dog", "palm", "dog"]) == "a cat and two dogs and a palm"
    assert caption(["pants", "apple"]) == "pants and an apple"
    assert caption([]) == "nothing"
    words = ("hourglass", "snowman", "trophy", "cherry", "bus", "church", "fox", "key")
    assert [plural(word)[-3:] for word in words] == ["ses", "men", "ies", "ies", "ses", "hes", "xes", "eys"]


def test_captions_of_most_objects_fit_what_captions_are_decoded_with():
    longest = caption(sorted(THINGS, key=lambda name: -len(name.split()))[:2] + list(WORDS[:3]))
    assert len(longest.split()) <= 16


def test_wrong_captions_are_wrong(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes:
        assert Counter(counted(wrong_caption(scene.names, WORDS, rng))) != Counter(scene.names)
    assert wrong_caption([], WORDS, rng) != "nothing"


def counted(text):
    """The objects that a caption names."""
    found = []
    for part in text.split(" and "):
        for name in WORDS:
            found += [name] * (part == one(name))
            found += [name] * sum(i * (part == f"{NUMBERS[i]} {plural(name)}") for i in range(2, 7))
    return found


def named(word):
    """The thing that a word means, one or several."""
    return next(name for name in WORDS if word in (name, plural(name)))


def holds(scene, text):
    """Whether a question for yes or no is to be answered with yes, by another way than it was made."""
    names, groups = scene.names, [group_of(name) for name in scene.names]
    x, y = (scene.boxes[:, :2] + scene.boxes[:, 2:]).T / 2
    if match := re.fullmatch(r"(?:is there|can you see|do you see) (?:an? )?(\w+)(?: in the picture)?\?", text):
        return match[1] in names + groups
    if match := re.fullmatch(r"(?:is|are) there (\w+) (\w+)\?", text):
        return names.count(named(match[2])) == NUMBERS.index(match[1])
    if match := re.fullmatch(r"is the (\w+) (left of|right of|above|below|bigger than) the (\w+)\?", text):
        i, k = names.index(match[1]), names.index(match[3])
        width, height = (scene.boxes[:, 2:] - scene.boxes[:, :2]).T
        is_so = {"left of": x[i] < x[k], "right of": x[i] > x[k], "above": y[i] < y[k], "below": y[i] > y[k]}
        return {**is_so, "bigger than": width[i] * height[i] > width[k] * height[k]}[match[2]]
    match = re.fullmatch(r"are there more (\w+) than (\w+)\?", text)
    return names.count(named(match[1])) > names.count(named(match[2]))


def test_every_kind_of_question_has_the_answer_that_the_boxes_give(scenes):
    seen = Counter()
    for i, scene in enumerate(scenes):
        names, groups = scene.names, [group_of(name) for name in scene.names]
        x, y = (scene.boxes[:, :2] + scene.boxes[:, 2:]).T / 2 - 64
        for kind, (text, answer) in questions(scene, np.random.default_rng(i), WORDS).items():
            seen[kind, answer] += 1
            seen[kind] += 1
            if answer in ("yes", "no"):
                assert holds(scene, text) == (answer == "yes"), (names, text)
            elif match := re.fullmatch(r"how many (\w+) (?:are there|do you see|are in the picture)\?", text):
                word = match[1]
                if kind == "count":
                    assert word in ("objects", "things") and answer == str(len(names))
                elif kind == "count_of":
                    assert answer == str(names.count(named(word)))
                else:
                    group = next(group for group, plural_ in GROUPS.items() if plural_ == word)
                    assert answer == str(groups.count(group))
            elif kind == "what":
                assert [answer] == names
            elif kind == "side":
                ends = {"left": x.argmin(), "right": x.argmax(), "top": y.argmin(), "bottom": y.argmax()}
                assert names[ends[text.rstrip("?").split()[-1]]] == answer
            elif kind == "beside":
                relation, name = re.fullmatch(r"what is (left of|right of|above|below) the (\w+)\?", text).groups()
                there = {"left of": x < 0, "right of": x > 0, "above": y < 0, "below": y > 0}
                k = names.index(name)
                there = {"left of": x < x[k], "right of": x > x[k], "above": y < y[k], "below": y > y[k]}[relation]
                assert [names[j] for j in np.flatnonzero(there)] == [answer]
            elif kind == "where":
                name = re.fullmatch(r"where is the (\w+)\?", text)[1]
                if answer == "nowhere":
                    assert name not in names
                else:
                    dx, dy = x[names.index(name)], y[names.index(name)]
                    across = ("left", "right")[int(dx > 0)] if abs(dx) > abs(dy) else ("top", "bottom")[int(dy > 0)]
                    assert answer == across if max(abs(dx), abs(dy)) > 9 else answer == "middle"
            elif kind == "bigger":
                word, *pair = re.fullmatch(r"which is (\w+), the (\w+) or the (\w+)\?", text).groups()
                areas = {name: scene.areas[names.index(name)] for name in pair}
                assert answer == (max if word == "bigger" else min)(pair, key=areas.get)
            else:
                assert kind == "colour" and answer == scene.ground
    kinds = {key for key in seen if isinstance(key, str)}
    assert kinds == {
        "exists", "exists_group", "exists_number", "count", "count_of", "count_group", "what", "side", "beside",
        "related", "where", "bigger", "more", "colour",
    }  # fmt: skip
    for kind in ("exists", "exists_group", "exists_number", "related"):
        assert 0.3 < seen[kind, "yes"] / (seen[kind, "yes"] + seen[kind, "no"]) < 0.7


def test_questions_that_are_asked_at_once_have_their_answers_behind_their_letters(scenes):
    for i, scene in enumerate(scenes):
        columns = several_questions(scene, np.random.default_rng(i), WORDS, 4)
        asked, answered = (re.findall(r"([a-z]): (.*?)(?= [a-z]: |$)", columns[name]) for name in ("text", "target"))
        assert [letter for letter, _ in asked] == [letter for letter, _ in answered] == ["a", "b", "c", "d"]
        for (_, text), (_, answer) in zip(asked, answered, strict=True):
            if answer in ("yes", "no"):
                assert holds(scene, text) == (answer == "yes"), (scene.names, text)
        assert len({text for _, text in asked}) == 4


def test_empty_scenes_are_answered_too(world):
    scene = world.compose(np.random.default_rng(0), counts=(0,))
    assert not scene.names and scene.boxes.shape == (0, 4) and list(phrases(scene, np.random.default_rng(0))) == []
    asked = questions(scene, np.random.default_rng(0), WORDS)
    assert asked["count"][1] == "0" and asked["what"][1] == "nothing" and asked["where"][1] == "nowhere"
    assert asked["exists"][1] == "no"
    for seed in range(20):
        assert question(scene, np.random.default_rng(seed), WORDS)[1]
        assert claim(scene, np.random.default_rng(seed), WORDS)[1] == "no"


def test_claims_follow_or_not_as_their_label_says(scenes):
    labels = Counter()
    for i, scene in enumerate(scenes):
        for seed in range(3):
            text, label = claim(scene, np.random.default_rng([i, seed]), WORDS)
            labels[label] += 1
            words = re.findall(r"\w+", text)
            things = [name for name in WORDS if name in words or plural(name) in words]
            if label == "maybe":
                assert set(things) <= set(scene.names) and not re.match(r"there (is|are) (one|two|three)", text)
            elif match := re.fullmatch(r"the (\w+) is (left of|right of|above|below|bigger than) the (\w+)", text):
                assert holds(scene, "is the {} {} the {}?".format(*match.groups())) == (label == "yes")
            elif match := re.fullmatch(r"there (?:is|are) (one|two|three|four|five|six) (\w+)", text):
                assert holds(scene, f"are there {match[1]} {match[2]}?") == (label == "yes")
            else:
                there = set(things) & set(scene.names) or set(words) & set(map(group_of, scene.names))
                assert bool(there) == (label == "yes"), (text, scene.names)
    assert min(labels.values()) > 0.25 * sum(labels.values()) and len(labels) == 3


def test_phrases_mean_one_object_only(scenes):
    forms = Counter()
    for scene in scenes:
        names, groups = scene.names, [group_of(name) for name in scene.names]
        for text, box in phrases(scene, np.random.default_rng(0)):
            [place] = [i for i, other in enumerate(scene.boxes) if np.array_equal(box, other)]
            words = text.removeprefix("the ").removeprefix("an ").removeprefix("a ").split()
            if len(words) == 1:
                assert [i for i in range(len(names)) if words[0] in (names[i], groups[i])] == [place]
            else:
                equal = [i for i, name in enumerate(names) if name == words[1]]
                x, y = scene.centres.T
                measure = {"left": -x, "right": x, "top": -y, "bottom": y, "biggest": scene.areas}
                measure["smallest"] = -scene.areas
                assert max(equal, key=lambda i: measure[words[0]][i]) == place and len(equal) > 1
            forms[words[0] if len(words) > 1 else "name"] += 1
    assert set(forms) == {"name", "left", "right", "top", "bottom", "biggest", "smallest"}


# --- the data sets -------------------------------------------------------------------------------------------------
def test_a_row_is_the_same_however_the_stream_is_shared(path, world):
    tasks = {"caption": 1, "vqa": 3, "text_infilling": 1}
    data = stream("train", tasks, rows=40, path=path)
    whole = {row["id"]: row for row in data}
    assert len(whole) == 40 and {row["task"] for row in whole.values()} == set(tasks)
    shared = [row for i in range(4) for row in data.shard(4, i, contiguous=False)]
    assert {row["id"] for row in shared} == set(whole)
    for row in shared:
        assert {**row, "image": None} == {**whole[row["id"]], "image": None}
        if row["image"] is not None:
            assert np.array_equal(row["image"], whole[row["id"]]["image"])
    alone = make_example(world, "train", 17, tasks)
    assert alone["target"] == whole["train-0-17"]["target"]


def test_a_stream_goes_on_where_it_was(path):
    def rows():
        data = stream("train", ["vqa", "text_infilling"], rows=64, path=path)
        return RowStream(data, "image_text", 1, 4, block_size=4, seed=0)

    first = rows()
    taken = [next(first)["id"] for _ in range(7)]
    state = json.loads(json.dumps(first.state))
    again = rows()
    again.load_state(state)
    assert [next(again)["id"] for _ in range(25)] == [next(first)["id"] for _ in range(25)]
    assert len(set(taken)) == 7


def test_splits_have_no_scene_in_common(path, world):
    digests = {}
    for split in SPLITS:
        found = {hash(np.asarray(row["image"]).tobytes()) for row in stream(split, ["caption"], rows=60, path=path)}
        assert len(found) == 60
        for other, theirs in digests.items():
            assert not found & theirs, (split, other)
        digests[split] = found


def test_no_split_to_train_on_has_a_design_that_is_tested_or_chosen_by():
    designs = {name: set(split.designs) for name, split in SPLITS.items()}
    for held_out in ("test", "far"):
        assert not designs[held_out] & (designs["train"] | designs["explore"] | designs["validation"])
    families = {SETS[design].family for design in designs["validation"]}
    assert not families & {SETS[design].family for design in designs["explore"]}
    assert designs["explore"] | designs["validation"] == designs["train"] == designs["seen"]
    assert [name for name, split in SPLITS.items() if split.augment] == ["train", "explore"]


def test_unknown_splits_and_tasks_are_told(path):
    with pytest.raises(ValueError, match="Unknown split 'tset'.*test"):
        stream("tset", path=path)
    with pytest.raises(ValueError, match="no task image_generation"):
        stream("test", ["image_generation"], path=path)


def test_every_task_makes_rows_that_the_collator_takes(world, embedded):
    for task in TASKS:
        rows = [make_example(world, "train", i, [task]) for i in range(8)]
        batch = DataCollatorForOFA(embedded)(rows)
        assert (batch["labels"] >= 0).any(dim=1).all(), task
        targets = {str(row["target"] or row["boxes"]) for row in rows}
        assert len(targets) > 1, task


def test_typos_change_one_letter_and_only_what_is_trained_on(world):
    rng = np.random.default_rng(0)
    for text in ("is there a dog?", "the car"):
        assert {abs(len(misspell(text, rng)) - len(text)) for _ in range(30)} == {0, 1}
    known = {part for name in WORDS for part in re.findall(r"\w+", f"{name} {plural(name)}")}
    for split, odd in (("train", True), ("test", False)):
        texts = [make_example(world, split, i, ["visual_grounding"])["text"] for i in range(150)]
        strange = [text for text in texts if not set(text.split()) & known and text.split()[-1] not in GROUPS]
        assert bool(strange) == odd


def test_pretraining_reads_the_streams(path, tmp_path, embedded):
    write_negatives(tmp_path)
    rows = PretrainingRows(embedded, Negatives.load(tmp_path), image_size=96, code_image_size=48)
    sources = {
        "image_text": TRAINING_PARTS["image_text"],
        "detection": ["object_detection"],
        "text": ["text_infilling"],
    }
    data = {name: stream("train", tasks, rows=256, path=path) for name, tasks in sources.items()}
    mixture = PretrainingMixture(rows, **data, num_streams=2, shuffle_buffer=16)
    pairs, extras = MixedStream(mixture, 0).take(8)
    assert Counter(row["task"].name for row in extras) == {"text_infilling": 2, "object_detection": 1}
    assert 8 < len(pairs) <= 16  # of other tasks than the official ones an Example is one row
    parts = PretrainingCollator(embedded, 96, 48)({"rows": (pairs, extras)})["parts"]
    assert [part["pixel_values"].shape[-1] for part in parts] == [96, 96]


def test_a_split_is_written_with_a_card_by_which_it_loads(path, tmp_path):
    write_split("test", tmp_path / "test", 4, path)
    for part in TEST_PARTS:
        written = load_examples("parquet", tmp_path / "test" / part, split="test")
        assert written.unique("task") == [part] and len(written) == 4
    data = load_dataset(str(tmp_path / "test"), "visual_entailment", split="test")
    assert data[0]["image"].size == (128, 128) and data[0]["image"].format == "PNG"
    card = (tmp_path / "test" / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in card and "Twemoji" in card and "no\nphotographs" in card

    write_split("explore", tmp_path / "explore", 4, path)
    written = load_examples("parquet", tmp_path / "explore" / "image_text", split="explore")
    assert set(written.unique("task")) <= set(TRAINING_PARTS["image_text"])
    assert written[0]["image"].format == "JPEG"


def test_writing_goes_on_with_the_parts_that_are_missing(path, tmp_path):
    write_split("explore", tmp_path, {"crowds": 6}, path)
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", "crowds"}
    [file] = (tmp_path / "crowds" / "data").iterdir()
    rows = load_examples("parquet", tmp_path / "crowds", split="explore")
    assert max(len(row["labels"]) for row in rows) > MOST  # crowded
    before = file.stat().st_mtime_ns
    write_split("explore", tmp_path, {"crowds": 6, "text": 2}, path)
    assert file.stat().st_mtime_ns == before and (tmp_path / "text" / "data").is_dir()
    assert "| `text` | text_infilling | 2 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="explore has no part vqa. Its parts are: image_text"):
        write_split("explore", tmp_path, {"vqa": 2}, path)


def test_the_script_writes_what_it_is_asked_for(path, tmp_path, capsys):
    options = ["--cache", str(path.parent), "--output", str(tmp_path), "--parts", "caption=2", "vqa=1"]
    demo = ["--demo", str(tmp_path / "demo"), "--demo-seeds", "1", "2", "--preview", str(tmp_path / "sheet.png")]
    assert build_world.main([*options, "--write", "far", *demo]) == 0
    assert "license: cc-by-sa-4.0" in (tmp_path / "far" / "README.md").read_text(encoding="utf-8")
    assert len(load_examples("parquet", [tmp_path / "far" / "caption", tmp_path / "far" / "vqa"], split="far")) == 3
    assert json.loads((tmp_path / "negatives" / "type2ans.json").read_text(encoding="utf-8"))["yes or no"]
    assert Image.open(tmp_path / "sheet.png").size == (1280, 128 * len(SPLITS))
    rows = json.loads((tmp_path / "demo" / "examples.json").read_text(encoding="utf-8"))
    assert {row["task"] for row in rows} == set(TASKS)
    for row in rows:
        takes = get_task(row["task"])
        assert ("image" in row) == takes.takes_image and ("text" in row) == takes.takes_text
        if "image" in row:
            assert Image.open(tmp_path / "demo" / row["image"]).size == (320, 320)


def test_the_script_tells_errors_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(artwork.shutil, "which", lambda name: None)
    assert build_world.main(["--cache", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("build_world.py: error: npm was not found")


# --- the processor ---------------------------------------------------------------------------------------------------
def test_the_processor_has_words_for_all_things_and_few_places_for_boxes(path):
    processor = build_processor(path)
    tokenizer = processor.tokenizer
    for name in THINGS:
        for word in (name, plural(name)):
            assert len(tokenizer.tokenize(f" {word}")) == len(word.split())
    assert tokenizer.num_codes == 1024 and len(tokenizer) == tokenizer.bin_start_id + 64
    assert tokenizer.decode(tokenizer(" Üñ!")["input_ids"], skip_special_tokens=True) == " Üñ!"
    image = Image.new("RGB", (300, 200))
    inputs = processor(task="visual_grounding", images=image, text="the dog", target=[0, 0, 300, 200])
    assert np.shape(inputs["pixel_values"][0]) == (3, 128, 128)
    assert tokenizer.decode(inputs["labels"][0]) == "<bin_0><bin_0><bin_63><bin_63></s>"
    assert processor.answers["image_classification"] == list(THINGS)


# --- heads that compare ----------------------------------------------------------------------------------------------
def test_the_discriminant_finds_what_things_differ_in():
    rng = np.random.default_rng(0)
    of_things, offset, loud = (rng.normal(size=(number, 32)) for number in (len(THINGS), 1, 1))
    of_things[:, 20:] = 0
    things = np.arange(40 * len(THINGS)) % len(THINGS)
    patches, words = (
        align_heads.States(
            of_things[things]
            + rng.normal(size=(len(things), 32)) * 0.2
            + rng.normal(size=(len(things), 1)) * 10 * loud  # what differs most has nothing to do with them
            + side * 5 * offset,
            things,
        )
        for side in (1, -1)
    )
    directions, middle = align_heads.discriminant(patches, words)
    assert np.allclose(middle, (patches.mean + words.mean) / 2)
    seen, said = ((one.values[: len(THINGS)] - middle) @ directions[:, :16] for one in (patches, words))
    assert ((said @ seen.T).argmax(axis=1) == np.arange(len(THINGS))).mean() > 0.8
    assert abs((patches.mean - words.mean) @ directions[:, :16]).max() < 0.2  # of ten
    plainly = (words.values - words.mean)[: len(THINGS)] @ (patches.values - patches.mean)[: len(THINGS)].T
    assert (plainly.argmax(axis=1) == np.arange(len(THINGS))).mean() < 0.1


def test_heads_are_aligned_and_all_else_is_left_alone(path, tmp_path, capsys):
    words = [DEFAULT_CHECKPOINT, str(tmp_path / "out"), "--cache", str(path.parent), "--scenes", "64"]
    assert align_heads.main(words) == 0
    before, after = (OFAForConditionalGeneration.from_pretrained(one) for one in (DEFAULT_CHECKPOINT, words[1]))
    assert OFAProcessor.from_pretrained(words[1]).answers
    changed = {
        name: one.ne(other)
        for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    layer = "model.encoder.layers.0.self_attn"
    tables = ("model.encoder.token_rel_pos_table_list.0", "model.encoder.image_rel_pos_table_list.0")
    assert set(changed) == {
        *(f"{layer}.{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias")),
        *(f"{table}.weight" for table in tables),
    }
    attention = after.get_encoder().layers[0].self_attn
    rows = changed[f"{layer}.q_proj.bias"].nonzero().flatten()
    assert len(rows) == len(align_heads.HEADS) * attention.head_dim
    assert torch.equal(attention.q_proj.weight[rows], attention.k_proj.weight[rows])
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert align_heads.main(words) == 0 and (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    processor = OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    processor.image_processor.size = {"height": 64, "width": 64}
    processor.save_pretrained(tmp_path / "other")
    assert align_heads.main([str(tmp_path / "other"), str(tmp_path / "not")]) == 2
    assert "is no model of the small world, whose pictures have 128 pixels a side" in capsys.readouterr().err


def test_patches_say_where_they_are_and_the_decoder_looks_at_marked_ones(path, world, tmp_path, capsys):
    model, processor = align_heads.load(DEFAULT_CHECKPOINT)
    channels, head = point_heads.point(model, processor, world, scenes=32, rows=64)
    assert len(set(channels.all)) == 18
    image = Image.fromarray(world.compose(np.random.default_rng(1)).pixels)
    inputs = processor(task="visual_grounding", images=image, text="the dog", target=[0, 0, 9, 9], return_tensors="pt")
    with torch.no_grad():
        encoded = model.get_encoder()(**{name: inputs[name] for name in align_heads.OF_ENCODER})
        patches = encoded.last_hidden_state[0, :64].unflatten(0, (8, 8))
        assert (patches[..., channels.columns].argmax(-1) == torch.arange(8)).float().mean() > 0.9
        assert (patches[..., channels.rows].argmax(-1) == torch.arange(8)[:, None]).float().mean() > 0.9
        seen = []
        for marked in ([], [3, 40]):
            encoded.last_hidden_state[..., channels.mark] = 0
            encoded.last_hidden_state[:, marked, channels.mark] = 2
            out = model(encoder_outputs=encoded, labels=inputs["labels"], output_attentions=True)
            seen.append([weights[0, head][:, [3, 40]].sum(-1) for weights in out.cross_attentions])
    for before, after in zip(*seen, strict=True):
        assert before.max() < 0.05 and after.min() > 0.95

    words = [DEFAULT_CHECKPOINT, str(tmp_path / "out"), "--cache", str(path.parent), "--scenes", "32", "--rows", "64"]
    assert point_heads.main(words) == 0
    again = OFAForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
    capsys.readouterr()
    assert point_heads.main(words) == 0 and capsys.readouterr().out == ""
    assert point_heads.main([str(tmp_path / "nothing"), str(tmp_path / "not")]) == 2
    assert capsys.readouterr().err.startswith("point_heads.py: error: ")


def test_patches_look_for_others_of_their_kind_and_the_decoder_at_middles(path, world, tmp_path, capsys):
    model, processor = align_heads.load(DEFAULT_CHECKPOINT)
    scale = {"scenes": 160, "names": 64, "rows": 64}
    (middle, others), head, at_middles = count_heads.count(model, processor, world, **scale)
    encoder = model.get_encoder()
    things = [world.compose(np.random.default_rng(seed), counts=(2, 3, 4)) for seed in range(32)]
    images = [Image.fromarray(scene.pixels) for scene in things]
    inputs = processor(task="caption", images=images, target=["a dog"] * 32, return_tensors="pt")
    with torch.no_grad():
        encoded = encoder(**{name: inputs[name] for name in align_heads.OF_ENCODER}, output_attentions=True)
    last, weights = encoded.last_hidden_state, encoded.attentions[0][:, head]
    told = last[:, :64, middle].flatten().numpy()
    expected = np.concatenate([middles_of(scene.boxes / 128, 8, 8).ravel() for scene in things])
    assert np.corrcoef(told, expected)[0, 1] > 0.6

    from_patches = weights[:, :64].unflatten(1, (8, 8))
    assert from_patches[:, 3, 3, :64].unflatten(1, (8, 8))[:, 1:6, 1:6].max() < 1e-6  # itself, and what is beside it
    elsewhere = weights[:, :64, :64].sum(-1)
    assert np.corrcoef(elsewhere.flatten(), last[:, :64, others].flatten())[0, 1] > 0.9

    seen = []
    for shown in ([], [3, 40]):
        encoded.last_hidden_state[..., middle] = 0
        encoded.last_hidden_state[:, shown, middle] = 2
        with torch.no_grad():
            out = model(encoder_outputs=encoded, labels=inputs["labels"], output_attentions=True)
        seen.append([weights[:, at_middles][..., [3, 40]].sum(-1).mean() for weights in out.cross_attentions])
    assert all(after > 5 * before for before, after in zip(*seen, strict=True))

    words = [DEFAULT_CHECKPOINT, str(tmp_path / "out"), "--cache", str(path.parent)]
    words += [word for name, number in scale.items() for word in (f"--{name}", str(number))]
    assert count_heads.main(words) == 0
    again = OFAForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
    capsys.readouterr()
    assert count_heads.main([str(tmp_path / "nothing"), str(tmp_path / "not")]) == 2
    assert capsys.readouterr().err.startswith("count_heads.py: error: ")


# --- the embedded checkpoint -----------------------------------------------------------------------------------------
def test_captions_are_compared_as_the_things_that_they_name():
    assert evaluate_embedded.objects_of("two dogs and a palm tree") == Counter({"dog": 2, "a palm tree": 1})
    assert evaluate_embedded.objects_of("nothing") == Counter()
    for names in (["apple", "dog", "apple"], ["pants"], []):
        assert evaluate_embedded.objects_of(caption(names)) == Counter(names)
    said = ["a dog and a cat", "a cat", "nothing", "two cats"]
    true = ["a cat and a dog", "a dog", "nothing", "a cat and a cat"]
    assert evaluate_embedded.exact_captions(said, true) == 0.75


def test_chance_knows_the_answers_but_not_the_pictures(world):
    asked = [
        ("how many cars are there?", "2"),
        ("how many objects are there?", "2"),
        ("how many cats are there?", "1"),
    ]
    asked += [("is there a dog?", "yes"), ("are there two dogs?", "no"), ("is the car above the cat?", "no")]
    asked += [("what is this?", "dog")]
    rows = [{"text": text, "target": answer} for text, answer in asked]
    assert [evaluate_embedded.kind_of(text) for text, _ in asked] == ["how many"] * 3 + ["is", "are", "is", "what"]
    assert evaluate_embedded.by_kind(rows) == 5 / 7
    assert evaluate_embedded.most_frequent(rows) == 2 / 7
    boxes = [{"boxes": [box]} for box in ([0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60])]
    assert evaluate_embedded.middle_box(boxes) == pytest.approx(2 / 3)


def test_a_card_quotes_what_was_measured(tmp_path):
    shutil.copytree(DEFAULT_CHECKPOINT, tmp_path, dirs_exist_ok=True)
    found = {"metric": "exact", "score": 0.7, "chance": 0.125, "examples": 8}
    boxes = {"metric": "map_50", "score": 0.25, "chance": None, "examples": 8}
    metrics = {"seen": {"caption": found, "object_detection": boxes}, "test": {"caption": {**found, "score": 0.5}}}
    evaluate_embedded.write_card(tmp_path, metrics)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| `caption` | 70.0 (12.5) | 50.0 (12.5) |" in card and "nothing useful about photographs" in card
    assert "| object_detection | the small world: seen | map_50 | 0.2500 |  | 8 |" in card
    assert all(SETS[design].credit in card for design in TRAIN_DESIGNS)


@pytest.mark.slow
def test_one_command_makes_the_checkpoint_and_goes_on(path, tmp_path, monkeypatch):
    few = tuple((folder, seed, dict.fromkeys(rows, 80)) for folder, seed, rows in train_embedded.TRAINING_DATA)
    monkeypatch.setattr(train_embedded, "TRAINING_DATA", few)
    monkeypatch.setattr(train_embedded, "TEST_ROWS", 4)
    words = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--cache", str(path.parent)]
    words += ["--processes", "2", "--records", str(tmp_path / "records"), "--settings", "--use_cpu", "true"]
    words += ["--per_device_train_batch_size", "4", "--total_batch_size", "8", "--warmup_steps", "0"]
    words += ["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", "{}", "--save_steps", "2"]
    words += ["--logging_steps", "1"]
    assert train_embedded.main([*words, "--max_steps", "2"]) == 0
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert {value.dtype for value in load(weights).values() if value.is_floating_point()} == {torch.float16}
    assert OFAForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == torch.float32
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"seen", "test", "far"} and all(set(tasks) == set(TASKS) for tasks in metrics.values())
    for run in train_embedded.RUNS:
        assert len(json.loads((tmp_path / "records" / f"{run}.json").read_text(encoding="utf-8"))) == 2
    digests = json.loads((tmp_path / "records" / "world_drawings.json").read_text(encoding="utf-8"))
    assert {len(found) for found in digests.values()} == {len(WORDS)} and set(digests) == set(SETS)

    shutil.rmtree(tmp_path / "work" / "runs" / "world" / "evaluation")
    assert train_embedded.main([*words, "--max_steps", "2"]) == 0  # all is done
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    shutil.rmtree(tmp_path / "work" / "runs" / "world" / "evaluation")
    assert train_embedded.main([*words, "--max_steps", "3"]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != weights


def test_what_fails_is_said_in_a_line(tmp_path, capfd):
    words = ["--output", str(tmp_path / "out"), "--work", str(tmp_path), "--cache", str(tmp_path / "file" / "there")]
    (tmp_path / "file").touch()
    assert train_embedded.main(words) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-2].startswith("build_world.py: error: ") and said[-1].startswith(
        "train_embedded.py: error: this failed"
    )


DRAWINGS = json.loads((ROOT / "docs" / "curves" / train_embedded.DRAWINGS).read_text(encoding="utf-8"))


def test_no_drawing_that_it_is_tested_with_is_one_that_it_was_trained_with():
    trained = {digest for design in TRAIN_DESIGNS for digest in DRAWINGS[design]}
    tested = {digest for design in ("twemoji", "openmoji") for digest in DRAWINGS[design]}
    assert len(trained) > 600 and len(tested) > 200 and not trained & tested
    assert set(DRAWINGS) == set(SETS)
    if (CACHE / FILE).exists():
        drawings = Drawings.load()
        now: dict[str, list[str]] = {}
        for design, digest in zip(drawings.designs, drawings.digests, strict=True):
            now.setdefault(design, []).append(digest)
        assert now == DRAWINGS


def test_the_embedded_checkpoint_is_small_and_its_card_says_what_was_measured():
    folder = Path(DEFAULT_CHECKPOINT)
    assert (folder / "model.safetensors").stat().st_size < 15e6
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(measured) == {"seen", "test", "far"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    for tasks in measured.values():
        assert set(tasks) == set(TASKS)
        for task, found in tasks.items():
            assert found["examples"] == train_embedded.TEST_ROWS
            assert f"| `{task}` |" in card and f"{100 * found['score']:.1f}" in card
    page = (ROOT / "docs" / "world.md").read_text(encoding="utf-8")
    for task in evaluate_embedded.HEADLINES:
        scores = [f"{100 * tasks[task]['score']:.1f}" for tasks in measured.values()]
        assert f"| `{task}` | {' | '.join(scores)} |" in page
        # Better than whoever does not look, on designs that it was not trained on, too.
        chance = measured["test"][task]["chance"] or 0.0
        assert measured["test"][task]["score"] > chance + 0.1
    tested = measured["test"]
    assert tested["caption"]["score"] > 10 * max(tested["caption"]["chance"], 0.002)
    assert tested["visual_grounding"]["score"] > 5 * tested["visual_grounding"]["chance"]
