"""Scores of boxes: accuracy at an overlap for grounding, with OFA's arithmetic, and COCO's mean average precision."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .inputs import check_pairs


def grounding_accuracy(
    predictions: Sequence[Sequence[float] | None], references: Sequence[Sequence[float]], *, threshold: float = 0.5
) -> dict[str, float]:
    """
    How many phrases were grounded: the part of boxes whose intersection over union with the true one is enough.

    Counted as OFA counts: in single precision, with 1e-6 added to the union, and only if the boxes truly meet.

    Args:
        predictions (`Sequence[Sequence[float] | None]`):
            One box `[x0, y0, x1, y1]` a phrase, in pixels; `None` if the model wrote none, which is a miss.
        references (`Sequence[Sequence[float]]`):
            The true boxes, in the same pixels.
        threshold (`float`, *optional*, defaults to 0.5):
            The overlap that is enough.

    Returns:
        `dict[str, float]`: `accuracy`, and `mean_iou`, a box that does not overlap counting 0.

    Raises:
        ValueError: If the numbers differ or a box is not four numbers.
    """
    check_pairs(predictions, references)
    nothing = (0.0, 0.0, 0.0, 0.0)
    found = _boxes([nothing if box is None else box for box in predictions], "prediction").astype(np.float32)
    true = _boxes(references, "reference").astype(np.float32)
    sides = np.minimum(found[:, 2:], true[:, 2:]) - np.maximum(found[:, :2], true[:, :2])  # (phrases, 2)
    intersection = sides.prod(axis=1)
    iou = intersection / (_area(found) + _area(true) - intersection + np.float32(1e-6))
    overlap = (sides > 0).all(axis=1)
    return {
        "accuracy": float(np.mean(overlap & (iou >= np.float32(threshold)))),
        "mean_iou": float(np.mean(np.where(overlap, iou, 0.0), dtype=np.float64)),
    }


def detection_map(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], *, max_detections: int = 100
) -> dict[str, float]:
    """
    COCO's mean average precision of detection, without crowd regions: 101 recall points, mean over classes.

    Args:
        predictions (`Sequence[Mapping]`):
            `{"boxes": [[x0, y0, x1, y1], …], "labels": […], "scores": […]}` a picture. Without `scores` (or if all
            are `None`) boxes are equally sure and rank in their order.
        references (`Sequence[Mapping]`):
            `{"boxes": …, "labels": …}` a picture.
        max_detections (`int`, *optional*, defaults to 100):
            How many boxes of a class count in a picture, the surest first. One that is inside out counts as false.

    Returns:
        `dict[str, float]`: `map` (mean over the overlaps 0.5, 0.55, … 0.95), `map_50` and `map_75`, each the mean over
        the classes that the references have.

    Raises:
        ValueError: If boxes, labels and scores do not match in number, or no picture has a true box.
    """
    check_pairs(predictions, references)
    found, true = _by_class(predictions, "prediction"), _by_class(references, "reference")
    if not true:
        raise ValueError("No reference has a box, so average precision is undefined.")
    precisions = np.stack([_average_precision(found[label], boxes, max_detections) for label, boxes in true.items()])
    mean = precisions.mean(axis=0)  # (overlaps,)
    return {"map": float(mean.mean()), "map_50": float(mean[0]), "map_75": float(mean[5])}


_OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)

# picture → its boxes of one class, of shape (boxes, 4), and their scores, of shape (boxes,)
_ClassBoxes = dict[int, tuple[np.ndarray, np.ndarray]]


def _boxes(boxes: Sequence[Sequence[float]], what: str) -> np.ndarray:
    """Gives boxes as float64 of shape `(boxes, 4)`."""
    for index, box in enumerate(boxes):
        if len(box) != 4:
            raise ValueError(f"Box {index} of a {what} is four numbers [x0, y0, x1, y1], not {list(box)!r}.")
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _by_class(pictures: Sequence[Mapping[str, Any]], what: str) -> defaultdict[Any, _ClassBoxes]:
    classes: defaultdict[Any, _ClassBoxes] = defaultdict(dict)
    for index, picture in enumerate(pictures):
        boxes, labels = _boxes(picture["boxes"], what), list(picture["labels"])
        given = picture.get("scores")
        unknown = given is None or (len(given) > 0 and all(score is None for score in given))
        scores = np.ones(len(boxes)) if unknown else np.asarray(given, dtype=np.float64)
        if not len(boxes) == len(labels) == len(scores):
            raise ValueError(
                f"{what.capitalize()} {index} has {len(boxes)} boxes, {len(labels)} labels and {len(scores)} scores; "
                "give one of each a box."
            )
        for label in dict.fromkeys(labels):
            here = [place for place, other in enumerate(labels) if other == label]
            classes[label][index] = boxes[here], scores[here]
    return classes


def _iou(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, of shape `(found, true)`."""
    corners = np.minimum(found[:, None, 2:], true[None, :, 2:]) - np.maximum(found[:, None, :2], true[None, :, :2])
    intersection = corners.clip(min=0).prod(axis=2)
    union = _area(found)[:, None] + _area(true)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _average_precision(found: _ClassBoxes, true: _ClassBoxes, max_detections: int) -> np.ndarray:
    """Average precision of one class at each overlap, of shape `(overlaps,)`."""
    matched, scores = [np.zeros((len(_OVERLAPS), 0), dtype=bool)], [np.zeros(0)]
    for picture, (boxes, confidences) in sorted(found.items()):
        order = np.argsort(-confidences, kind="stable")[:max_detections]
        scores.append(confidences[order])
        truth = true[picture][0] if picture in true else np.zeros((0, 4))
        matched.append(_match(_iou(boxes[order], truth)))
    ranks = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.concatenate(matched, axis=1)[:, ranks].cumsum(axis=1)  # (overlaps, detections)
    recall = hits / sum(len(boxes) for boxes, _ in true.values())
    precision = hits / np.arange(1, len(ranks) + 1)
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    averages = np.zeros(len(_OVERLAPS))
    for row, (recalls, precisions) in enumerate(zip(recall, precision, strict=True)):
        places = np.searchsorted(recalls, _RECALLS, side="left")
        averages[row] = np.append(precisions, 0.0)[places].mean()
    return averages


def _match(iou: np.ndarray) -> np.ndarray:
    """Gives each found box, surest first, the true box left that it overlaps most; `(overlaps, found)` booleans."""
    matched = np.zeros((len(_OVERLAPS), len(iou)), dtype=bool)
    if not iou.shape[1]:
        return matched
    for row, overlap in enumerate(_OVERLAPS):
        left = iou.copy()
        for box in range(len(iou)):
            best = left.shape[1] - 1 - left[box, ::-1].argmax()  # of equal ones the last, as COCO has it
            if left[box, best] >= overlap:
                matched[row, box] = True
                left[:, best] = -1.0
    return matched
