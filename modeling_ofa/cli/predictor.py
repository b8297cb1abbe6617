"""One loaded checkpoint that answers one task about one picture at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CommandError, first_line


if TYPE_CHECKING:
    import torch
    from PIL import Image


DTYPES = ("auto", "float32", "float16", "bfloat16")


def check_model(model: str) -> None:
    """Says, before anything is loaded or downloaded, that `model` is no OFA checkpoint.

    Raises:
        CommandError: if `model` is a file, a folder without an OFA's `config.json`, a path to nothing, or the Hub's id
            of something else or of nothing.
    """
    from transformers import PreTrainedConfig

    path = Path(model)
    if path.is_file():
        raise CommandError(
            f"{model} is a file; a checkpoint is a folder. An official .pt file becomes one by: "
            f"python -m convert fairseq {model} FOLDER"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CommandError(f"the folder {model} has no config.json, so it is no checkpoint")
    elif path.is_absolute() or model.startswith(".") or model.count("/") > 1:
        raise CommandError(f"no such folder: {model} (seen from {Path.cwd()})")
    try:
        settings, _ = PreTrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        where = "" if path.is_dir() else f"there is no folder {model} here, and as an id on the Hub: "
        raise CommandError(f"{where}{first_line(error)}") from error
    if settings.get("model_type") != "ofa":
        raise CommandError(f"{model} holds a checkpoint of model type {settings.get('model_type')!r}, not 'ofa'")


def choose_device(name: str | None) -> torch.device:
    """Gives the device of that name, or without one the best that this machine has.

    Raises:
        CommandError: if the name means nothing to torch or the machine lacks the device.
    """
    import torch

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


class Predictor:
    """
    A model and its processor, ready to answer.

    Args:
        model (`str`): folder of a checkpoint, or its id on the Hub.
        device (`str`, *optional*): torch's name of a device; without it the machine's accelerator or else its CPU.
        dtype (`str`, defaults to `"auto"`):
            One of `DTYPES`; `"auto"` is float32 on a CPU, where half precision is slow, and elsewhere the type that
            the checkpoint was saved in.

    Raises:
        CommandError: if the checkpoint cannot be loaded or the device cannot be used.
    """

    def __init__(self, model: str, device: str | None = None, dtype: str = "auto"):
        import huggingface_hub
        import transformers

        import modeling_ofa

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        huggingface_hub.utils.enable_progress_bars()  # loading takes seconds, but a download minutes
        check_model(model)
        self.device = choose_device(device)
        self.dtype = "float32" if dtype == "auto" and self.device.type == "cpu" else dtype
        try:
            self.processor = modeling_ofa.OFAProcessor.from_pretrained(model)
            self.model = modeling_ofa.OFAForConditionalGeneration.from_pretrained(model, dtype=self.dtype)
            self.model = self.model.to(self.device).eval()
        except Exception as error:  # whatever is wrong in a user's folder, or on the way to the Hub
            raise CommandError(f"cannot load the checkpoint {model}: {first_line(error)}") from error

    def answer(self, task: str, picture: Image.Image, text: str | None = None) -> dict[str, Any]:
        """
        Answers one task about one picture.

        Args:
            task (`str`): a task's name, such as `"caption"`.
            picture (`PIL.Image.Image`): the picture.
            text (`str`, *optional*): the question or phrase that the task takes.

        Returns:
            `dict[str, Any]`: what the processor's `post_process` gives for one row: a `text`, or `boxes` in pixels.

        Raises:
            CommandError: if the processor refuses the input or the device runs out of memory.
        """
        import torch

        given = {} if text is None else {"text": text}
        try:
            inputs = self.processor(task=task, images=picture, return_tensors="pt", **given)
        except (ValueError, TypeError) as error:
            raise CommandError(first_line(error)) from error
        inputs = inputs.to(self.device, self.model.dtype)
        try:
            ids = self.model.generate(**inputs, **self.processor.generation_kwargs(task))
        except torch.OutOfMemoryError as error:
            raise CommandError(f"{self.device} has too little memory free; try --device cpu") from error
        return self.processor.post_process(ids, task=task, image_sizes=[(picture.height, picture.width)])[0]
