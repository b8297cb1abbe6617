"""Tests of the readers: every format gives the right Examples, and what is wrong with a row is said."""

import base64
import csv
import io
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, IterableDataset, interleave_datasets
from torch.utils.data import DataLoader

from modeling_ofa.data import EXAMPLE_FEATURES, FORMATS, load_examples
from modeling_ofa.data.example import picture_size
from modeling_ofa.data.lines import Line, cut, read_lines


GOLDEN = Path(__file__).parent / "golden"
GLUE = {"cola": "text label", "mnli": "", "mrpc": "", "qnli": "", "sst2": "text label"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(mode="RGB", size=(60, 40), kind="PNG", orientation=None) -> bytes:
    """The bytes of a picture file; which one shows in its red pixels."""
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, file = PIL.Image.fromarray(pixels).convert(mode), io.BytesIO()
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(file, kind, exif=exif)
    return file.getvalue()


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def write_tsv(path: Path, rows) -> Path:
    path.write_bytes("".join("\t".join(row) + "\n" for row in rows).encode())
    return path


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"data_{name}.json").read_text(encoding="utf-8"))


def items(name: str, variant: int = 0) -> list[dict]:
    return [row["item"] for row in golden(name)["variants"][variant]["items"]]


def read_golden(tmp_path: Path, name: str, task: str, rows="tsv_rows", **options) -> list[dict]:
    """Reads the recorded rows of an official data set as Examples, with undecoded pictures."""
    recorded = golden(name)[rows]
    path = write_tsv(tmp_path / f"{name}.tsv", recorded)
    columns = ",".join(map(str, range(len(recorded[0]))))
    data = load_examples("tsv", path, task=task, columns=columns, **options)
    assert data.features == EXAMPLE_FEATURES
    return list(data.cast_column("image", datasets.Image(decode=False)))


# --- the official files


@pytest.mark.parametrize("name", ["caption", "caption_cn"])
def test_official_captions_are_read(tmp_path, name):
    rows = golden(name)["tsv_rows"]
    for row, example in zip(rows, read_golden(tmp_path, name, "caption"), strict=True):
        captions = [caption for caption in row[2].split("&&") if caption]
        assert example["id"] == row[0]
        assert example["image"] == {"bytes": base64.urlsafe_b64decode(row[1]), "path": None}
        assert example["references"] == (captions or None) and example["target"] == (captions or [None])[0]
        assert example["task"] == "caption" and example["confidence"] == 1.0


def test_official_questions_are_read_with_soft_scores_and_objects(tmp_path):
    rows = golden("vqa_gen")["tsv_rows"]
    examples = read_golden(tmp_path, "vqa_gen", "vqa", split="train")
    for row, item, example in zip(rows, items("vqa_gen"), examples, strict=True):
        assert example["id"] == item["id"] and example["text"] == row[2]
        scores = {answer: np.float32(score) for answer, score in item["ref_dict"].items()}
        assert dict(zip(example["references"], example["answer_scores"], strict=True)) == scores
        assert example["target"] == max(item["ref_dict"], key=item["ref_dict"].get)
        assert example["confidence"] == item["conf"]["v"][0]
        assert example["objects"] == (row[4].split("&&") if row[4] else None)


def test_official_grounding_is_read_both_ways(tmp_path):
    rows = golden("refcoco")["tsv_rows"]
    examples = read_golden(tmp_path, "refcoco", "visual_grounding", split="train")
    for row, item, example in zip(rows, items("refcoco"), examples, strict=True):
        assert (example["id"], example["text"], example["target"]) == (item["id"], row[2], None)
        assert example["boxes"] == [item["region_coord"]["v"]]
    for row, example in zip(rows, read_golden(tmp_path, "refcoco", "grounded_caption"), strict=True):
        assert (example["text"], example["target"], example["references"]) == (row[3], row[2], [row[2]])


def test_official_entailment_is_read_with_hypothesis_and_premise(tmp_path):
    rows = golden("snli_ve")["tsv_rows"]
    for row, item, example in zip(
        rows, items("snli_ve"), read_golden(tmp_path, "snli_ve", "visual_entailment"), strict=True
    ):
        assert (example["id"], example["text"], example["text_pair"]) == (item["id"], row[2], row[3])
        assert item["ref_dict"] == {example["target"]: 1.0}


def test_official_classes_are_read(tmp_path):
    examples = read_golden(tmp_path, "image_classify", "image_classification")
    for item, example in zip(items("image_classify"), examples, strict=True):
        assert item["ref_dict"] == {example["target"]: 1.0}
    assert len({example["id"] for example in examples}) == 3  # made up, for the file has none


@pytest.mark.parametrize("name", ["image_gen", "image_gen2col", "image_gen4col"])
def test_official_text_to_image_is_read_from_two_three_or_four_columns(tmp_path, name):
    rows = golden(name)["tsv_rows"]
    for row, item, example in zip(rows, items(name), read_golden(tmp_path, name, "image_generation"), strict=True):
        assert example["id"] == item["id"] and example["text"] == row[2 if len(row) == 4 else 1]
        if len(row) == 2:
            assert example["codes"] is None
        else:
            assert example["codes"] == [token - 50265 for token in item["target"]["v"][:-1]]
        assert (example["image"] is not None) == (len(row) == 4)


def test_official_printed_text_is_read(tmp_path):
    rows = golden("ocr")["tsv_rows"]
    for row, example in zip(rows, read_golden(tmp_path, "ocr", "ocr"), strict=True):
        assert (example["id"], example["target"]) == (row[0], row[2])


