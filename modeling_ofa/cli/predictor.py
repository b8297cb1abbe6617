"""A checkpoint that answers rows of data: found, loaded on a device, and asked, with errors of one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
import yaml

from ..evaluation.predictor import Predictor
from ..hub.card import Card
from ..modeling_ofa import OFAForConditionalGeneration
from ..processing_ofa import OFAProcessor
from ..tasks_ofa import TASKS
from .errors import CommandError, first_line


# The small checkpoint that comes with the package.
EMBEDDED = Path(__file__).parent.parent / "assets" / "checkpoint"
_ANY_LENGTH = 1_000_000
DTYPES = ("auto", "float32", "float16", "bfloat16")


def default_checkpoint() -> str:
    """Gives the folder of the checkpoint that comes with the package.

    Raises:
        CommandError: if this installation lacks it.
    """
    if not (EMBEDDED / "config.json").is_file():
        raise CommandError(
            f"the package's own checkpoint is missing from {EMBEDDED}; install it again or give --model"
        )
    return str(EMBEDDED)


def check_model(model: str) -> None:
    """Says, before anything is loaded or downloaded, that `model` is no OFA checkpoint.

    Raises:
        CommandError: if `model` is a file, a folder without an OFA's `config.json`, a path to nothing, or the Hub's id
            of something else or of nothing.
    """
    path = Path(model)
    if path.is_file():
        raise CommandError(
            f"{model} is a file; a checkpoint is a folder. An official .pt file becomes one by: "
            f"python -m convert fairseq {model} FOLDER"
        )
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise CommandError(f"{model} is an adapter of peft: merge it into its model first, as docs/lora.md does")
        if not (path / "config.json").is_file():
            raise CommandError(f"the folder {model} has no config.json, so it is no checkpoint")
    elif path.is_absolute() or model.startswith(".") or model.count("/") > 1:
        raise CommandError(f"no such folder: {model} (seen from {Path.cwd()})")
    try:
        settings, _ = transformers.PreTrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        where = "" if path.is_dir() else f"there is no folder {model} here, and as an id on the Hub: "
        raise CommandError(f"{where}{first_line(error)}") from error
    if settings.get("model_type") != "ofa":
        raise CommandError(f"{model} holds a checkpoint of model type {settings.get('model_type')!r}, not 'ofa'")


def known_tasks(checkpoint: str) -> list[str]:
    """Gives the tasks that a checkpoint is for, as far as its folder or its card tells; none if nothing does.

    Args:
        checkpoint: folder of a checkpoint, or its id on the Hub.
    """
    named: set[str] = set()
    folder = Path(checkpoint)
    try:
        if folder.is_dir():
            named.update(Card().completed(folder).tasks)
        card = huggingface_hub.ModelCard.load(folder / "README.md" if folder.is_dir() else checkpoint)
        named.update(card.data.tags or ())
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one that does not tell
        pass
    return [name for name in TASKS if name in named]


def choose_device(name: str | None) -> torch.device:
    """Gives the device of that name, or without one the best that this machine has.

    Raises:
        CommandError: if the name means nothing to torch or the machine lacks the device.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(
            f"--device {name} cannot be used here ({first_line(error)}); cpu always can, cuda:0 is the first GPU"
        ) from error
    if device.type == "meta":
        raise CommandError("--device meta holds no numbers, so it cannot answer; cpu always can")
    return device


@contextmanager
def refusals(device: torch.device) -> Iterator[None]:
    """Turns what processor and model refuse into a `CommandError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CommandError(f"{device} has too little memory free; try --device cpu") from error
    except (OSError, TypeError, ValueError) as error:
        raise CommandError(first_line(error)) from error


class Answerer:
    """
    A checkpoint that answers one row after the other. Its model is loaded once its processor has taken the first row,
    so that what is wrong with that row shows at once.

    Args:
        checkpoint (`str`): folder of a checkpoint, or its id on the Hub.
        device (`str`, *optional*): torch's name of a device; without it the machine's accelerator or else its CPU.
        dtype (`str`, defaults to `"auto"`):
            One of `DTYPES`; `"auto"` is float32 on a CPU, where half precision is slow, and elsewhere the type that
            the checkpoint was saved in.
        answers (`Sequence[str]`, *optional*): the closed list of answers of tasks that have none of their own.
        with_scores (`bool`, defaults to `False`): whether answers have scores.

    Raises:
        CommandError: if the checkpoint's processor cannot be loaded or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        dtype: str = "auto",
        answers: Sequence[str] | None = None,
        with_scores: bool = False,
    ):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        huggingface_hub.utils.enable_progress_bars()  # loading takes seconds, but a download minutes
        check_model(checkpoint)
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        self.dtype = "float32" if dtype == "auto" and self.device.type == "cpu" else dtype
        self.answers = answers
        self.with_scores = with_scores
        with self._loading():
            self.processor = OFAProcessor.from_pretrained(checkpoint)
        self._predictor: Predictor | None = None

    def answer(self, row: Mapping[str, Any], top_k: int = 1) -> dict[str, Any]:
        """
        Answers one row.

        Args:
            row (`Mapping[str, Any]`): `task`, and of `image`, `text`, `text_pair` and `objects` what the task takes.
            top_k (`int`, defaults to 1): how many of the best answers of a closed list to give as `"ranking"`.

        Returns:
            `dict[str, Any]`: what the processor's `post_process` gives for one row.

        Raises:
            CommandError: if the model cannot be loaded, if it or the processor refuse the row, or if the device runs
                out of memory.
        """
        with refusals(self.device):
            if self._predictor is None:
                self.check(row)
                self.processor.generation_kwargs(row["task"], self.answers)
            return self.predictor([row], top_k)[0]

    def check(self, row: Mapping[str, Any]) -> None:
        """Lets the processor refuse a row, without the model.

        Raises:
            CommandError: if it does.
        """
        texts = {name: row[name] for name in ("text", "text_pair", "objects") if name in row}
        # Texts are cut to the words of the official recipe, as the predictor does; but where that is still more than
        # the model has positions for, it would cut the end of the instruction too, so here it is not cut further.
        with refusals(self.device):
            self.processor(row.get("image"), task=row["task"], truncation=True, max_length=_ANY_LENGTH, **texts)

    def choosing(self, answers: Sequence[str]) -> Answerer:
        """Gives another one with the same model, which is loaded now, and a closed list of its own.

        Raises:
            CommandError: if the model cannot be loaded.
        """
        other = copy(self)
        other.answers = answers
        other._predictor = Predictor(self.model, self.processor, answers=answers, with_scores=self.with_scores)
        return other

    @property
    def model(self) -> OFAForConditionalGeneration:
        """The model, loaded when it is first asked for."""
        return self.predictor.model

    @property
    def predictor(self) -> Predictor:
        """What answers, with the model, loaded when it is first asked for."""
        if self._predictor is None:
            with self._loading():
                model = OFAForConditionalGeneration.from_pretrained(self.checkpoint, dtype=self.dtype)
                model = model.to(self.device).eval()
            self._predictor = Predictor(model, self.processor, self.answers, with_scores=self.with_scores)
        return self._predictor

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever is wrong in a user's folder, or on the way to the Hub
            raise CommandError(f"cannot load the checkpoint {self.checkpoint}: {first_line(error)}") from error
