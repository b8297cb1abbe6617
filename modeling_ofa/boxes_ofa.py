"""Boxes as tokens: quantised on the way in, and back in pixels of the original picture on the way out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .rows_ofa import as_list


class BoxCodec(NamedTuple):
    """
    How boxes of one picture become `<bin_i>` tokens: pixels of the original are scaled to the picture as the model
    sees it, and counted in parts of `max_image_size`, 512 for all published checkpoints whatever their picture size.

    Args:
        size (`tuple[int, int]`): Height and width of the upright original picture.
        resized (`tuple[int, int]`): Height and width of the picture as the model sees it.
        max_image_size (`int`): The length that the last bin stands for, in pixels of the resized picture.
        bin_start_id, num_bins (`int`): Id of `<bin_0>` and number of bins.
    """

    size: Sequence[float]
    resized: tuple[int, int]
    max_image_size: int
    bin_start_id: int
    num_bins: int

    @property
    def ratios(self) -> list[float]:
        """`list[float]`: Pixels of the resized picture for each of the original, for x0, y0, x1, y1."""
        return [self.resized[1] / self.size[1], self.resized[0] / self.size[0]] * 2

    def encode(self, box: Any, clip: bool, unk_token_id: int) -> list[int]:
        """
        Quantises a box, in the single precision of the official code.

        Args:
            box (`list[float]`, any container of four numbers, or `str`):
                `[x0, y0, x1, y1]` in pixels of the original, or `"x0,y0,x1,y1"`.
            clip (`bool`):
                Whether what lies outside of the picture is cut off. The official code does not, and writes
                `unk_token_id` for a side that no bin stands for.
            unk_token_id (`int`): Id of `<unk>`.

        Raises:
            `ValueError`: if this is no box, or none that meets the picture.
        """
        height, width = self.size
        box = _four_numbers(box)
        x0, y0, x1, y1 = box
        if x1 < x0 or y1 < y0 or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise ValueError(
                f"The box {box} is not a region of its picture of {width} × {height} pixels; [x0, y0, x1, y1] are the "
                "left, upper, right and lower side."
            )
        sides = np.array(box, dtype=np.float32)
        if clip:
            sides = np.clip(sides, 0, np.array([width, height, width, height], dtype=np.float32))
        resized = sides * np.array(self.ratios, dtype=np.float32)
        last = self.num_bins - 1
        bins = [int(one) for one in np.rint(resized / np.float32(self.max_image_size) * np.float32(last))]
        if clip:
            bins = [min(one, last) for one in bins]
        return [self.bin_start_id + one if 0 <= one <= last else unk_token_id for one in bins]

    def decode(self, bins: Sequence[int]) -> list[float]:
        """Turns the ids of four bins into `[x0, y0, x1, y1]` in pixels of the original."""
        return [
            (one - self.bin_start_id) / (self.num_bins - 1) * self.max_image_size / ratio
            for one, ratio in zip(bins, self.ratios, strict=True)
        ]

    def parse(self, ids: Sequence[int]) -> Iterator[tuple[list[float], slice, slice]]:
        """
        Finds the boxes in what the model wrote: four bins, and what follows them up to the next bin. Incomplete boxes
        are left out.

        Args:
            ids (`list[int]`): Ids without special tokens.

        Yields:
            `tuple[list[float], slice, slice]`: a box in pixels of the original, and where in `ids` its bins and its
            label stand.
        """
        is_bin = [0 <= one - self.bin_start_id < self.num_bins for one in ids]
        start = 0
        while start < len(ids):
            after = start
            while after < len(ids) and is_bin[after]:
                after += 1
            end = after
            while end < len(ids) and not is_bin[end]:
                end += 1
            if after - start >= 4:
                yield self.decode(ids[start : start + 4]), slice(start, start + 4), slice(after, end)
            start = end


def _four_numbers(box: Any) -> list[float]:
    """Gives the sides of a box in any container, or of `"x0,y0,x1,y1"`."""
    try:
        if isinstance(box, str):
            sides = [float(side) for side in box.split(",")]
        else:
            sides = [as_list(side) for side in as_list(box)]
        if len(sides) == 4 and all(isinstance(side, int | float) and math.isfinite(side) for side in sides):
            return sides
    except (TypeError, ValueError):
        pass
    raise ValueError(f"A box is four numbers [x0, y0, x1, y1], or 'x0,y0,x1,y1', not {box!r}.")


__all__ = ["BoxCodec"]
