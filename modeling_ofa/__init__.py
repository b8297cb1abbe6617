"""OFA for transformers. Importing the package registers its classes with the Auto classes."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from .configuration_ofa import OFAConfig
from .modeling_ofa import OFAForConditionalGeneration, OFAForSequenceClassification, OFAModel, OFAPreTrainedModel


__version__ = "0.1.0"

# The folder of the small checkpoint that ships inside the package.
DEFAULT_CHECKPOINT = str(Path(__file__).parent / "assets" / "checkpoint")

AutoConfig.register("ofa", OFAConfig, exist_ok=True)
AutoModel.register(OFAConfig, OFAModel, exist_ok=True)
AutoModelForImageTextToText.register(OFAConfig, OFAForConditionalGeneration, exist_ok=True)
AutoModelForSeq2SeqLM.register(OFAConfig, OFAForConditionalGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(OFAConfig, OFAForSequenceClassification, exist_ok=True)
