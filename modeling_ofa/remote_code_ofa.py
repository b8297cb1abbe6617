"""The code beside the weights: what makes a folder load where this package is not installed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files


_GENERATOR = "modeling_ofa.OFAForConditionalGeneration"
# By file, where the Auto classes look for the code.
_AUTO_MAPS: dict[str, dict[str, Any]] = {
    "config.json": {
        "AutoConfig": "configuration_ofa.OFAConfig",
        "AutoModel": "modeling_ofa.OFAModel",
        "AutoModelForImageTextToText": _GENERATOR,
        "AutoModelForSeq2SeqLM": _GENERATOR,
        "AutoModelForSequenceClassification": "modeling_ofa.OFAForSequenceClassification",
    },
    "processor_config.json": {"AutoProcessor": "processing_ofa.OFAProcessor"},
    "tokenizer_config.json": {"AutoTokenizer": ["tokenization_ofa.OFATokenizer", None]},
}
_IMAGE_AUTO_MAP = {"AutoImageProcessor": "image_processing_pil_ofa.OFAImageProcessorPil"}
_CLASSIFIER = "OFAForSequenceClassification"


def code_files() -> list[Path]:
    """Gives the files that loading from a folder may execute: the pipelines, and all that they import of the core."""
    pipelines = Path(__file__).with_name("pipelines_ofa.py")
    return sorted({pipelines, *map(Path, get_relative_import_files(pipelines))})


def add_code(folder: str | os.PathLike, pipelines: Mapping[str, Any]) -> None:
    """
    Puts the code into the folder of a model or an adapter, and its classes' names into those settings that are there.

    Args:
        folder (`str` or `os.PathLike`): What `save_pretrained` of model and processor wrote.
        pipelines (`Mapping[str, Any]`):
            The pipelines by their names, as [`~pipelines_ofa.custom_pipelines`] gives them. A classifier gets none.
    """
    folder = Path(folder)
    for name, auto_map in _AUTO_MAPS.items():
        if not (folder / name).is_file():
            continue
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        settings["auto_map"] = auto_map
        if name == "config.json" and _CLASSIFIER not in (settings.get("architectures") or ()):
            settings["custom_pipelines"] = dict(pipelines)
        if "image_processor" in settings:
            settings["image_processor"]["auto_map"] = _IMAGE_AUTO_MAP
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    for file in code_files():
        (folder / file.name).write_bytes(file.read_bytes())


__all__ = ["add_code", "code_files"]
