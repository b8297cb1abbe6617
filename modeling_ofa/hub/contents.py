"""What of a folder goes to the Hub: models with the code that they need there, adapters, data sets."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

from ..configuration_ofa import OFAConfig
from ..modeling_ofa import OFAForConditionalGeneration, OFAForSequenceClassification, OFAModel
from ..pipelines_ofa import custom_pipelines
from ..processing_ofa import OFAProcessor
from ..remote_code_ofa import add_code
from .card import Card, data_card


KINDS = ("model", "adapter", "dataset")
CARD = "README.md"

_WEIGHTS = "model.safetensors"
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MODELS = {one.__name__: one for one in (OFAForConditionalGeneration, OFAForSequenceClassification, OFAModel)}
# By these the cards are known that a Trainer, or `push_to_hub`, has written for somebody to complete.
_DRAFTS = ("generated automatically according to the information the Trainer", "[More Information Needed]")


@dataclass(frozen=True)
class Contents:
    """
    What goes to a repository.

    Args:
        repo_id (`str`): The repository.
        kind (`str`): One of `KINDS`.
        files (`dict[str, Path]`): By the name of each file there, the file here.
    """

    repo_id: str
    kind: str
    files: dict[str, Path]

    @property
    def repo_type(self) -> str:
        """`str`: What the Hub calls the kind: adapters are models there."""
        return "dataset" if self.kind == "dataset" else "model"

    @property
    def size(self) -> int:
        """`int`: Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())


