"""Answers to rows of any tasks, and what they are worth: metrics as functions, by name, and as `evaluate` modules."""

from .boxes import detection_map, grounding_accuracy
from .captions import CiderD, bleu, coco_caption, reward_text, rouge_l, strip_punctuation
from .labels import glue, label_accuracy
from .metrics import METRICS, Metric, metric_path
from .predictor import Predictor, read_answers
from .ptb import ptb_tokens, stanford_tokens
from .texts import edit_distance, gigaword_text, rouge, token_accuracy
from .vqa import answer_accuracy, normalize_answer, vqa_accuracy, vqa_soft_score


__all__ = [
    "METRICS",
    "CiderD",
    "Metric",
    "Predictor",
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
    "read_answers",
    "reward_text",
    "rouge",
    "rouge_l",
    "stanford_tokens",
    "strip_punctuation",
    "token_accuracy",
    "vqa_accuracy",
    "vqa_soft_score",
]
