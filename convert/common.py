"""What every converter needs: reading pickled files as mere data, and writing a checked folder in one step."""

import errno
import logging
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAForSequenceClassification, OFAPreTrainedModel


logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Inert:
    """
    Stands in for a class that a pickle names: keeps what it is given as attributes, and does nothing else. No class
    that is named is imported, so none of its code can run.
    """

    def __init__(self, *args: Any):
        if args:
            self.arguments = args

    def __setstate__(self, state: Any):
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def _new_dict(*_: Any) -> dict:
    """Stands in for `defaultdict`: a pickle then sets the items."""
    return {}


# Names that checkpoints carry beside tensors. Each name of the list, and (in zip files, whose names can be
# listed beforehand) each name in one of the packages, becomes an `Inert`; torch refuses what it does not allow itself.
INERT_PACKAGES = ("fairseq.", "omegaconf.", "mmengine.", "numpy.", "typing.", "pathlib.", "datetime.")
INERT_NAMES = (
    "_operator.getitem",  # a subscripted type: `typing.Dict[str, int]`
    "argparse.Namespace",
    "builtins.bool",
    "builtins.bytes",
    "builtins.dict",
    "builtins.float",
    "builtins.getattr",  # a method by its name, in mmengine's logs: nothing is looked up, an `Inert` keeps the names
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.str",
    "builtins.tuple",
    "collections.deque",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# How torch says that it came upon something that is not allowed: a name, a call, or an object to be made or filled.
REFUSED = re.compile(r"GLOBAL (\S+)|unrecognized function (.+?)(?: which|$)|`add_safe_globals`,? but got (.+)", re.M)


def load_torch_file(path: str | os.PathLike) -> Any:
    """
    Reads a file that `torch.save` wrote, as data: tensors, plain values, and [`Inert`] objects for a fixed list of
    harmless classes. Tensors of a zip file are mapped from disk, so parts that are not used are not read.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        What was saved.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `OSError`: if it cannot be opened.
        `ValueError`: if it is truncated or no checkpoint, or names anything that is not on the list.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "No such checkpoint", str(path))
    if not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "A checkpoint file is expected, this is none", str(path))
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        names = set(INERT_NAMES)
        if zipped:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            names |= {name for name in found if name.startswith(INERT_PACKAGES)}
        allowed: list[Any] = [(Inert, name) for name in sorted(names)]
        allowed.append((_new_dict, "collections.defaultdict"))
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        refused = REFUSED.search(str(error))
        if refused is None:
            raise ValueError(_unreadable(path, error)) from error
        name = next(group for group in refused.groups() if group)
        raise ValueError(
            f"{path} was not read: its pickle asks for {name}, which is not among the harmless types that a "
            "checkpoint needs. Nothing was executed. If you trust the file, load it where it was made and save its "
            'tensors alone (`torch.save({"model": …, "args": …}, file)`).'
        ) from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "weights_only" in reason or not isinstance(error, RuntimeError | SafetensorError | pickle.UnpicklingError):
        # torch's advice to execute the file after all, or what its reader stumbled on, such as `KeyError: 101`
        reason = "its pickle breaks off or is none"
    return (
        f"{path} ({path.stat().st_size:,} bytes) is not a readable torch checkpoint: it is truncated or another kind "
        f"of file ({reason}). Fetch it again and compare its size or checksum with the source's."
    )


def as_plain(value: Any, depth: int = 0) -> Any:
    """Turns namespaces and omegaconf containers, read as [`Inert`], into dictionaries, lists and plain values."""
    if depth > 50:
        raise ValueError("The training arguments in the checkpoint contain themselves.")
    depth += 1
    if isinstance(value, Inert):
        state = vars(value)
        if "_content" in state:  # DictConfig, ListConfig
            return as_plain(state["_content"], depth)
        if "_val" in state:  # AnyNode, StringNode, …
            return as_plain(state["_val"], depth)
        if set(state) == {"arguments"}:  # an enumeration's member, a path: what it was made from
            return as_plain(state["arguments"][0], depth) if len(state["arguments"]) == 1 else None
        return {key: as_plain(item, depth) for key, item in state.items()}
    if isinstance(value, Mapping):
        return {key: as_plain(item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item, depth) for item in value]
    return value


def only_tensors(state_dict: Any, where: str) -> dict[str, torch.Tensor]:
    """Checks that a mapping holds tensors by name, and gives them without their gradients."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"{where} holds no state dict but a {type(state_dict).__name__}; names with tensors are needed."
        )
    wrong = [
        key for key, value in state_dict.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if wrong:
        raise ValueError(
            f"{where} is no state dict of a model: {', '.join(map(repr, wrong[:3]))} "
            f"{'is' if len(wrong) == 1 else 'are'} not a name with a tensor."
        )
    return {key: value.detach() for key, value in state_dict.items()}


def state_dict_of(checkpoint: Any, where: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name: those under `state_dict`, where it has that, or else all that it holds."""
    if isinstance(checkpoint, Mapping) and "state_dict" in checkpoint:
        return only_tensors(checkpoint["state_dict"], f"{where}, state_dict")
    return only_tensors(checkpoint, where)


def check_supported(settings: Mapping[str, Any], supported: Mapping[str, tuple[Any, str]]) -> None:
    """
    Refuses settings that our model has not.

    Args:
        settings (`Mapping[str, Any]`): what a checkpoint was trained with.
        supported (`Mapping[str, tuple[Any, str]]`): by name the one value that will do, and what our model does
            instead. A setting that is absent or None will do too.

    Raises:
        `ValueError`: naming the first setting with another value.
    """
    for name, (value, meaning) in supported.items():
        if settings.get(name, value) not in (value, None):
            raise ValueError(f"The checkpoint was trained with {name} {settings[name]!r}, but in our model {meaning}.")


def make_config(fields: Mapping[str, Any]) -> OFAConfig:
    """Makes a configuration; raises a `ValueError` that says which field is wrong."""
    try:
        return OFAConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"No OFA model has such a configuration: {error.__cause__ or error}") from error


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Gives the torch dtype of one of `float32`, `float16`, `bfloat16`; None stays None."""
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    return DTYPES[dtype]  # type: ignore[index]


def check_target(out_dir: str | os.PathLike) -> Path:
    """Gives the output path if nothing is there, or an empty folder; raises `FileExistsError` otherwise."""
    out = Path(os.path.abspath(out_dir))
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise FileExistsError(errno.EEXIST, "The output must be a new folder, but this is a file or a link", str(out))
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(errno.EEXIST, "The output folder is not empty; name a new one or empty it", str(out))
    parent = next(path for path in out.parents if path.exists())
    if not parent.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "The output's parent must be a folder, but this is a file", str(parent)
        )
    return out


def model_class_for(tensors: Mapping[str, torch.Tensor]) -> type[OFAPreTrainedModel]:
    """The class whose weights these are: the classifier where there is a classification head."""
    has_head = any(key.startswith("classification_head.") for key in tensors)
    return OFAForSequenceClassification if has_head else OFAForConditionalGeneration


def check_shapes(model: OFAPreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Compares tensors with the weights that a model (on the meta device) needs.

    Raises:
        `ValueError`: naming every tensor that is missing, unexpected, or of another shape.
    """
    tied = set(model.all_tied_weights_keys)
    expected = {key: list(value.shape) for key, value in model.state_dict().items() if key not in tied}
    given = {key: list(value.shape) for key, value in tensors.items()}
    problems = [f"missing {key} {shape}" for key, shape in expected.items() if key not in given]
    problems += [f"unexpected {key} {shape}" for key, shape in given.items() if key not in expected]
    problems += [
        f"{key} is {given[key]}, but the configuration asks for {shape}"
        for key, shape in expected.items()
        if key in given and given[key] != shape
    ]
    if problems:
        more = f" … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"The tensors do not fit an OFA model: {'; '.join(problems[:8])}{more}.")


def cast(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    """
    Brings the floating point tensors to one dtype, and every tensor to its own contiguous memory.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): what to write.
        dtype (`torch.dtype`, *optional*): without it the tensors' own, or float32 if they differ.

    Returns:
        `tuple[dict[str, torch.Tensor], torch.dtype]`: the tensors, and the dtype of the floating point ones.

    Raises:
        `ValueError`: if a finite value is too large for `dtype`.
    """
    if dtype is None:
        floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        dtype = next(iter(floats)) if len(floats) == 1 else torch.float32
    result: dict[str, torch.Tensor] = {}
    seen = set()
    for key, tensor in transformers_logging.tqdm(tensors.items(), desc="Converting", unit="tensor"):
        if tensor.is_floating_point() and tensor.dtype != dtype:
            small = tensor.to(dtype)
            if not torch.equal(torch.isfinite(small), torch.isfinite(tensor)):
                raise ValueError(
                    f"{key} holds a value of {tensor.abs().max().item():.4g}, too large for {dtype}. "
                    "Choose --dtype float32 or bfloat16."
                )
            tensor = small
        tensor = tensor.contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        result[key] = tensor
    return result, dtype


def write_folder(
    out_dir: str | os.PathLike,
    config: OFAConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    processor: Any = None,
) -> Path:
    """
    Writes a folder that `from_pretrained` loads, and loads it. The folder appears complete and checked, or not at all:
    it is made under another name beside `out_dir` and renamed last.

    Args:
        out_dir (`str` or `os.PathLike`): a folder that does not exist yet, or is empty.
        config ([`OFAConfig`]): the model's configuration.
        tensors (`Mapping[str, torch.Tensor]`): weights by the names of the model class.
        dtype (`torch.dtype`, *optional*): what to store floating point weights in; as they are without it.
        processor ([`OFAProcessor`], *optional*): saved beside the model.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: if `out_dir` is a file or holds something.
        `ValueError`: if the tensors are not those of the model that `config` describes.
        `OSError`: if the disk is full or cannot be written to.
    """
    out = check_target(out_dir)
    model_class = model_class_for(tensors)
    with torch.device("meta"):
        empty = model_class(config)
    check_shapes(empty, tensors)
    tensors, dtype = cast(tensors, dtype)
    config.architectures = [model_class.__name__]
    config.dtype = dtype

    parent = next(folder for folder in out.parents if folder.is_dir())
    needed = sum(tensor.nbytes for tensor in tensors.values()) + 2**20
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, but only {free:,} are free at", str(out))
    temporary = parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir()
        config.save_pretrained(temporary)
        if empty.can_generate():
            empty.generation_config.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)
        try:
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(
                errno.EIO,
                f"The weights ({needed:,} bytes) could not be written ({error}); nothing was left at",
                str(out),
            ) from error
        verify(temporary, model_class, tensors, dtype)
        if processor is not None:
            type(processor).from_pretrained(temporary)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out


def verify(
    folder: Path, model_class: type[OFAPreTrainedModel], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Loads a folder and checks that nothing is missing, nothing is left over, and each weight is what was written."""
    model, info = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    trouble = {key: value for key, value in info.items() if value}
    if trouble:
        raise ValueError(f"The written model does not load cleanly: {trouble}. Nothing was kept.")
    loaded = model.state_dict()
    for key, tensor in transformers_logging.tqdm(tensors.items(), desc="Verifying", unit="tensor"):
        if not torch.allclose(loaded[key], tensor, rtol=0, atol=0, equal_nan=True):
            raise ValueError(f"The written {key} is not what was read from the checkpoint. Nothing was kept.")


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file; raises `ValueError` if it is truncated or another kind of file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(_unreadable(path, error).replace("torch checkpoint", "safetensors file")) from error
