"""Readers of published data sets, in the files in which their authors give them out."""

import json
import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .example import Row
from .lines import cut, read_answers, read_header, read_lines, show_names
from .official import read_tsv


logger = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def read_coco_caption(
    path: str, *, images: str, split: str | None = None, per_image: bool | None = None
) -> Iterator[Row]:
    """
    Reads captions of COCO or Flickr with Karpathy's split, `dataset_coco.json`.

    Args:
        path (`str`): The JSON file.
        images (`str`): The folder with the pictures, or with the folders `train2014` and `val2014`.
        split (`str`, *optional*): `"train"` (to which `restval` belongs, as everybody counts it), `"val"`, `"test"`.
        per_image (`bool`, *optional*):
            Whether a picture makes one row with all its captions, and not a row for each. By default it does in all
            splits but train; self-critical training wants it there too.
    """
    wanted = {"train": {"train", "restval"}}.get(split or "", {split})
    if per_image is None:
        per_image = split != "train"
    for i, image in enumerate(_load_json(path, "images")["images"]):
        where = f"{path}: images[{i}]"
        if split is not None and image.get("split") not in wanted:
            continue
        if per_image:
            yield Row(where, partial(_karpathy, image, images))
        else:
            for sentence in image["sentences"]:
                yield Row(where, partial(_karpathy, image, images, sentence))


def _karpathy(image: Mapping[str, Any], images: str, sentence: Mapping[str, Any] | None = None) -> dict[str, Any]:
    name = str(image.get("cocoid", image.get("imgid")))
    return {
        "id": name if sentence is None else f"{name}_{sentence['sentid']}",
        "task": "caption",
        "image": _find_image(images, image["filename"], image.get("filepath", "")),
        "references": [one["raw"] for one in (image["sentences"] if sentence is None else [sentence])],
    }


def read_vqa_v2(
    path: str,
    *,
    images: str,
    split: str | None = None,
    annotations: str | None = None,
    answer_list: str | None = None,
    human_answers: bool = False,
) -> Iterator[Row]:
    """
    Reads VQAv2: a file of questions, and one of annotations unless it is the test set's.

    Args:
        path (`str`): `v2_OpenEnded_mscoco_*_questions.json`.
        images (`str`): The folder with the pictures, or with the folders `train2014`, `val2014`, `test2015`.
        split (`str`, *optional*): Whether it is `"train"`; the files hold one split each.
        annotations (`str`, *optional*): `v2_mscoco_*_annotations.json`.
        answer_list (`str`, *optional*):
            The answers to keep for training, in any form that `read_answers` takes. Others are left out, and so are
            questions that have none of these.
        human_answers (`bool`):
            Whether `references` are the ten answers, letter for letter as people gave them, which VQA's own accuracy
            counts, and not the different ones with their soft scores.

    Raises:
        `ValueError`: if a file is of another kind, or questions shall be left out that are not for training.
    """
    if answer_list is not None and split != "train":
        raise ValueError("answer_list leaves questions out, which is for split='train'; evaluation counts them all.")
    content = _load_json(path, "questions")
    kind = content.get("data_subtype", "")
    given = None
    if annotations is not None:
        given = {one["question_id"]: one for one in _load_json(annotations, "annotations")["annotations"]}
    known = {answer.lower() for answer in read_answers(answer_list)} if answer_list else None
    folder = "test2015" if kind.startswith("test") else kind  # test-dev is a part of it
    for i, question in enumerate(content["questions"]):
        where = f"{path}: questions[{i}]"
        if given is not None and known is not None:
            people = given.get(question.get("question_id"), {}).get("answers", ())
            if not any(_vqa_answer(one) in known for one in people):
                continue
        yield Row(where, partial(_vqa, question, given, known, images, folder, human_answers))


# A soft score is what VQA counts for an answer that so many of the ten people gave.
_SOFT_SCORES = {1: 0.3, 2: 0.6, 3: 0.9}


def _vqa_answer(answer: Mapping[str, Any]) -> str:
    return answer["answer"].strip().lower()


