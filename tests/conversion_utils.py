"""Checkpoints as the official code, the Hub's `OFA-Sys/*` folders, mmpretrain and ModelScope hold them, made anew."""

import importlib.util
import json
import zlib
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import torch


GOLDEN = Path(__file__).parent / "golden"
INTEGERS = ("num_batches_tracked", "token_rp_bucket", "image_rp_bucket", "image_position_idx")


@cache
def _recorded(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def official_names() -> list[str]:
    """Every recorded model: `mini`, `mini_adapter`, …, `ofa_huge`."""
    return sorted(_recorded("keys_official.json"))


@cache
def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Official tensor names of a recorded model with their shapes."""
    entry = _recorded("keys_official.json")[name]
    shapes = dict(official_shapes(entry["like"])) if "like" in entry else {}
    for key in entry.get("without", ()):
        del shapes[key]
    shapes.update({key: tuple(shape) for key, shape in entry["tensors"].items()})
    return shapes


def official_args(name: str) -> dict[str, Any]:
    """The official training arguments of a recorded model, as far as they concern the model and its processor."""
    entry = _recorded("keys_official.json")[name]
    return {**(official_args(entry["like"]) if "like" in entry else {}), **entry["args"]}


def official_num_params(name: str) -> int:
    """Number of parameters that the official code counted, tied ones once."""
    return _recorded("keys_official.json")[name]["num_params"]


@cache
def detweights() -> Any:
    """The recording tool that computes each weight from its name and shape."""
    spec = importlib.util.spec_from_file_location("detweights", GOLDEN / "detweights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image_position_idx(code_image_size: int, entries: int = 1 + 769) -> torch.Tensor:
    """The decoder's table of code positions: 0, the grid's places, and 1024 for the rest."""
    window = code_image_size // 8
    grid = torch.arange(window)[None] + 42 * torch.arange(window)[:, None] + 1
    rest = torch.full((entries - 1,), 1024)
    return torch.cat([torch.zeros(1, dtype=torch.long), grid.flatten(), rest])


def official_state(name: str, device: str = "cpu", exact: bool = True) -> dict[str, torch.Tensor]:
    """
    The state dict of a recorded model by official names.

    Args:
        name: one of [`official_names`].
        device: `"meta"` gives tensors without data, for the largest sizes.
        exact: the weights that the golden outputs were recorded with; else quick random ones, another for each name.
    """
    args = official_args(name)
    state: dict[str, torch.Tensor] = {}
    for key, shape in official_shapes(name).items():
        last = key.rpartition(".")[2]
        if last == "image_position_idx":
            state[key] = image_position_idx(args["code_image_size"])
            assert tuple(state[key].shape) == shape
        elif last in INTEGERS:
            state[key] = torch.zeros((), dtype=torch.long).expand(shape)
        elif last == "version":
            state[key] = torch.full(shape, 3.0)
        elif device == "meta":
            state[key] = torch.empty(shape, device="meta")
        elif key in detweights().TIED and detweights().TIED[key] in state:
            state[key] = state[detweights().TIED[key]]
        elif exact:
            state[key] = torch.from_numpy(detweights().det_tensor(key, shape))
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            state[key] = torch.randn(shape, generator=generator) * 0.05
    return state


def write_official(
    path: Path, state: dict[str, torch.Tensor], args: dict[str, Any] | None, style: str = "args"
) -> Path:
    """
    Writes a checkpoint as the official trainer does: with a namespace in `args`, or with one in `cfg`, or (`bare`) the
    state dict alone.
    """
    if style == "bare":
        torch.save(state, path)
        return path
    checkpoint: dict[str, Any] = {
        "args": None,
        "cfg": None,
        "model": state,
        "criterion": None,
        "optimizer_history": [{"criterion_name": "X", "lr_scheduler_state": {}, "num_updates": 7}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": 1.5, "metrics": {}},
        "last_optimizer_state": {"state": {}, "param_groups": []},
    }
    if style == "args":
        checkpoint["args"] = Namespace(**args)
    elif style == "cfg":
        task = {key: args[key] for key in ("patch_image_size", "imagenet_default_mean_and_std")}
        model = Namespace(**{key: value for key, value in args.items() if key not in task})
        checkpoint["cfg"] = {"_name": None, "common": {"seed": 1}, "model": model, "task": task}
    else:
        raise ValueError(style)
    torch.save(checkpoint, path)
    return path


def legacy_sizes() -> list[str]:
    """Sizes of the recorded `OFA-Sys/*` layout."""
    return list(_recorded("keys_hf_legacy.json"))


def legacy_config(size: str) -> dict[str, Any]:
    """The `config.json` of an `OFA-Sys/*` folder."""
    return dict(_recorded("keys_hf_legacy.json")[size]["config"])


def legacy_renames(size: str) -> dict[str, str]:
    """Official name → name in the `OFA-Sys/*` layout, for every tensor that the layout holds."""
    entry = _recorded("keys_hf_legacy.json")[size]
    names = [key for key in official_shapes(entry["official"]) if key not in entry["absent"]]
    return {key: entry["renamed"].get(key, key) for key in names}


def legacy_state(size: str, device: str = "cpu", exact: bool = True) -> dict[str, torch.Tensor]:
    """The state dict of an `OFA-Sys/*` folder, whose table of code positions has 1,025 entries."""
    official = official_state(_recorded("keys_hf_legacy.json")[size]["official"], device, exact)
    state = {ours: official[theirs] for theirs, ours in legacy_renames(size).items()}
    state["decoder.image_position_idx"] = image_position_idx(128, entries=769)
    return state


def write_legacy(folder: Path, size: str, state: dict[str, torch.Tensor] | None = None) -> Path:
    """Writes an `OFA-Sys/*` folder without its vocabulary."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(legacy_config(size)), encoding="utf-8")
    torch.save(legacy_state(size, exact=False) if state is None else state, folder / "pytorch_model.bin")
    return folder


def mmpretrain_renames(official: str = "ofa_base") -> dict[str, str]:
    """
    Official name → mmpretrain's name (with `model.` before it), for every tensor that mmpretrain holds.

    Recorded is base, but the names of the mini model are among its names.
    """
    entry = _recorded("keys_mmpretrain.json")
    names = [key for key in official_shapes(official) if key not in entry["absent"]]
    return {key: f"model.{entry['renamed'].get(key, key)}" for key in names}


def mmpretrain_state(official: str = "ofa_base", device: str = "cpu", exact: bool = True) -> dict[str, torch.Tensor]:
    """The state dict of an mmpretrain checkpoint, whose table of code positions has 1,025 entries."""
    state = official_state(official, device, exact)
    state = {theirs: state[ours] for ours, theirs in mmpretrain_renames(official).items()}
    entries = _recorded("keys_mmpretrain.json")["code_positions"]
    state["model.decoder.image_position_idx"] = image_position_idx(128, entries=entries - 256)
    return state


def write_modelscope(
    folder: Path,
    settings: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    state: dict[str, torch.Tensor] | None = None,
    task: str = "image-captioning",
    **top: Any,
) -> Path:
    """
    Writes a folder of ModelScope's mini model without its vocabulary.

    Args:
        folder: the folder to make.
        settings: of the section `model` of `configuration.json`, beside `"type": "ofa"`.
        config: fields of `config.json`, in place of the layout's own.
        state: the weights; quick random ones without it.
        task: ModelScope's task.
        top: entries of `configuration.json` itself.
    """
    write_legacy(folder, "mini", state)
    (folder / "config.json").write_text(json.dumps({**legacy_config("mini"), **(config or {})}), encoding="utf-8")
    content = {"framework": "pytorch", "task": task, "model": {"type": "ofa", **(settings or {})}, **top}
    (folder / "configuration.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


class Malicious:
    """Pickles to a call of a function, as an attacker would write it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call
