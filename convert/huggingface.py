"""Folders in the layout of the Hub's `OFA-Sys/*` repositories → a folder that `from_pretrained` loads.

They hold `config.json`, `pytorch_model.bin` or `model.safetensors` (maybe in shards), `vocab.json` and `merges.txt`.
`from_pretrained` also reads them as they are; a converted folder is in today's format: safetensors, no recomputed
tables, a processor. Nothing in the files is executed.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch

from modeling_ofa import OFAConfig

from .common import (
    check_supported,
    check_target,
    load_safetensors,
    load_torch_file,
    make_config,
    resolve_dtype,
    state_dict_of,
    write_folder,
)
from .fairseq import FROM_ARGS, check_is_ofa, choose_head, load_processor, shapes_to_fields, strip, to_native


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",), ("tokenizer.json",))
# What no shape tells, by the names that both kinds of configuration use.
KEPT = {field for field, _ in FROM_ARGS.values()} | {
    "activation_function",
    "init_std",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
}


# The value that will do, and what our model does instead.
SUPPORTED = {"scale_embedding": (False, "embeddings are not multiplied by the square root of their size")}


def read_json(path: Path) -> dict[str, Any]:
    """
    Reads a JSON object of a downloaded folder.

    Raises:
        `FileNotFoundError`: if the folder, or the file in it, does not exist.
        `ValueError`: if the file is damaged.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder (download the whole repository first)", str(path.parent))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, f"The folder has no {path.name}", str(path.parent))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a JSON object is expected.")
    return content


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """
    Reads the weights of a folder, in one file or in shards.

    Raises:
        `FileNotFoundError`: if there are none, or a shard is missing.
        `ValueError`: if a file is damaged, names anything but tensors, or these are not those of an OFA model.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(errno.ENOENT, f"None of {', '.join(WEIGHTS)} is in the folder", str(folder))
    paths = [path]
    if path.suffix == ".json":
        shards = read_json(path).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{path} has no weight_map that names a file for each tensor; fetch it again.")
        # a shard lies in the folder itself, whatever the index says
        paths = [folder / Path(name).name for name in sorted(set(shards.values()))]
    state: dict[str, torch.Tensor] = {}
    for shard in paths:
        if not shard.is_file():
            raise FileNotFoundError(errno.ENOENT, "A shard of the weights is missing", str(shard))
        tensors = load_safetensors(shard) if shard.suffix == ".safetensors" else load_torch_file(shard)
        state.update(state_dict_of(tensors, str(shard)))
    check_is_ofa(state, str(folder))
    return state


def infer_config(state_dict: dict[str, torch.Tensor], config: dict[str, Any]) -> OFAConfig:
    """
    Makes the configuration of a folder's model: what shapes tell comes from the tensors, the rest from `config.json`.

    Args:
        state_dict (`dict[str, torch.Tensor]`): the folder's tensors.
        config (`dict[str, Any]`): the content of its `config.json`.

    Raises:
        `ValueError`: if the tensors are not those of an OFA model, or `config` asks for what we have not.
    """
    check_is_ofa(state_dict)
    check_supported(config, SUPPORTED)
    state = strip(state_dict)
    fields = shapes_to_fields(state, config.get("resnet_type"), choose_head(state))
    told = {key: value for key, value in config.items() if key in KEPT and value is not None}
    return make_config({**fields, **told})


def find_vocabulary(folder: Path) -> Path | None:
    """The folder itself if it holds the tokenizer's files."""
    return folder if any(all((folder / name).is_file() for name in names) for names in VOCABULARIES) else None


def convert(
    folder: str | os.PathLike,
    out_dir: str | os.PathLike,
    vocab: str | os.PathLike | None = None,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """
    Converts an `OFA-Sys/*` folder to a folder in today's format, and checks it by loading it.

    Args:
        folder (`str` or `os.PathLike`): the folder as it is on the Hub.
        out_dir (`str` or `os.PathLike`): the folder to make; it must not exist yet, or be empty.
        vocab (`str` or `os.PathLike`, *optional*): folder with the tokenizer's files; `folder` itself without it. If
            they are not there, the model alone is written.
        dtype (`str` or `torch.dtype`, *optional*): `float32`, `float16` or `bfloat16`; the weights' own without it.

    Returns:
        `Path`: the folder.

    Raises:
        `FileNotFoundError`: if the folder, its `config.json` or its weights do not exist.
        `FileExistsError`: if `out_dir` is a file or holds something.
        `ValueError`: if the weights cannot be read, or are none of an OFA model.
        `OSError`: if the disk is full or cannot be written to.
    """
    check_target(out_dir)
    torch_dtype = resolve_dtype(dtype)
    folder = Path(folder)
    fields = read_json(folder / "config.json")
    state = read_weights(folder)
    config = infer_config(state, fields)
    processor = load_processor(find_vocabulary(folder) if vocab is None else vocab, config)
    return write_folder(out_dir, config, to_native(state, config), torch_dtype, processor)