def _vqa(
    question: Mapping[str, Any],
    given: Mapping[int, Mapping[str, Any]] | None,
    known: set[str] | None,
    images: str,
    folder: str,
    human_answers: bool,
) -> dict[str, Any]:
    example = {
        "id": str(question["question_id"]),
        "task": "vqa",
        "image": _find_image(images, f"COCO_{folder}_{question['image_id']:012d}.jpg", folder),
        "text": question["question"],
    }
    if given is None:
        return example
    if question["question_id"] not in given:
        raise ValueError(f"no annotation for question {question['question_id']}")
    people = given[question["question_id"]]["answers"]
    counts = Counter(map(_vqa_answer, people))
    scores = {
        answer: _SOFT_SCORES.get(count, 1.0) for answer, count in counts.items() if known is None or answer in known
    }
    if scores:
        example["target"] = max(scores, key=scores.__getitem__)
        example["confidence"] = scores[example["target"]]
    if human_answers:
        return {**example, "references": [one["answer"] for one in people]}
    return {**example, "references": list(scores), "answer_scores": list(scores.values())}


def read_refcoco(
    path: str, *, images: str, task: str, split: str | None = None, instances: str | None = None
) -> Iterator[Row]:
    """
    Reads RefCOCO, RefCOCO+ and RefCOCOg, one row for each phrase.

    Args:
        path (`str`):
            `refs(unc).p` and its like, or the same as JSON. Pickles are read as plain data: one that names any class
            or function is refused.
        images (`str`): The folder with COCO's pictures of 2014, or with the folder `train2014`.
        task (`str`): `"visual_grounding"`, or `"grounded_caption"` for the other way around.
        split (`str`, *optional*): `"train"`, `"val"`, `"test"`, `"testA"`, `"testB"`.
        instances (`str`, *optional*): `instances.json` with the boxes; by default the one beside `path`.
    """
    refs = _load_refs(path)
    instances = instances or os.path.join(os.path.dirname(path), "instances.json")
    if not os.path.exists(instances):
        raise FileNotFoundError(f"There is no {instances}, which has the boxes: give instances=.")
    coco = _load_json(instances, "images", "annotations")
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    boxes = {one["id"]: one["bbox"] for one in coco["annotations"]}
    for i, ref in enumerate(refs):
        if split is None or ref.get("split") == split:
            for sentence in ref["sentences"]:
                yield Row(f"{path}: [{i}]", partial(_refcoco, ref, sentence, names, boxes, images, task))


def _refcoco(
    ref: Mapping[str, Any],
    sentence: Mapping[str, Any],
    names: Mapping[int, str],
    boxes: Mapping[int, Sequence[float]],
    images: str,
    task: str,
) -> dict[str, Any]:
    name, box = names[ref["image_id"]], _to_corners(boxes[ref["ann_id"]])
    phrase = sentence.get("raw", sentence["sent"])
    common = {
        "id": f"{ref['ref_id']}_{sentence['sent_id']}",
        "task": task,
        "image": _find_image(images, name, name.split("_")[1] if name.startswith("COCO_") else ""),
    }
    if task == "grounded_caption":
        return {**common, "text": ",".join(f"{side:g}" for side in box), "references": [phrase]}
    return {**common, "text": phrase, "boxes": [box]}


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers, and refuses everything that would call or import something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but plain data was expected")


def _load_refs(path: str) -> list[Mapping[str, Any]]:
    if not path.endswith((".p", ".pkl", ".pickle")):
        return _load_json(path)
    try:
        with open(path, "rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged pickles raise anything
        raise ValueError(f"{path} is not read: {error}. Save the list as JSON and pass that file.") from error
    if not isinstance(refs, list):
        raise ValueError(f"{path} holds a {type(refs).__name__} and not the list of references.")
    return refs


def read_coco_detection(path: str, *, images: str, split: str | None = None) -> Iterator[Row]:
    """
    Reads objects of COCO, or of any data set in its format, one row for each picture. Crowds, which have no box of a
    thing, are left out, and so are, in training, pictures without an object.

    Args:
        path (`str`): `instances_*.json`, or `image_info_*.json` without annotations.
        images (`str`): The folder with the pictures.
        split (`str`, *optional*): Whether it is `"train"`; the files hold one split each.
    """
    coco = _load_json(path, "images", "categories")
    names = {category["id"]: category["name"] for category in coco["categories"]}
    objects: dict[Any, list[Mapping[str, Any]]] = {}
    for one in coco.get("annotations", ()):
        if not one.get("iscrowd"):
            objects.setdefault(one["image_id"], []).append(one)
    for i, image in enumerate(coco["images"]):
        found = objects.get(image["id"], []) if "annotations" in coco else None
        if found or split != "train":
            yield Row(f"{path}: images[{i}]", partial(_coco_detection, image, found, names, images))


def _coco_detection(
    image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]] | None, names: Mapping[int, str], images: str
) -> dict[str, Any]:
    return {
        "id": str(image["id"]),
        "task": "object_detection",
        "image": _find_image(images, image["file_name"]),
        "boxes": None if objects is None else [_to_corners(one["bbox"]) for one in objects],
        "labels": None if objects is None else [names[one["category_id"]] for one in objects],
    }


