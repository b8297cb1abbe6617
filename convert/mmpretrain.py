"""Checkpoints of mmpretrain (`.pth` files) → a folder that `from_pretrained` loads.

mmpretrain's OFA checkpoints are the official ones under other names, and hold nothing about the model but its tensors:
`{"state_dict": …, "meta": …}` as published, or the state dict alone as its own converter writes it. What task one was
fine-tuned for is told by its file's name only. Nothing in the file is executed.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .common import check_target, load_torch_file, resolve_dtype, state_dict_of, write_folder
from .fairseq import check_is_ofa, infer_config, load_processor, strip, to_native


logger = logging.getLogger(__name__)

# mmpretrain's name of a module → ours. A name means the same wherever it stands: `attn_ln` is the norm before the
# encoder's attention, whereas in the official names it is the one after it.
MODULES = {
    "embedding_ln": "layernorm_embedding",
    "embed_type": "type_embedding",
    "image_embedding_ln": "patch_layernorm_embedding",
    "code_embedding_ln": "code_layernorm_embedding",
    "final_ln": "layer_norm",
    "attn": "self_attn",
    "attn_ln": "self_attn_layer_norm",
    "attn_mid_ln": "self_attn_mid_layer_norm",
    "self_attn_ln": "self_attn_layer_norm",
    "self_attn_mid_ln": "self_attn_mid_layer_norm",
    "cross_attn_ln": "cross_attn_layer_norm",
    "cross_attn_mid_ln": "cross_attn_mid_layer_norm",
    "ffn_ln": "final_layer_norm",
    "ffn_mid_ln": "ffn_layer_norm",
}

# The published configurations (the ends of their names) → settings of the processor, by the names of the official
# training arguments. The values are those of the official checkpoints, from which mmpretrain's were made.
CONFIGS: dict[str, dict[str, Any]] = {
    "zeroshot_vqa": {"patch_image_size": 480, "num_beams": 20},
    "finetuned_caption": {"patch_image_size": 480},
    "finetuned_refcoco": {"patch_image_size": 512},
    "finetuned_vqa": {"patch_image_size": 480, "prompt_type": "prev_output"},
}
# What tells them in the name of a file, tried in this order: `ofa-base_3rdparty_pretrain_….pth` is the zero-shot one.
IN_FILE_NAMES = {
    r"pretrain_|zeroshot": "zeroshot_vqa",
    "caption": "finetuned_caption",
    "refcoco": "finetuned_refcoco",
    "vqa": "finetuned_vqa",
}


def rename(key: str) -> str:
    """Gives our name (with or without the `model.` prefix, as `key` has it) of a tensor of mmpretrain."""
    return ".".join(MODULES.get(part, part) for part in key.split("."))


def guess_task(checkpoint: str | os.PathLike) -> str | None:
    """The configuration in `CONFIGS` that a file's name speaks of, or None."""
    name = Path(checkpoint).name.lower()
    return next((task for pattern, task in IN_FILE_NAMES.items() if re.search(pattern, name)), None)


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Reads a checkpoint of mmpretrain.

    Args:
        path (`str` or `os.PathLike`): a file that `torch.save` wrote.

    Returns:
        `dict[str, torch.Tensor]`: the tensors by our names, without the `model.` prefix.

    Raises:
        `ValueError`: if the file is no checkpoint of an OFA model, or has the names of another source.
    """
    checkpoint = load_torch_file(path)
    if isinstance(checkpoint, Mapping) and "state_dict" not in checkpoint and "model" in checkpoint:
        raise ValueError(f"{path} is laid out like an official checkpoint: python -m convert fairseq reads it.")
    tensors = state_dict_of(checkpoint, str(path))
    state = strip({rename(key): tensor for key, tensor in tensors.items()})
    check_is_ofa(state, str(path))
    if not any(".ffn_ln." in key for key in tensors):
        raise ValueError(
            f"{path} is an OFA model, but its tensors do not have mmpretrain's names: python -m convert fairseq reads "
            "those of the official code, python -m convert huggingface a folder of the Hub."
        )
    return state


def convert(
    checkpoint: str | os.PathLike,
    out_dir: str | os.PathLike,
    vocab: str | os.PathLike | None = None,
    dtype: str | torch.dtype | None = None,
    task: str | None = None,
) -> Path:
    """
    Converts a checkpoint of mmpretrain to a folder that `from_pretrained` loads, and checks it by loading it.

    Args:
        checkpoint (`str` or `os.PathLike`): the `.pth` file.
        out_dir (`str` or `os.PathLike`): the folder to make; it must not exist yet, or be empty.
        vocab (`str` or `os.PathLike`, *optional*): folder with the tokenizer's files. Without it the model alone is
            written.
        dtype (`str` or `torch.dtype`, *optional*): `float32`, `float16` or `bfloat16`; as stored without it.
        task (`str`, *optional*): which published configuration the processor shall follow: `"finetuned_caption"`,
            `"finetuned_refcoco"`, `"finetuned_vqa"` or `"zeroshot_vqa"`. Told from the file's name without it.

    Returns:
        `Path`: the folder.

    Raises:
        `FileNotFoundError`: if `checkpoint` or `vocab` does not exist.
        `FileExistsError`: if `out_dir` is a file or holds something.
        `ValueError`: if there is no such `task`, or the checkpoint cannot be read or is none of an OFA model.
        `OSError`: if the disk is full or cannot be written to.
    """
    check_target(out_dir)
    torch_dtype = resolve_dtype(dtype)
    if task is not None and task not in CONFIGS:
        raise ValueError(f"task must be one of {', '.join(CONFIGS)}, got {task!r}.")
    task = guess_task(checkpoint) if task is None else task
    state = read_checkpoint(checkpoint)
    config = infer_config(state)
    if task is None and vocab is not None:
        logger.warning(
            "The name %s does not tell the configuration, so the processor gets the defaults; --task tells it (%s).",
            Path(checkpoint).name,
            ", ".join(CONFIGS),
        )
    processor = load_processor(vocab, config, CONFIGS.get(task or ""))
    return write_folder(out_dir, config, to_native(state, config), torch_dtype, processor)
