"""Folders of ModelScope's OFA models (`damo/ofa_*`) → a folder that `from_pretrained` loads.

They hold the files of an `OFA-Sys/*` folder (`config.json`, `pytorch_model.bin`, `vocab.json` and `merges.txt`, or
`vocab.txt` for Chinese) and `configuration.json`, which says how the task is asked and decoded. Nothing in the files
is executed.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modeling_ofa import OFAConfig
from modeling_ofa.processing_ofa import OFAProcessor
from modeling_ofa.tasks_ofa import TASKS

from . import huggingface
from .common import check_supported, check_target, resolve_dtype, write_folder
from .fairseq import load_processor, to_native
from .huggingface import find_vocabulary, read_json, read_weights


logger = logging.getLogger(__name__)

# Settings of configuration.json and fields of config.json: the value that will do, and what our model does instead.
SUPPORTED_SETTINGS = {
    "framework": ("pytorch", "the weights are PyTorch's"),
    "type": ("ofa", "the architecture is OFA's"),
    "multimodal_type": ("default", "there is neither speech (MMSpeech) nor the vocabulary and reader of text2sql"),
    "seg_embedding": (False, "rows and columns of a sudoku have no embeddings"),
    "num_bins": (1000, "the tokenizer has 1,000 places"),
}
SUPPORTED_FIELDS = {
    "use_ofasys": (False, "pictures go through OFA's ResNet, not through the ViT of the OFA-Sys architecture"),
    "use_image_feature": (True, "there always is an image encoder"),
    "share_attn_bias": (False, "each layer has its own table of relative positions"),
    "use_gamma_feature": (False, "no learned factors scale the output of a layer's blocks"),
    "exclude_mlp": (True, "there is no contrastive head"),
    "temperature_init_value": (None, "there is no contrastive temperature"),
}
# What ModelScope's code takes where config.json is silent, as far as it differs from OFAConfig.
FIELD_DEFAULTS = {"entangle_position_embedding": False, "disable_entangle": False, "orig_patch_image_size": 224}
LANGUAGES = {"en": False, "zh": True, "cn": True}  # whether it is Chinese
PROMPT_TYPES = ("none", "src", "prev_output")
# Settings that are read: the least whole number that one may be, or that it is a text.
READ: dict[str, int | type] = {
    "patch_image_size": 1,
    "max_image_size": 1,
    "beam_size": 1,
    "max_len_b": 0,
    "min_len": 0,
    "no_repeat_ngram_size": 0,
    "task": str,
    "language": str,
    "gen_type": str,
    "prompt": str,
    "prompt_type": str,
    "answer2label": str,
}
# ModelScope's task → the row of our table that asks and decodes as it does.
ROWS = {
    "image-captioning": TASKS["caption"],
    "image-classification": TASKS["image_classification"],
    "ocr-recognition": TASKS["ocr"],
    "text-summarization": TASKS["summarization"],
    "visual-entailment": TASKS["visual_entailment"],
    "visual-grounding": TASKS["visual_grounding"],
    "visual-question-answering": TASKS["vqa"],
}
# What ModelScope asks where configuration.json names no prompt, if not what our English instruction asks.
PROMPTS = {
    "ocr-recognition": TASKS["ocr"].instruction_zh,
    "sudoku": " solve the sudoku .",
    "text-summarization": ' " {} " Summarize the article with a title: ',
}


def read_settings(folder: Path) -> dict[str, Any]:
    """
    Reads the settings of `configuration.json` that say how the task is asked and decoded: the `model` section, the
    `beam_search` in it, and `task`, in one dictionary. What is null there is left out.

    Raises:
        `FileNotFoundError`: if the folder or the file does not exist.
        `ValueError`: if the folder is not OFA's, or of a variant that our model or tokenizer cannot represent.
    """
    content = read_json(folder / "configuration.json")
    section = content.get("model")
    beam_search = section.get("beam_search") or {} if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(beam_search, dict):
        raise ValueError(
            f"{folder / 'configuration.json'} is not that of an OFA model: its section 'model' (and 'beam_search' in "
            "it) must hold names with values."
        )
    told = {**content, **section, **beam_search}
    settings = {name: value for name, value in told.items() if value is not None}
    check_supported(settings, SUPPORTED_SETTINGS)
    for name, kind in READ.items():
        value = settings.get(name, kind)
        if isinstance(kind, int) and not (type(value) is int and value >= kind):
            raise ValueError(
                f"The {name} of configuration.json must be a whole number of at least {kind}, got {value!r}."
            )
        if kind is str and not isinstance(settings.get(name, ""), str):
            raise ValueError(f"The {name} of configuration.json must be a text, got {value!r}.")
    for name, choices in (("language", LANGUAGES), ("prompt_type", PROMPT_TYPES)):
        if name in settings and settings[name] not in choices:
            raise ValueError(f"The {name} {settings[name]!r} of configuration.json is none of {', '.join(choices)}.")
    return settings


def infer_config(state_dict: dict[str, torch.Tensor], fields: Mapping[str, Any]) -> OFAConfig:
    """
    Makes the configuration of a folder's model: what shapes tell comes from the tensors, the rest from `config.json`.

    Args:
        state_dict (`dict[str, torch.Tensor]`): the folder's tensors.
        fields (`Mapping[str, Any]`): the content of its `config.json`.

    Raises:
        `ValueError`: if the tensors are not those of an OFA model, or a field has no valid value.
    """
    told = {**FIELD_DEFAULTS, **fields}
    # ModelScope's decoder adds positions to the content only if both switches say so, the official one looks at the
    # second alone.
    told["disable_entangle"] = told["disable_entangle"] or not told["entangle_position_embedding"]
    return huggingface.infer_config(state_dict, told)


def make_processor(
    vocab: str | os.PathLike | None, config: OFAConfig, settings: Mapping[str, Any]
) -> OFAProcessor | None:
    """
    Makes the processor of a folder.

    Args:
        vocab (`str` or `os.PathLike`, *optional*): folder with the tokenizer's files.
        config ([`OFAConfig`]): the model's configuration.
        settings (`Mapping[str, Any]`): what [`read_settings`] gives.

    Returns:
        [`OFAProcessor`], or None without `vocab`. What the processor has no place for is logged.

    Raises:
        `FileNotFoundError`: if there is no such folder.
        `ValueError`: if the tokenizer is not that of the model, or of another language.
    """
    args = dict(settings)
    # candidates of a picture are samples, not beams, and closed answers may be scored without a search
    if settings.get("gen_type") != "traverse" and settings.get("task") != "text-to-image-synthesis":
        args["num_beams"] = settings.get("beam_size")
    processor = load_processor(vocab, config, args)
    if processor is None:
        return None
    language = settings.get("language", "en")
    if processor.tokenizer.is_chinese != LANGUAGES[language]:
        raise ValueError(
            f"configuration.json says that the language is {language!r}, which needs "
            f"{'vocab.txt' if LANGUAGES[language] else 'vocab.json and merges.txt'}, but {vocab} holds the other kind."
        )
    for remark in remarks(settings):
        logger.warning("configuration.json: %s", remark)
    return processor


def remarks(settings: Mapping[str, Any]) -> list[str]:
    """What [`read_settings`] gives and the processor has no place for, as advice how to tell it with each call."""
    task = settings.get("task", "")
    row = ROWS.get(task)
    chinese = LANGUAGES[settings.get("language", "en")]
    advice = []
    ours = [] if row is None else [row.instruction_zh if chinese and row.instruction_zh else row.instruction]
    ours = [_blank(text) for text in [*ours, row and row.pair_instruction] if text]
    prompt = settings.get("prompt", PROMPTS.get(task, row and _blank(row.instruction)))
    if prompt is not None and prompt not in ours and task != "visual-question-answering":  # which reads no prompt
        advice.append(f"the prompt is {prompt!r}, which our task does not say; give it as text=, without task=.")
    if settings.get("answer2label"):
        advice.append(f"it answers with one of the names in {settings['answer2label']}; give them as answers=.")
    if settings.get("is_document"):
        advice.append(
            "it reads documents; give ocr_resize(picture, side, document=True), of modeling_ofa.layouts_ofa."
        )
    sides = settings.get("patch_image_size", 480), settings.get("max_image_size", 512)
    if task == "visual-grounding" and sides[0] != sides[1]:
        advice.append(f"boxes count in {sides[1]} pixels, but pictures become {sides[0]}; give size={sides[0]}.")
    if row is not None and settings.get("gen_type") != "traverse":
        wanted = {
            "max_new_tokens": settings.get("max_len_b", 16) + 1,  # and the end
            "min_new_tokens": settings.get("min_len", 1),
            "no_repeat_ngram_size": settings.get("no_repeat_ngram_size", 3),
        }
        limits = {"min_new_tokens": 1, "no_repeat_ngram_size": 0, **row.generation}
        other = [f"{name}={value}" for name, value in wanted.items() if limits[name] != value]
        if other:
            advice.append(f"ModelScope decodes with {', '.join(other)}; our task does not, give it to generate.")
    return advice


def _blank(instruction: str) -> str:
    """An instruction with `{}` for each text, as ModelScope writes it."""
    return re.sub(r"\{\w+\}", "{}", instruction)


def convert(
    folder: str | os.PathLike,
    out_dir: str | os.PathLike,
    vocab: str | os.PathLike | None = None,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """
    Converts a folder of ModelScope to one that `from_pretrained` loads, and checks it by loading it.

    Args:
        folder (`str` or `os.PathLike`): the folder as ModelScope has it.
        out_dir (`str` or `os.PathLike`): the folder to make; it must not exist yet, or be empty.
        vocab (`str` or `os.PathLike`, *optional*): folder with the tokenizer's files; `folder` itself without it. If
            they are not there, the model alone is written.
        dtype (`str` or `torch.dtype`, *optional*): `float32`, `float16` or `bfloat16`; the weights' own without it.

    Returns:
        `Path`: the folder.

    Raises:
        `FileNotFoundError`: if the folder, `configuration.json`, `config.json` or the weights do not exist.
        `FileExistsError`: if `out_dir` is a file or holds something.
        `ValueError`: if the weights cannot be read, are none of an OFA model, or of a variant that ours is not:
            MMSpeech, text2sql, the ViT of OFA-Sys, the sudoku with an embedding of rows and columns.
        `OSError`: if the disk is full or cannot be written to.
    """
    check_target(out_dir)
    torch_dtype = resolve_dtype(dtype)
    folder = Path(folder)
    settings = read_settings(folder)
    fields = read_json(folder / "config.json")
    check_supported(fields, SUPPORTED_FIELDS)
    state = read_weights(folder)
    config = infer_config(state, fields)
    processor = make_processor(find_vocabulary(folder) if vocab is None else vocab, config, settings)
    return write_folder(out_dir, config, to_native(state, config), torch_dtype, processor)
