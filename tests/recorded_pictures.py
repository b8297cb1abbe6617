"""Reads the pictures that went into the official code's data sets, and compares with those that came out."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch


def load(name: str) -> Any:
    """A recording by its file name."""
    return json.loads((Path(__file__).parent / "golden" / name).read_text())


def decode(text: str) -> PIL.Image.Image:
    """A picture out of a TSV file."""
    return PIL.Image.open(io.BytesIO(base64.urlsafe_b64decode(text))).convert("RGB")


def to_pixels(picture: PIL.Image.Image) -> torch.Tensor:
    """A picture as the model sees it, of shape `(3, height, width)` in [-1, 1]."""
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def assert_recorded(picture: PIL.Image.Image | torch.Tensor, recorded: dict) -> None:
    """
    Compares normalised pixels with a grid of 8 by 8 of them, written with six decimals, and with the means and the
    standard deviation of all. One grey level is 8e-3 in the grid; a dozen of them anywhere in a picture of 384 by 384
    move its mean by more than the tolerance, which is that of single precision.
    """
    pixels = to_pixels(picture) if isinstance(picture, PIL.Image.Image) else picture
    assert list(pixels.shape) == recorded["shape"]
    grid = pixels[:, recorded["grid_y"]][:, :, recorded["grid_x"]]
    torch.testing.assert_close(grid, torch.tensor(recorded["grid"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels.mean((1, 2)), torch.tensor(recorded["channel_mean"]), rtol=0, atol=2e-7)
    torch.testing.assert_close(pixels.mean(), torch.tensor(recorded["mean"]), rtol=0, atol=2e-7)
    torch.testing.assert_close(pixels.std(), torch.tensor(recorded["std"]), rtol=0, atol=2e-7)