@pytest.mark.parametrize("name", ["summary", "summary_cn"])
def test_official_summaries_are_read(tmp_path, name):
    rows = golden(name)["tsv_rows"]
    for row, item, example in zip(rows, items(name), read_golden(tmp_path, name, "summarization"), strict=True):
        assert example["text"] == row[0] and example["target"].lower() == item["target_str"]
        assert example["references"] == [row[1]] and example["image"] is None


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "sst2"])
def test_official_glue_is_read_with_its_own_label_numbers(tmp_path, task):
    rows = golden(f"glue_{task}")["tsv_rows"]
    for row, item, example in zip(
        rows, items(f"glue_{task}"), read_golden(tmp_path, f"glue_{task}", task), strict=True
    ):
        assert [example["text"], example["text_pair"]] == [*row[:-1], None][:2]
        assert item["ref_dict"] == {example["target"]: 1.0}


def test_pretraining_rows_become_examples_by_their_type(tmp_path):
    rows = golden("unify")["tsv_rows"]
    examples = read_golden(tmp_path, "unify", "vision_language", split="train")
    tasks = {"caption": "caption", "qa": "vqa", "visual_grounding": "visual_grounding"}
    assert [example["task"] for example in examples] == [tasks[row[7]] for row in rows]
    for item, example in zip(golden("unify")["items"], examples, strict=True):
        assert example["id"] == item["pair"][0]["id"]
        assert example["confidence"] == pytest.approx(item["pair"][0]["conf"]["v"][0])
    assert examples[1]["target"] == rows[1][2] and examples[1]["objects"] == ["dog", "frisbee"]
    assert examples[2]["text"] == rows[2][3] and examples[2]["target"] == "2"
    assert examples[3]["text"] == rows[3][2] and examples[3]["boxes"] == [[10.5, 5.0, 30.0, 33.0]]


def test_pretraining_files_without_questions_are_read_with_double_weight(tmp_path):
    recorded = golden("unify")
    (text,) = read_golden(tmp_path, "unify", "text_infilling", "text_rows")
    assert text["id"] == "t1" and text["text"] == text["target"] == recorded["text_rows"][0][1]
    (image,) = read_golden(tmp_path, "unify", "image_infilling", "image_rows")
    assert image["codes"] == [int(code) for code in recorded["image_rows"][0][2].split()]
    (detection,) = read_golden(tmp_path, "unify", "object_detection", "detection_rows")
    parts = [part.split(",", 5) for part in recorded["detection_rows"][0][2].split("&&")]
    assert detection["boxes"] == [[float(side) for side in part[:4]] for part in parts]
    assert detection["labels"] == [part[5] for part in parts]
    assert [row["confidence"] for row in (text, image, detection)] == recorded["batch_v2"]["conf"]["v"][1:]


def test_published_files_are_read_without_saying_their_columns(tmp_path):
    image = encode(picture())
    files = {
        "caption": ["162365", "12455", "the sun sets.", "sky&&water", image],
        "vqa": ["79459", "7", "is this a cat?", "0.6|!+no&&1.0|!+yes", "house&&sky", image],
        "visual_grounding": ["79_1", "237367", "A woman", "3,4,50,30", image],
        "visual_entailment": ["2.jpg#1r1n", "2", image, "a man chews.", "a man is on the subway.", "neutral"],
        "image_classification": [image, "769", "rugby ball"],
        "image_generation": ["1", "6674 4336 0 8191", "people pose."],
        "cola": ["x", "They drank.", "1"],
        "qqp": ["0", "1", "2", "why?", "why not?", "0"],
        "rte": ["0", "it rains.", "it is wet.", "entailment"],
    }
    read = {
        task: load_examples("tsv", write_tsv(tmp_path / f"{task}.tsv", [row]), task=task, split="train")[0]
        for task, row in files.items()
    }
    assert read["caption"]["id"] == "162365" and read["caption"]["target"] == "the sun sets."
    assert read["vqa"]["target"] == "yes" and read["vqa"]["objects"] == ["house", "sky"]
    assert read["visual_grounding"]["boxes"] == [[3, 4, 50, 30]]
    assert read["visual_entailment"]["text"] == "a man chews." and read["visual_entailment"]["target"] == "maybe"
    assert read["image_classification"]["target"] == "rugby ball"
    assert read["image_generation"]["codes"] == [6674, 4336, 0, 8191]
    assert (read["cola"]["target"], read["qqp"]["target"], read["rte"]["target"]) == ("yes", "no", "yes")
    assert read["vqa"]["image"].size == (60, 40)  # decoded when taken


def test_columns_are_found_by_a_header_or_in_another_order(tmp_path):
    image = encode(picture())
    path = write_tsv(tmp_path / "a.tsv", [["box", "img", "key", "phrase"], ["1,2,30,30", image, "k1", "the cup"]])
    columns = {"id": "key", "image": "img", "text": "phrase", "box": "box"}
    for pieces in (1, 3):  # the header is read by each
        data = list(
            load_examples("tsv", path, task="visual_grounding", columns=columns, streaming=True, num_shards=pieces)
        )
        assert [(row["id"], row["text"], row["boxes"]) for row in data] == [("k1", "the cup", [[1, 2, 30, 30]])]
    chinese = write_tsv(tmp_path / "b.tsv", [["k1", "the cup", "1,2,30,30", image]])
    assert load_examples("tsv", chinese, task="visual_grounding", columns="0,3,1,2")[0]["boxes"] == [[1, 2, 30, 30]]
    with pytest.raises(ValueError, match="has no column 'nope'"):
        list(load_examples("tsv", path, task="vqa", columns={"text": "nope"}, streaming=True))
    with pytest.raises(ValueError, match="must be numbers"):
        load_examples("tsv", path, task="vqa", columns="a,b")