@contextmanager
def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    kind: str | None = None,
    card: Card | None = None,
    include: Sequence[str] = (),
) -> Iterator[Contents]:
    """
    Collects what of a folder goes to the Hub. The folder itself is not changed; what is made for the Hub lies in a
    temporary one while the context lasts.

    Of a model go its weights, configuration, generation settings and processor, and the code that the Auto classes
    load with `trust_remote_code=True`; of an adapter its weights, its configuration and the processor with its code;
    of a data set all files that are not hidden. `README.md` goes as it is, unless it is a draft of a tool: then, or
    without one, a card is written. Licences go along. Checkpoints of the training, its state and its logs stay.

    Args:
        folder (`str` or `Path`): The folder of a model, an adapter or a data set.
        repo_id (`str`): The repository, `NAME` or `OWNER/NAME`.
        kind (`str`, *optional*): One of `KINDS`. A model and an adapter are told by their files, a data set is not.
        card ([`Card`], *optional*): What a card shall say that the folder does not tell.
        include (`Sequence[str]`, *optional*): Patterns of more files that go, such as `"pictures/*.png"`.

    Raises:
        ValueError: Something is missing or does not fit, or would be of no use to others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    kind = _kind(folder) if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is nothing that can be published; it is one of {', '.join(KINDS)}.")
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository, which is NAME or OWNER/NAME: {error}") from error
    card = card or Card()
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        files: dict[str, Path] = {}
        processor: OFAProcessor | None
        if kind == "model":
            model, processor = _stage_model(folder, stage)
            files |= _weights(folder)
            text = card.completed(folder).of_model(repo_id, model, processor)
        elif kind == "adapter":
            base, processor = _stage_adapter(folder, stage, card.base_model)
            files[_ADAPTER_WEIGHTS] = folder / _ADAPTER_WEIGHTS
            text = card.completed(folder, base).of_adapter(repo_id, processor)
        else:
            files |= _data_files(folder)
            text = data_card(repo_id, folder, files, card)
        if not _has_card(folder):
            (stage / CARD).write_text(text, encoding="utf-8")
        for pattern in (CARD, "LICENSE*", "NOTICE*", *include):
            found = [file for file in sorted(folder.glob(pattern)) if file.is_file()]
            if not found and pattern in include:
                raise ValueError(f"{folder} has no file {pattern}.")
            files |= {file.relative_to(folder).as_posix(): file for file in found}
        files |= {file.name: file for file in sorted(stage.iterdir())}
        yield Contents(repo_id, kind, dict(sorted(files.items())))


def _kind(folder: Path) -> str:
    if (folder / _ADAPTER).is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    raise ValueError(
        f"{folder} has no config.json, so it is no model, and no {_ADAPTER}, so it is no adapter. If it is a data "
        "set, say so: --type dataset, or kind='dataset'."
    )


def _has_card(folder: Path) -> bool:
    """Whether there is a card that somebody has written."""
    card = folder / CARD
    return card.is_file() and not any(draft in card.read_text(encoding="utf-8") for draft in _DRAFTS)


def _weights(folder: Path) -> dict[str, Path]:
    """The files of the weights, one or several with an index."""
    index = folder / f"{_WEIGHTS}.index.json"
    names = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file() and index.is_file():
        names = [index.name, *sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} has no {missing[0]}. Weights in another form, such as pytorch_model.bin, become safetensors "
            f"by: python -m convert huggingface {folder} OUT"
        )
    return {name: folder / name for name in names}


def _stage_model(folder: Path, stage: Path) -> tuple[Any, OFAProcessor]:
    """Writes all of a model but its weights, and gives the model, without numbers in it, and its processor."""
    _weights(folder)
    config = _load(OFAConfig, folder, "configuration")
    cls = _MODELS.get(next(iter(config.architectures or []), ""), OFAForConditionalGeneration)
    model, found = _load(cls, folder, "model", device_map="meta", output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"The weights in {folder} lack {len(missing)} of the model's, such as {missing[0]}: they are of another."
        )
    config.save_pretrained(stage)
    if model.can_generate():
        model.generation_config.save_pretrained(stage)
    processor = _stage_processor(folder, stage)
    if len(processor.tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {len(processor.tokenizer):,} tokens, but its model has "
            f"{config.vocab_size:,}: they are of different models."
        )
    return model, processor


def _stage_adapter(folder: Path, stage: Path, base: str | None) -> tuple[str, OFAProcessor | None]:
    """Writes all of an adapter but its weights, and gives the name of its model, and its processor if it has one."""
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {_ADAPTER_WEIGHTS}; `save_pretrained` of peft writes it.")
    settings = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    base = base or settings.get("base_model_name_or_path") or ""
    if Path(base).exists() or Path(base).is_absolute() or base.count("/") > 1 or not base:
        raise ValueError(
            f"The adapter in {folder} is for the model {base or '(unnamed)'}, which is no place on the Hub, so that "
            "nobody else could load it: publish the model too and name it, --base-model OWNER/NAME."
        )
    settings["base_model_name_or_path"] = base
    _write_json(stage / _ADAPTER, settings)
    has_processor = (folder / "processor_config.json").is_file()
    return base, _stage_processor(folder, stage) if has_processor else None


def _stage_processor(folder: Path, stage: Path) -> OFAProcessor:
    """Writes the processor, and the code of all."""
    processor = _load(OFAProcessor, folder, "processor")
    processor.save_pretrained(stage)
    add_code(stage, custom_pipelines())
    return processor


def _data_files(folder: Path) -> dict[str, Path]:
    """All files of a data set, but for the manifest of scripts/prepare_data.py, which has paths of this machine."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        raise ValueError(
            f"{folder} is of `save_to_disk`, which the Hub cannot show or stream. This publishes it, pictures and "
            f"all: datasets.load_from_disk({str(folder)!r}).push_to_hub(REPO)"
        )
    files = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and not any(part.startswith((".", "__")) for part in path.parts):
            files[path.as_posix()] = file
    if (manifest := files.pop("manifest.json", None)) is not None:
        splits = json.loads(manifest.read_text(encoding="utf-8"))
        if unfinished := [name for name, split in splits.items() if not split["complete"]]:
            raise ValueError(f"{folder} is not finished: give the command for its split {unfinished[0]!r} again.")
    if not files:
        raise ValueError(f"{folder} has no files.")
    return files


def _load(cls: Any, folder: Path, what: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(folder, **options)
    except Exception as error:  # whatever is wrong in a user's folder
        raise ValueError(f"The {what} in {folder} cannot be loaded: {str(error).strip()}") from error


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["CARD", "KINDS", "Contents", "prepare"]
