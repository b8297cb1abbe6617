"""OFA for transformers. Importing the package registers its classes with the Auto classes, and its pipelines."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto import image_processing_auto
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 exports it with torchvision only

from .collator_ofa import DataCollatorForOFA
from .configuration_ofa import OFAConfig
from .evaluation.metrics import metric_path
from .image_processing_ofa import OFAImageProcessor
from .image_processing_pil_ofa import OFAImageProcessorPil
from .modeling_ofa import OFAForConditionalGeneration, OFAForSequenceClassification, OFAModel, OFAPreTrainedModel
from .pipelines_ofa import OFAEmbeddingPipeline, OFAPipeline, register_pipelines
from .processing_ofa import OFAProcessor
from .tasks_ofa import Task, register_task
from .tokenization_ofa import OFATokenizer


__version__ = "0.1.0"

# The folder of the small checkpoint that ships inside the package.
DEFAULT_CHECKPOINT = str(Path(__file__).parent / "assets" / "checkpoint")

AutoConfig.register("ofa", OFAConfig, exist_ok=True)
AutoModel.register(OFAConfig, OFAModel, exist_ok=True)
AutoModelForImageTextToText.register(OFAConfig, OFAForConditionalGeneration, exist_ok=True)
AutoModelForSeq2SeqLM.register(OFAConfig, OFAForConditionalGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(OFAConfig, OFAForSequenceClassification, exist_ok=True)
AutoTokenizer.register(OFAConfig, tokenizer_class=OFATokenizer, exist_ok=True)
AutoImageProcessor.register(
    OFAConfig, image_processor_classes={"pil": OFAImageProcessorPil, "torchvision": OFAImageProcessor}, exist_ok=True
)
AutoProcessor.register(OFAConfig, OFAProcessor, exist_ok=True)
# Pillow's pixels are the official ones, so they are the default even where torchvision is installed.
if "OFAImageProcessor" not in image_processing_auto.DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS:
    image_processing_auto.DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS.append("OFAImageProcessor")
register_pipelines()

__all__ = [
    "DEFAULT_CHECKPOINT",
    "DataCollatorForOFA",
    "OFAConfig",
    "OFAEmbeddingPipeline",
    "OFAForConditionalGeneration",
    "OFAForSequenceClassification",
    "OFAImageProcessor",
    "OFAImageProcessorPil",
    "OFAModel",
    "OFAPipeline",
    "OFAPreTrainedModel",
    "OFAProcessor",
    "OFATokenizer",
    "Task",
    "metric_path",
    "register_task",
]
