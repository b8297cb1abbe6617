"""Metrics of every task: plain functions, a table of them by name, and `evaluate` modules that load from a path."""

from .boxes import detection_map, grounding_accuracy
from .captions import CiderD, bleu, coco_caption, reward_text, rouge_l, strip_punctuation
from .labels import glue, label_accuracy
from .metrics import METRICS, Metric, metric_path
from .ptb import ptb_tokens, stanford_tokens
from .texts import edit_distance, gigaword_text, rouge, token_accuracy
from .vqa import answer_accuracy, normalize_answer, vqa_accuracy, vqa_soft_score


__all__ = [
    "METRICS",
    "CiderD",
    "Metric",
    "answer_accuracy",
    "bleu",
    "coco_caption",
    "detection_map",
    "edit_distance",
    "gigaword_text",
    "glue",
    "grounding_accuracy",
    "label_accuracy",
    "metric_path",
    "normalize_answer",
    "ptb_tokens",
    "reward_text",
    "rouge",
    "rouge_l",
    "stanford_tokens",
    "strip_punctuation",
    "token_accuracy",
    "vqa_accuracy",
    "vqa_soft_score",
]