_NO_AGREEMENT = re.compile(rb'"gold_label":\s*"-"')


def read_snli_ve(path: str, *, images: str) -> Iterator[Row]:
    """
    Reads SNLI-VE, `snli_ve_*.jsonl`. Lines whose label is `-`, on which people did not agree, are left out.

    Args:
        path (`str`): The JSON lines.
        images (`str`): The folder with Flickr30k's pictures.
    """
    (piece,) = cut([path], 1)
    for where, line in read_lines(piece):
        if not _NO_AGREEMENT.search(line):
            yield Row(where, partial(_snli_ve, line, images), len(line) + 1)


def _snli_ve(line: bytes, images: str) -> dict[str, Any]:
    record = json.loads(line)
    name = str(record.get("Flickr30K_ID") or record["Flikr30kID"]).removesuffix(".jpg")
    return {
        "id": record["pairID"],
        "task": "visual_entailment",
        "image": _find_image(images, f"{name}.jpg"),
        "text": record["sentence2"],
        "text_pair": record["sentence1"],
        "target": record.get("gold_label"),
    }


def read_imagenet(path: str, *, split: str | None = None, class_names: str | None = None) -> Iterator[Row]:
    """
    Reads a folder for each class, as those of ImageNet.

    Args:
        path (`str`): The folder of the folders.
        split (`str`, *optional*): The folder in `path` that holds them, if there is one such as `train` or `val`.
        class_names (`str`, *optional*):
            What the folders' names mean: lines `n01440764 tench, Tinca tinca` (`synset_words.txt`, whose first name
            is OFA's), `{"n01440764": "tench"}` or `{"0": ["n01440764", "tench"]}` as JSON. By default the folders'
            names are those of the classes, with spaces for underscores.

    Raises:
        `FileNotFoundError`: if there is no folder, or none in it.
    """
    root = os.path.join(path, split) if split and os.path.isdir(os.path.join(path, split)) else path
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not folders:
        raise FileNotFoundError(f"{root} has no folder for each class in it.")
    names = _read_class_names(class_names) if class_names else {name: name.replace("_", " ") for name in folders}
    shared = [name for name, count in Counter(names.values()).items() if count > 1]
    if shared:
        logger.warning("Classes share these names, and no answer can tell them apart: %s", ", ".join(shared))
    for folder in folders:
        for file in sorted(os.listdir(os.path.join(root, folder))):
            if file.lower().endswith(PICTURES):
                yield Row(os.path.join(root, folder, file), partial(_imagenet, root, folder, file, names))


def _imagenet(root: str, folder: str, file: str, names: Mapping[str, str]) -> dict[str, Any]:
    if folder not in names:
        raise ValueError(f"class_names does not name {folder!r}")
    return {
        "id": f"{folder}/{file}",
        "task": "image_classification",
        "image": os.path.join(root, folder, file),
        "target": names[folder],
    }


# The columns of GLUE's files, and what the files of splits are called. CoLA's have no header but in the test set.
_GLUE: dict[str, dict[str, str]] = {
    "cola": {"id": "index", "text": "sentence", "label": "label"},
    "mnli": {"id": "index", "text": "sentence1", "text_pair": "sentence2", "label": "gold_label"},
    "mrpc": {"id": "index", "text": "#1 String", "text_pair": "#2 String", "label": "Quality"},
    "qnli": {"id": "index", "text": "question", "text_pair": "sentence", "label": "label"},
    "qqp": {"id": "id", "text": "question1", "text_pair": "question2", "label": "is_duplicate"},
    "rte": {"id": "index", "text": "sentence1", "text_pair": "sentence2", "label": "label"},
    "sst2": {"id": "index", "text": "sentence", "label": "label"},
}
_GLUE_SPLITS = {"validation": "dev", "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched"}


