"""What the official code trains with, on top of transformers' `Trainer` (docs/finetune.md)."""

from .ema import EMACallback
from .losses import LossSums, OFALoss
from .sharding import ShardingTrainer
from .trainer import OFATrainer, OFATrainingArguments


__all__ = ["EMACallback", "LossSums", "OFALoss", "OFATrainer", "OFATrainingArguments", "ShardingTrainer"]