def test_the_image_column_may_name_files(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture())
    path = write_tsv(tmp_path / "a.tsv", [["1", "a.png", "a cup"]])
    data = load_examples("tsv", path, task="caption", columns="0,1,2", images=tmp_path / "photos")
    assert data[0]["image"].size == (60, 40)


def test_base64_of_either_alphabet_and_without_padding_is_decoded(tmp_path):
    data = next(data for size in range(20, 60) if b"+" in base64.b64encode(data := picture(size=(size, 9))))
    assert "-" in encode(data)
    texts = [encode(data), base64.b64encode(data).decode(), encode(data).rstrip("=")]
    path = write_tsv(tmp_path / "a.tsv", [[str(i), text, "a cup"] for i, text in enumerate(texts)])
    rows = load_examples("tsv", path, task="caption", columns="0,1,2").cast_column(
        "image", datasets.Image(decode=False)
    )
    assert [row["image"]["bytes"] for row in rows] == [data] * 3


# --- rows that are bad

GOOD = ["1", "1", "the cup", "5,5,30,30", encode(picture())]
BAD = {
    "4 columns where 5 columns": GOOD[:4],
    "not base64": [*GOOD[:4], "%%%%"],
    "cannot be opened as a picture": [*GOOD[:4], encode(b"GIF, said the file")],
    "not four numbers": [*GOOD[:3], "5,5,thirty,30", GOOD[4]],
    "empty or inverted": [*GOOD[:3], "30,5,5,30", GOOD[4]],
    "outside of the picture of 60 x 40": [*GOOD[:3], "70,5,90,30", GOOD[4]],
    "no text": ["1", "1", "  ", "5,5,30,30", GOOD[4]],
    "no image": [*GOOD[:4], ""],
    "no boxes": [*GOOD[:3], "", GOOD[4]],
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_row_is_refused_with_its_file_and_line(tmp_path, message):
    path = write_tsv(tmp_path / "a.tsv", [GOOD, GOOD, BAD[message], GOOD])
    with pytest.raises(ValueError, match=message) as caught:
        load_examples("tsv", path, task="visual_grounding", split="train")
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_skipped_reported_and_counted(tmp_path, caplog, streaming):
    rows = [GOOD, *BAD.values(), GOOD]
    path = write_tsv(tmp_path / "a.tsv", rows)
    with caplog.at_level(logging.WARNING):
        data = load_examples(
            "tsv", path, task="visual_grounding", split="train", on_bad_row="skip", streaming=streaming
        )
        assert len(list(data)) == 2
    for line, message in enumerate(BAD, start=2):
        assert any(f"{path}:{line}: " in text and message in text for text in caplog.messages)
    assert caplog.messages[-1] == f"{len(BAD)} of {len(rows)} rows were bad and skipped"


def test_lines_are_counted_in_pieces_from_the_middle_of_a_file(tmp_path, caplog):
    rows = [GOOD if i % 7 else BAD["no text"] for i in range(1, 40)]
    path = write_tsv(tmp_path / "a.tsv", rows)
    with caplog.at_level(logging.WARNING):
        data = load_examples("tsv", path, task="visual_grounding", on_bad_row="skip", streaming=True, num_shards=6)
        assert len(list(data)) == 34
    reported = [text.split(": ")[0] for text in caplog.messages if "no text" in text]
    assert reported == [f"{path}:{line}" for line in (7, 14, 21, 28, 35)]


def test_a_file_of_another_kind_is_refused_even_when_bad_rows_are_skipped(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["a", "b"]] * 150)
    with pytest.raises(ValueError, match="The first 100 rows are all bad, the last at .*:100: 2 columns where 6"):
        load_examples("tsv", path, task="vqa", on_bad_row="skip")


def test_answers_may_be_missing_outside_of_training_only(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "1", "what?", "", "", encode(picture())]])
    row = load_examples("tsv", path, task="vqa", split="test")[0]
    assert row["target"] is None and row["references"] is None and row["confidence"] == 1.0
    with pytest.raises(ValueError, match="no target, which task 'vqa' needs in training"):
        load_examples("tsv", path, task="vqa", split="train")


@pytest.mark.parametrize(
    ("task", "cells", "message"),
    [
        ("vqa", ["what?", "yes"], "not of the form 0.6"),
        ("vqa", ["what?", "high|!+yes"], "not of the form 0.6"),
        ("visual_entailment", ["a", "b", "perhaps"], "unknown label 'perhaps'; known are 'entailment'"),
        ("object_detection", ["1,2,3,4,dog"], "not of the form x0,y0,x1,y1,number,name"),
        ("image_infilling", ["1 2 x"], "image codes must be whole numbers"),
        ("image_infilling", ["1 2 8192"], "image code 8192 is not one of"),
        ("vision_language", ["a", "", "", "", "", "dance"], "type 'dance' is not caption"),
        ("grounded_caption", ["a cup", "1,2,3"], "not four numbers"),
    ],
)
def test_what_is_wrong_with_a_value_is_said(tmp_path, task, cells, message):
    cells = ["1", encode(picture()), *cells]
    path = write_tsv(tmp_path / "a.tsv", [cells])
    with pytest.raises(ValueError, match=message):
        load_examples("tsv", path, task=task, columns=",".join(map(str, range(len(cells)))))


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"good article\tgood title\nbad \xff article\ttitle\n")
    with pytest.raises(ValueError, match="a.tsv:2: .*utf-8"):
        load_examples("tsv", path, task="summarization")


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    turned = picture(kind="JPEG", orientation=6)
    assert picture_size(turned) == (40, 60) and picture_size(picture()) == (60, 40)
    path = write_tsv(tmp_path / "a.tsv", [["1", encode(turned), "the cup", "5,45,30,59"]])  # below 40, in sight
    row = load_examples("tsv", path, task="visual_grounding", columns="0,1,2,3")[0]
    assert row["boxes"] == [[5, 45, 30, 59]] and row["image"].size == (40, 60)