def read_glue(path: str, *, task: str, split: str | None = None) -> Iterator[Row]:
    """
    Reads GLUE as published: a folder with `train.tsv`, `dev.tsv` (MNLI: `dev_matched.tsv` and `dev_mismatched.tsv`)
    and `test.tsv`, whose rows have no label.

    Args:
        path (`str`): The folder, or one of its files.
        task (`str`): `"cola"`, `"mnli"`, `"mrpc"`, `"qnli"`, `"qqp"`, `"rte"` or `"sst2"`.
        split (`str`, *optional*): The file in the folder.

    Raises:
        `ValueError`: if the file has none of the columns.
    """
    if os.path.isdir(path):
        path = os.path.join(path, f"{_GLUE_SPLITS.get(split or '', split or 'train')}.tsv")
    (piece,) = cut([path], 1)
    header = read_header(path)
    if task == "cola" and "sentence" not in header:
        yield from read_tsv(piece, task=task, columns={"text": 3, "label": 1})
        return
    columns: dict[str, int | str] = {field: name for field, name in _GLUE[task].items() if name in header}
    if "text" not in columns:
        raise ValueError(f"{path} is not a file of {task}: its first line is {show_names(header)}.")
    yield from read_tsv(piece, task=task, columns=columns)


def read_gigaword(path: str, *, split: str | None = None, targets: str | None = None) -> Iterator[Row]:
    """
    Reads Gigaword as UniLM gives it out: `train.src.txt` with an article a line, `train.tgt.txt` with its headline.

    Args:
        path (`str`): The folder, or the file of articles.
        split (`str`, *optional*): The file in the folder.
        targets (`str`, *optional*): The file of headlines; by default the one with `tgt` for `src` in its name.

    Raises:
        `ValueError`: if the files differ in length.
    """
    if os.path.isdir(path):
        path = os.path.join(path, f"{split or 'train'}.src.txt")
    if targets is None:
        targets = os.path.join(os.path.dirname(path), os.path.basename(path).replace("src", "tgt"))
    with open(path, "rb") as articles, open(targets, "rb") as titles:
        try:
            for number, (article, title) in enumerate(zip(articles, titles, strict=True), start=1):
                yield Row(f"{path}:{number}", partial(_gigaword, number, article, title), len(article))
        except ValueError as error:
            raise ValueError(f"{path} and {targets} differ in their number of lines.") from error


def _gigaword(number: int, article: bytes, title: bytes) -> dict[str, Any]:
    return {
        "id": str(number),
        "task": "summarization",
        "text": article.decode().strip(),
        "target": title.decode().strip(),
    }


def _load_json(path: str, *keys: str) -> Any:
    """
    Reads a JSON file.

    Raises:
        `ValueError`: if it is not one, or is not an object that has these keys.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{path} is another kind of file: it has no {key!r}.")
    return content


def _read_class_names(path: str) -> dict[str, str]:
    """Reads what folders' names mean, in one of the forms that `read_imagenet` takes."""
    if path.endswith(".json"):
        content = _load_json(path)
        pairs = [one if isinstance(one, list) else (key, one) for key, one in content.items()]
        if not all(len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs):
            raise ValueError(f'{path} does not name classes, as {{"n01440764": "tench"}} does.')
    else:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        pairs = [line.split(maxsplit=1) for line in lines if len(line.split()) > 1]
    return {folder: name.split(",")[0].strip().replace("_", " ") for folder, name in pairs}


def _find_image(images: str, name: str, folder: str = "") -> str:
    """Gives the path of a picture that may lie in a folder of its own."""
    inside = os.path.join(images, folder, name)
    return inside if folder and os.path.exists(inside) else os.path.join(images, name)


def _to_corners(box: Sequence[float]) -> list[float]:
    """Turns `x, y, width, height` into `x0, y0, x1, y1`."""
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]
