"""Answers to rows of any tasks. The code is a core file, since pipelines need it beside the weights."""

from ..data.lines import read_answers
from ..predictor_ofa import STRATEGIES, Predictor, task_of


__all__ = ["STRATEGIES", "Predictor", "read_answers", "task_of"]