@pytest.mark.parametrize(("mode", "kind"), [("P", "GIF"), ("RGBA", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")])
def test_pictures_of_any_mode_are_kept_as_they_were_encoded(tmp_path, mode, kind):
    data = picture(mode, kind=kind)
    path = write_tsv(tmp_path / "a.tsv", [["1", encode(data), "a cup"]])
    rows = load_examples("tsv", path, task="caption", columns="0,1,2")
    assert rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"] == data
    assert rows[0]["image"].size == (60, 40)


def test_only_the_header_of_a_picture_is_read(tmp_path):
    cut_short = picture(size=(90, 90))[:-2000]
    path = write_tsv(tmp_path / "a.tsv", [["1", encode(cut_short), "a cup"]])
    rows = load_examples("tsv", path, task="caption", columns="0,1,2").cast_column(
        "image", datasets.Image(decode=False)
    )
    assert rows[0]["image"]["bytes"] == cut_short


# --- streams and caches


@pytest.fixture
def questions(tmp_path) -> Path:
    """A TSV file of 40 questions, with lines of very different lengths."""
    rows = [
        [str(i), "0", "what? " * (i % 9 + 1), "1.0|!+yes", "", encode(picture(size=(20 + i, 30)))] for i in range(40)
    ]
    return write_tsv(tmp_path / "questions.tsv", rows)


def test_pieces_of_a_file_hold_every_line_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\nthree is longer\nlast without an end")
    whole = [(line.offset, text) for line, text in read_lines((str(path), 0, path.stat().st_size))]
    assert [text for _, text in whole] == [b"one", b"two", b"three is longer", b"last without an end"]
    for count in range(1, path.stat().st_size + 3):
        pieces = cut([str(path)], count)
        assert [(line.offset, text) for piece in pieces for line, text in read_lines(piece)] == whole
    assert str(Line(str(path), whole[2][0])) == f"{path}:4"


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_stream_gives_what_the_cached_data_set_gives(questions, pieces):
    cached = load_examples("tsv", questions, task="vqa", split="train")
    stream = load_examples("tsv", questions, task="vqa", split="train", streaming=True, num_shards=pieces)
    assert isinstance(cached, Dataset) and isinstance(stream, IterableDataset)
    assert stream.features == EXAMPLE_FEATURES and stream.num_shards == pieces
    for one, other in zip(cached, stream, strict=True):
        assert np.array_equal(one.pop("image"), other.pop("image")) and one == other


def test_a_stream_is_shared_by_workers_shuffled_and_mixed(questions, tmp_path):
    stream = load_examples("tsv", questions, task="vqa", streaming=True, num_shards=4)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(int(row["id"]) for row in loader) == list(range(40))
    shuffled = [row["id"] for row in stream.shuffle(seed=0, buffer_size=8)]
    assert shuffled != [str(i) for i in range(40)] and sorted(shuffled, key=int) == [str(i) for i in range(40)]
    texts = load_examples(
        "tsv", write_tsv(tmp_path / "t.tsv", [["long", "short"]] * 5), task="summarization", streaming=True
    )
    tasks = [row["task"] for row in interleave_datasets([stream, texts])]
    assert tasks[:4] == ["vqa", "summarization"] * 2


def test_a_file_that_changes_is_read_again(questions):
    assert len(load_examples("tsv", questions, task="vqa")) == 40
    questions.write_bytes(b"".join(questions.read_bytes().splitlines(keepends=True)[:3]))
    assert len(load_examples("tsv", questions, task="vqa")) == 3


def test_several_files_are_read_by_list_or_pattern(questions, tmp_path):
    (tmp_path / "questions_2.tsv").write_bytes(questions.read_bytes())
    assert len(load_examples("tsv", tmp_path / "questions*.tsv", task="vqa")) == 80
    assert len(load_examples("tsv", [questions, questions], task="vqa")) == 80


def test_a_stream_of_a_large_file_takes_little_memory(tmp_path):
    path, image = tmp_path / "large.tsv", encode(np.random.default_rng(0).bytes(300_000))
    line = "\t".join(["1", encode(picture()), "a cup" + image]) + "\n"
    with path.open("w") as file:
        for _ in range(300):
            file.write(line)
    assert path.stat().st_size > 100e6
    code = f"""
import resource
from modeling_ofa.data import load_examples
data = load_examples("tsv", {str(path)!r}, task="caption", columns="0,1,2", streaming=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(1 for _ in data) == 300
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path), "PYTHONPATH": str(GOLDEN.parents[1])}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(output.stdout) < 40_000  # kilobytes


# --- published data sets


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with pictures under the names that COCO gives them."""
    for folder in ("train2014", "val2014"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in (1, 2):
            name = f"COCO_{folder}_{i:012d}.jpg"
            (tmp_path / "photos" / folder / name).write_bytes(picture(size=(60 + i, 40), kind="JPEG"))
    return tmp_path / "photos"


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_coco_captions_are_read_with_karpathys_split(tmp_path, photos):
    def entry(folder, number, split, captions):
        return {
            "filepath": folder,
            "filename": f"COCO_{folder}_{number:012d}.jpg",
            "cocoid": number,
            "split": split,
            "sentences": [{"raw": text, "sentid": 10 * number + i} for i, text in enumerate(captions)],
        }

    path = write_json(
        tmp_path / "dataset_coco.json",
        {
            "dataset": "coco",
            "images": [
                entry("train2014", 1, "train", ["A cup.", "One cup on a table."]),
                entry("val2014", 2, "restval", ["A dog."]),
                entry("val2014", 1, "test", ["A cat.", "The cat."]),
            ],
        },
    )
    train = load_examples("coco_caption", path, images=photos, split="train")
    assert [(row["id"], row["target"]) for row in train] == [
        ("1_10", "A cup."),
        ("1_11", "One cup on a table."),
        ("2_20", "A dog."),
    ]
    (test,) = load_examples("coco_caption", path, images=photos, split="test")
    assert test["references"] == ["A cat.", "The cat."] and test["image"].size == (61, 40)
    grouped = load_examples("coco_caption", path, images=photos, split="train", per_image=True)
    assert [len(row["references"]) for row in grouped] == [2, 1]
    stream = load_examples("coco_caption", path, images=photos, split="train", streaming=True, num_shards=2)
    assert stream.num_shards == 2 and [row["target"] for row in stream] == train["target"][:]
    with pytest.raises(ValueError, match="has no row of split 'dev'"):
        load_examples("coco_caption", path, images=photos, split="dev")


def test_questions_of_vqa_get_the_soft_scores_of_ten_people(tmp_path, photos):
    def given(*answers):
        return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers)]

    questions = write_json(
        tmp_path / "questions.json",
        {
            "data_subtype": "train2014",
            "questions": [
                {"image_id": 1, "question": "What is it?", "question_id": 1000},
                {"image_id": 2, "question": "Is it red?", "question_id": 2000},
            ],
        },
    )
    annotations = write_json(
        tmp_path / "annotations.json",
        {
            "annotations": [
                {"question_id": 2000, "answers": given(*["no"] * 10)},
                {"question_id": 1000, "answers": given(*["cup"] * 3, *["mug"] * 4, "Glass", *["bowl"] * 2)},
            ]
        },
    )
    first, second = load_examples("vqa_v2", questions, images=photos, annotations=annotations, split="train")
    assert first["references"] == ["cup", "mug", "glass", "bowl"]
    assert first["answer_scores"] == pytest.approx([0.9, 1.0, 0.3, 0.6])
    assert (first["target"], first["confidence"], second["target"]) == ("mug", 1.0, "no")
    human = load_examples("vqa_v2", questions, images=photos, annotations=annotations, human_answers=True)[0]
    assert len(human["references"]) == 10 and human["answer_scores"] is None and human["target"] == "mug"
    assert human["references"][7] == "Glass"  # letter for letter, as VQA's server has it
    (tmp_path / "answers.txt").write_text("cup\nbowl\n")
    (kept,) = load_examples(
        "vqa_v2",
        questions,
        images=photos,
        annotations=annotations,
        split="train",
        answer_list=tmp_path / "answers.txt",
    )
    assert kept["references"] == ["cup", "bowl"] and kept["confidence"] == pytest.approx(0.9)
    official = write_json(tmp_path / "label2ans.json", {"0": "Bowl"})  # in any form in which evaluation takes lists
    options = {"annotations": annotations, "split": "train"}
    (kept,) = load_examples("vqa_v2", questions, images=photos, answer_list=official, **options)
    assert kept["references"] == ["bowl"]
    (tmp_path / "ans2label.pkl").write_bytes(pickle.dumps({"bowl": 0}))
    with pytest.raises(ValueError, match="ans2label.pkl is a pickle, which is not read"):
        load_examples("vqa_v2", questions, images=photos, answer_list=tmp_path / "ans2label.pkl", **options)
    unlabelled = load_examples("vqa_v2", questions, images=photos, split="test")
    assert unlabelled["target"][:] == [None, None] and unlabelled["text"][0] == "What is it?"


@pytest.mark.parametrize("kind", ["pickle of Python 3", "pickle of Python 2", "JSON"])
def test_refcoco_is_read_from_pickles_and_json(tmp_path, photos, kind):
    sentences = [{"sent": "red cup", "raw": "red cup", "sent_id": 7, "tokens": ["red", "cup"]}]
    ref = {"ref_id": 5, "ann_id": 11, "image_id": 1, "split": "testA", "sentences": sentences, "sent_ids": (7,)}
    refs = [ref, {**ref, "split": "train"}]
    path = tmp_path / ("refs(unc).json" if kind == "JSON" else "refs(unc).p")
    if kind == "JSON":
        write_json(path, refs)
    elif kind == "pickle of Python 3":
        path.write_bytes(pickle.dumps(refs))
    else:  # protocol 0, whose texts are bytes (S…) there
        text = pickle.dumps(refs, protocol=0).replace(b"\nV", b"\nS'").replace(b"(V", b"(S'")
        lines = [line + b"'" if line.lstrip(b"(").startswith(b"S'") else line for line in text.split(b"\n")]
        path.write_bytes(b"\n".join(lines))
        assert pickle.loads(path.read_bytes()) == refs
    write_json(
        tmp_path / "instances.json",
        {
            "images": [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg"}],
            "annotations": [{"id": 11, "bbox": [10.5, 5, 20, 30]}],
        },
    )
    (row,) = load_examples("refcoco", path, images=photos, split="testA")
    assert (row["id"], row["text"], row["boxes"]) == ("5_7", "red cup", [[10.5, 5, 30.5, 35]])
    (row,) = load_examples("refcoco", path, images=photos, split="testA", task="grounded_caption")
    assert (row["text"], row["target"]) == ("10.5,5,30.5,35", "red cup")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_a_pickle_that_calls_something_is_refused(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs.p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(ValueError, match="asks for .*, but plain data was expected.*as JSON"):
        load_examples("refcoco", "refs.p", images=photos)
    assert not (tmp_path / "evil").exists()


def test_coco_objects_are_read_without_crowds(tmp_path, photos):
    path = write_json(
        tmp_path / "instances.json",
        {
            "images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (1, 2)],
            "categories": [{"id": 3, "name": "cup"}, {"id": 4, "name": "dog"}],
            "annotations": [
                {"image_id": 1, "category_id": 4, "bbox": [1, 2, 10, 20], "iscrowd": 0},
                {"image_id": 1, "category_id": 3, "bbox": [5, 5, 5, 5]},
                {"image_id": 2, "category_id": 3, "bbox": [5, 5, 5, 5], "iscrowd": 1},
            ],
        },
    )
    (row,) = load_examples("coco_detection", path, images=photos / "val2014", split="train")
    assert row["boxes"] == [[1, 2, 11, 22], [5, 5, 10, 10]] and row["labels"] == ["dog", "cup"]
    # In evaluation, what is found in a picture without objects is wrong.
    both = load_examples("coco_detection", path, images=photos / "val2014", split="val")
    assert both["boxes"][:] == [row["boxes"], []] and both["labels"][1] == []
    content = json.loads(path.read_text())
    del content["annotations"]
    test = load_examples("coco_detection", write_json(path, content), images=photos / "val2014", split="test")
    assert test["boxes"][:] == [None, None]


@pytest.mark.parametrize(
    ("format", "files", "message"),
    [
        ("coco_caption", {"": {"annotations": []}}, "given.json is another kind of file: it has no 'images'"),
        ("coco_detection", {"": []}, "given.json is another kind of file: it has no 'images'"),
        ("coco_detection", {"": {"images": [], "annotations": []}}, "it has no 'categories'"),
        ("refcoco", {"": []}, "There is no .*instances.json, which has the boxes: give instances="),
        ("refcoco", {"": [], "instances": {"images": []}}, "instances.json is another kind of file: it has no 'annot"),
        ("refcoco", {"": [], "instances": {"images": [1], "annotations": []}}, "is not what format 'refcoco' reads"),
        ("vqa_v2", {"": {"questions": []}, "annotations": {"annotations": [{}]}}, "not what format 'vqa_v2' reads"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, photos, format, files, message):
    paths = {name: write_json(tmp_path / f"{name or 'given'}.json", content) for name, content in files.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_examples(format, paths.pop(""), images=photos, **paths)


def test_names_of_classes_are_checked(tmp_path):
    (tmp_path / "classes" / "n1").mkdir(parents=True)
    for content in ({"0": ["n1"]}, {"n1": 7}):
        with pytest.raises(ValueError, match="names.json does not name classes"):
            names = write_json(tmp_path / "names.json", content)
            load_examples("imagenet", tmp_path / "classes", class_names=names)


def test_entailment_is_read_as_published(tmp_path):
    (tmp_path / "flickr").mkdir()
    (tmp_path / "flickr" / "24.jpg").write_bytes(picture(kind="JPEG"))
    record = {"pairID": "24.jpg#1r1e", "sentence1": "Two men.", "sentence2": "Some men."}
    records = [
        {**record, "Flikr30kID": "24.jpg", "gold_label": "entailment"},
        {**record, "Flickr30K_ID": "24", "gold_label": "contradiction"},
        {**record, "Flickr30K_ID": "24", "gold_label": "-"},
    ]
    path = tmp_path / "snli_ve_train.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    data = load_examples("snli_ve", path, images=tmp_path / "flickr", split="train")
    assert data["target"][:] == ["yes", "no"]
    assert (data[0]["text"], data[0]["text_pair"]) == ("Some men.", "Two men.")


@pytest.mark.parametrize("names", ["words.txt", "index.json", "map.json", None])
def test_folders_of_classes_are_read(tmp_path, names):
    for folder in ("n01440764", "n02092339"):
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / "x.JPEG").write_bytes(picture(kind="JPEG"))
        (tmp_path / "val" / folder / "notes.txt").write_text("not a picture")
    (tmp_path / "words.txt").write_text("n01440764 tench, Tinca tinca\nn02092339 Weimaraner\n")
    write_json(tmp_path / "index.json", {"0": ["n01440764", "tench"], "1": ["n02092339", "Weimaraner"]})
    write_json(tmp_path / "map.json", {"n01440764": "tench", "n02092339": "Weimaraner"})
    data = load_examples("imagenet", tmp_path, split="val", class_names=names and tmp_path / names)
    assert data["target"][:] == (["tench", "Weimaraner"] if names else ["n01440764", "n02092339"])
    assert data[0]["id"] == "n01440764/x.JPEG"


def test_glue_is_read_as_published(tmp_path):
    files = {
        "cola": ["gj04\t1\t\tOur friends won't buy this.\nc13\t0\t*\tThey drank the pub.\n"],
        "mnli": ['index\tsentence1\tsentence2\tgold_label\n0\tIt rains.\tIt is "wet.\tneutral\n'],
        "mrpc": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said.\tSaid he.\n"],
        "qnli": ["index\tquestion\tsentence\tlabel\n0\tWho?\tNobody.\tnot_entailment\n"],
        "qqp": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n3\t1\t2\tWhy?\tWhy not?\t0\n"],
        "rte": ["index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n"],
        "sst2": ["sentence\tlabel\nhide new secretions \t0\n"],
    }
    rows = {}
    for task, (content,) in files.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "train.tsv").write_text(content, encoding="utf-8")
        rows[task] = load_examples("glue", tmp_path / task, task=task, split="train")[0]
    assert rows["cola"]["text"] == "Our friends won't buy this."
    assert rows["mnli"]["text_pair"] == 'It is "wet.'  # quotes are letters here
    assert rows["qqp"]["id"] == "3" and rows["qnli"]["text"] == "Who?"
    assert {task: row["target"] for task, row in rows.items()} == {
        "cola": "yes",
        "mnli": "maybe",
        "mrpc": "yes",
        "qnli": "no",
        "qqp": "no",
        "rte": "yes",
        "sst2": "negative",
    }
    (tmp_path / "cola" / "test.tsv").write_text("index\tsentence\n0\tBill whistled.\n")
    (row,) = load_examples("glue", tmp_path / "cola", task="cola", split="test")
    assert (row["id"], row["text"], row["target"]) == ("0", "Bill whistled.", None)
    with pytest.raises(ValueError, match="is not a file of qqp: its first line is"):
        load_examples("glue", tmp_path / "rte" / "train.tsv", task="qqp")


def test_gigaword_is_read_from_two_files(tmp_path):
    (tmp_path / "train.src.txt").write_text("factory orders rose\nit rained #.# days\n")
    (tmp_path / "train.tgt.txt").write_text("orders up\nrain\n")
    data = load_examples("gigaword", tmp_path, split="train")
    assert [(row["text"], row["references"]) for row in data] == [
        ("factory orders rose", ["orders up"]),
        ("it rained #.# days", ["rain"]),
    ]
    (tmp_path / "train.tgt.txt").write_text("orders up\n")
    with pytest.raises(ValueError, match="differ in their number of lines"):
        load_examples("gigaword", tmp_path, split="train")


# --- data of one's own


@pytest.fixture
def album(tmp_path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture())
    return folder


def test_a_csv_of_images_questions_and_answers_is_read_with_a_mapping(album):
    with (album / "qa.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["img", "question", "answer"], ["a.png", "What, is\nit?", "a cup"], ["b.png", "Red?", "yes"]]
        )
    data = load_examples(
        "folder",
        album / "qa.csv",
        task="vqa",
        split="train",
        columns={"image": "img", "text": "question", "target": "answer"},
    )
    assert [(row["id"], row["text"], row["target"]) for row in data] == [
        ("qa-0", "What, is\nit?", "a cup"),
        ("qa-1", "Red?", "yes"),
    ]
    assert data[0]["image"].size == (60, 40) and data[0]["references"] == ["a cup"]
    with pytest.raises(ValueError, match="Say what they are"):
        load_examples("folder", album / "qa.csv", task="vqa")
    with pytest.raises(ValueError, match=r"has no column \['answers'\]; it has \['img', 'question', 'answer'\]"):
        load_examples("folder", album / "qa.csv", task="vqa", columns={"target": "answers"})
    with pytest.raises(ValueError, match="columns of an Example are"):
        load_examples("folder", album / "qa.csv", task="vqa", columns={"answer": "answer"})
    (album / "qa.csv").write_text("img,question\n")
    with pytest.raises(ValueError, match="qa.csv has no row"):  # but the columns of its header
        load_examples("folder", album / "qa.csv", task="vqa", columns={"image": "img", "text": "question"})
    (album / "qa.csv").write_text("")
    with pytest.raises(ValueError, match="qa.csv has no columns: it is empty"):
        load_examples("folder", album / "qa.csv", task="vqa", columns={"image": "img", "text": "question"})


@pytest.mark.parametrize("content", [b'"img,question\n', b"img,\xff\n"])
def test_a_csv_file_with_a_broken_header_is_named(album, content):
    (album / "qa.csv").write_bytes(content)
    with pytest.raises(ValueError, match="qa.csv:1 is not CSV in UTF-8"):
        load_examples("folder", album / "qa.csv", task="vqa", columns={"image": "img"})


@pytest.mark.parametrize(("format", "columns"), [("folder", None), ("tsv", {"image": "img"})])
def test_a_first_line_that_is_no_header_is_shown_in_part(tmp_path, format, columns):
    (tmp_path / "rows.tsv").write_bytes(b"7\t" + base64.b64encode(bytes(5000)) + b"\ta cup\n")
    with pytest.raises(ValueError, match="'7', 'AAAA.*…', 'a cup'") as caught:
        load_examples(format, tmp_path / "rows.tsv", task="caption", columns=columns)
    assert len(str(caught.value)) < 500


def test_metadata_of_a_folder_may_hold_any_column_of_an_example(album):
    rows = [
        {"file_name": "a.png", "task": "visual_grounding", "text": "the cup", "boxes": [[1, 2, 30, 30]]},
        {"file_name": "a.png", "task": "visual_grounding", "text": "the cup", "boxes": "1,2,30,30"},
        {
            "file_name": "b.png",
            "task": "object_detection",
            "boxes": [[1, 2, 9, 9], [3, 3, 9, 9]],
            "labels": ["x", "y"],
        },
        {"file_name": "b.png", "task": "object_detection", "boxes": "1,2,9,9&&3,3,9,9", "labels": "x&&y"},
        {"file_name": "b.png", "task": "object_detection", "boxes": [], "labels": []},
        {"file_name": "b.png", "task": "caption", "references": ["a", "b"], "confidence": 0.5, "id": "z"},
        {"file_name": "b.png", "task": "visual_entailment", "text": "it is red", "target": "entailment"},
        {"task": "image_generation", "text": "a cup", "codes": [1, 2]},
    ]
    (album / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_examples("folder", album)
    assert data["boxes"][:4] == [[[1, 2, 30, 30]]] * 2 + [[[1, 2, 9, 9], [3, 3, 9, 9]]] * 2
    assert data["labels"][2:4] == [["x", "y"]] * 2
    assert data[4]["boxes"] == data[4]["labels"] == []  # there is nothing to detect, which is known
    assert (data[5]["target"], data[5]["confidence"], data[5]["id"]) == ("a", 0.5, "z")
    assert data[6]["target"] == "yes" and data[7]["codes"] == [1, 2] and data[7]["image"] is None
    with pytest.raises(ValueError, match="metadata.jsonl:5: no boxes, which task 'object_detection' needs in tr"):
        load_examples("folder", album, split="train")


def test_boxes_may_stand_in_four_columns_with_width_and_height(album):
    (album / "metadata.csv").write_text("file_name,phrase,x,y,w,h\na.png,the cup,5,6,20,30\n")
    columns = {"text": "phrase", "boxes": ["x", "y", "w", "h"]}
    (row,) = load_examples("folder", album, task="visual_grounding", columns=columns, box_format="xywh")
    assert row["boxes"] == [[5, 6, 25, 36]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone.png,a cup", "no such image file: .*gone.png"),
        ("a.png,a cup,too much", "another number of columns"),
        ("a.png", "another number of columns"),
        (",a cup", "no image"),
    ],
)
def test_bad_rows_of_a_table_are_reported_with_their_line(album, line, message):
    (album / "metadata.csv").write_text(f"file_name,target\na.png,fine\n{line}\n")
    with pytest.raises(ValueError, match=rf"metadata.csv:3: .*{message}"):
        load_examples("folder", album, task="caption")
    assert len(load_examples("folder", album, task="caption", on_bad_row="skip")) == 1


def test_a_table_that_was_edited_is_read_again(album):
    (album / "metadata.csv").write_text("file_name,target\na.png,one\n")
    assert load_examples("folder", album, task="caption")["target"][:] == ["one"]
    (album / "metadata.csv").write_text("file_name,target\na.png,two\n")
    assert load_examples("folder", album, task="caption")["target"][:] == ["two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_load_dataset_loads_is_read_with_a_mapping(tmp_path, streaming):
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    )
    data = picture("P", kind="PNG")
    rows = [
        {"img": {"bytes": data, "path": "a.png"}, "premise": f"p{i}", "hypothesis": f"h{i}", "label": label}
        for i, label in enumerate([0, 1, 2, -1])
    ]
    (tmp_path / "hub").mkdir()
    for i in (0, 2):
        part = Dataset.from_list(rows[i : i + 2], features=features)
        part.to_parquet(tmp_path / "hub" / f"train-{i // 2:05d}-of-00002.parquet")
    columns = {"image": "img", "text": "hypothesis", "text_pair": "premise", "target": "label"}
    read = load_examples("hub", tmp_path / "hub", task="visual_entailment", columns=columns, streaming=streaming)
    assert [row["target"] for row in read] == ["yes", "maybe", "no", None]
    assert [row["text"] for row in read] == ["h0", "h1", "h2", "h3"]
    undecoded = next(iter(read.cast_column("image", datasets.Image(decode=False))))
    assert undecoded["image"]["bytes"] == data
    if streaming:
        assert read.num_shards == 2
    with pytest.raises(ValueError, match="hub.*row 1: no target"):
        read = load_examples(
            "hub", tmp_path / "hub", task="visual_entailment", columns=columns, streaming=streaming, split="train"
        )
        list(read)


# --- requests that cannot be met


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("csv", "x"), {}, "Unknown format 'csv'. The formats are: parquet, tsv"),
        (("tsv", "x"), {}, "needs task=, one of: caption"),
        (("tsv", "x"), {"task": "captoin"}, "not for task 'captoin'"),
        (("folder", "x"), {"task": "captoin"}, "Unknown task 'captoin'"),
        (("coco_caption", "x"), {}, "needs images="),
        (("coco_caption", "x"), {"images": ".", "columns": "0"}, "has no option columns; it takes images"),
        (("tsv", "x"), {"task": "vqa"}, "No such file"),
        (("imagenet", "nowhere"), {}, "No such file or folder: .*nowhere"),
        (("parquet", "nowhere"), {}, "holds no data"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_at_once(arguments, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_examples(*arguments, **options)


def test_another_word_for_bad_rows_is_refused(questions):
    with pytest.raises(ValueError, match="on_bad_row='ignore' must be"):
        load_examples("tsv", questions, task="vqa", streaming=True, on_bad_row="ignore")


def test_every_format_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in [*FORMATS, "parquet", *EXAMPLE_FEATURES]:
        assert f"`{name}`" in page


def test_importing_the_package_does_not_import_datasets():
    code = "import sys, modeling_ofa, modeling_ofa.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=GOLDEN.parents[1]).returncode == 0
