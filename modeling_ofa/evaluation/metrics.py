"""The table of metrics: each by name, with its function, its headline score and what it wants to be given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .boxes import detection_map, grounding_accuracy
from .captions import coco_caption
from .labels import GLUE_SCORES, glue, label_accuracy
from .texts import edit_distance, rouge, token_accuracy
from .vqa import vqa_accuracy, vqa_soft_score


@dataclass(frozen=True)
class Metric:
    """
    One row of the table.

    Args:
        function (`Callable`):
            `function(predictions, references, **options) -> dict[str, float]`.
        headline (`str`):
            The score that stands for all, by which checkpoints are compared; more is better.
        predictions (`str`):
            What a prediction is: `text`, `box` (or `None`), `detections` or `codes`.
        references (`str`):
            What a reference is, by the columns of an `Example`: `references` (list of strings), `answer_scores` (dict
            of the references and their scores), `target` (string), `box` (the only one of `boxes`), `detections`
            (`{"boxes", "labels"}`) or `codes`.
        module (`str`):
            The file of the `evaluate` module, without its ending.
    """

    function: Callable[..., dict[str, float]]
    headline: str
    predictions: str
    references: str
    module: str


METRICS: dict[str, Metric] = {
    "coco_caption": Metric(coco_caption, "cider", "text", "references", "ofa_coco_caption"),
    "vqa_accuracy": Metric(vqa_accuracy, "accuracy", "text", "references", "ofa_vqa_accuracy"),
    "vqa_soft_score": Metric(vqa_soft_score, "score", "text", "answer_scores", "ofa_vqa_soft_score"),
    "grounding_accuracy": Metric(grounding_accuracy, "accuracy", "box", "box", "ofa_grounding_accuracy"),
    "label_accuracy": Metric(label_accuracy, "accuracy", "text", "target", "ofa_label_accuracy"),
    **{
        f"glue_{task}": Metric(partial(glue, task=task), scores[0], "text", "target", "ofa_glue")
        for task, scores in GLUE_SCORES.items()
    },
    "rouge": Metric(rouge, "rougeL", "text", "references", "ofa_rouge"),
    "detection_map": Metric(detection_map, "map", "detections", "detections", "ofa_detection_map"),
    "edit_distance": Metric(edit_distance, "exact_match", "text", "target", "ofa_edit_distance"),
    "token_accuracy": Metric(token_accuracy, "accuracy", "codes", "codes", "ofa_token_accuracy"),
}


def metric_path(name: str) -> Path:
    """
    The file of a metric's `evaluate` module, for `evaluate.load` without network.

    Args:
        name (`str`):
            A name of `METRICS`, or that of a module (`ofa_glue`, `glue`). GLUE's module takes the task as its
            configuration.

    Raises:
        ValueError: If there is no such metric.

    Examples:

    ```python
    >>> accuracy = evaluate.load(str(metric_path("vqa_accuracy")))
    >>> accuracy.compute(predictions=["yes"], references=[["yes"] * 9 + ["no"]])
    {'accuracy': 1.0}
    >>> cola = evaluate.load(str(metric_path("glue")), "cola")
    ```
    """
    modules = {metric.module for metric in METRICS.values()}
    module = METRICS[name].module if name in METRICS else name if name in modules else f"ofa_{name}"
    if module not in modules:
        raise ValueError(f"Unknown metric {name!r}; choose one of {', '.join(METRICS)}.")
    return Path(__file__).parent / "modules" / f"{module}.py"
