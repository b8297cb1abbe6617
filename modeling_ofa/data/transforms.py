"""
What the official training does to pictures and boxes before the processor sees them, one transform a task.

A transform takes and gives a PIL picture and boxes in its pixels, so what comes out of it goes through the processor
like any other row; let that resize to the same size. At evaluation, and in training on tasks that
[`training_transform`] does not know, what the processor does is all there is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import PIL.Image
import torch

from ..image_processing_pil_ofa import to_rgb
from ..layouts_ofa import ocr_resize
from .augment import Randomness, ofa_augment, rand_augment, random_erase, random_resized_crop


@dataclass(frozen=True)
class Sample:
    """
    A picture with its boxes.

    Args:
        picture (`PIL.Image.Image`): The picture.
        boxes (`torch.FloatTensor` of shape `(boxes, 4)`): `[x0, y0, x1, y1]` in pixels of the picture.
        kept (`torch.LongTensor` of shape `(boxes,)`):
            Which of the boxes that were there at first each of them is; others were cut off. Labels are to follow it.
    """

    picture: PIL.Image.Image
    boxes: torch.Tensor
    kept: torch.Tensor


Step = Callable[[Sample, Randomness], Sample]
PictureStep = Callable[[PIL.Image.Image, Randomness], PIL.Image.Image]
PixelStep = Callable[[torch.Tensor, Randomness], torch.Tensor]


@dataclass(frozen=True)
class TrainingTransform:
    """
    The steps that make a training picture: on the picture and its boxes, and later on its normalised pixels.

    Args:
        steps (`tuple[Step, ...]`): On a [`Sample`].
        pixel_steps (`tuple[PixelStep, ...]`, *optional*): On a tensor of shape `(channels, height, width)`.
    """

    steps: tuple[Step, ...]
    pixel_steps: tuple[PixelStep, ...] = ()

    def __call__(
        self,
        picture: PIL.Image.Image,
        boxes: torch.Tensor | Sequence[Sequence[float]] | None = None,
        rng: Randomness | None = None,
    ) -> Sample:
        """
        Changes a picture and its boxes.

        Args:
            picture (`PIL.Image.Image`): The picture, of any mode, upright.
            boxes (`torch.FloatTensor` of shape `(boxes, 4)` or `Sequence[Sequence[float]]`, *optional*):
                `[x0, y0, x1, y1]` in its pixels; none by default.
            rng ([`Randomness`], *optional*): Where numbers are drawn, the global generators by default.

        Returns:
            [`Sample`]: An RGB picture, its boxes, and which of the given ones these are.

        Raises:
            ValueError: `boxes` are not rows of four finite numbers, or a step needs one and there is none.
        """
        corners = _as_corners([] if boxes is None else boxes)
        sample = Sample(to_rgb(picture), corners, torch.arange(len(corners)))
        for step in self.steps:
            sample = step(sample, rng or Randomness())
        return sample

    def on_row(self, row: Mapping[str, Any], rng: Randomness | None = None) -> dict[str, Any]:
        """
        Changes the picture, boxes and labels of an `Example`, and the region that is its text in `grounded_caption`.

        Args:
            row (`Mapping[str, Any]`): A row with `image`, a PIL picture.
            rng ([`Randomness`], *optional*): Where numbers are drawn, the global generators by default.

        Returns:
            `dict[str, Any]`: The row with new values in these columns.

        Raises:
            ValueError: Boxes are bad, missing, or in the column `target`.
        """
        target, boxes = row.get("target"), row.get("boxes")
        if boxes is None and target is not None and not isinstance(target, str):
            raise ValueError("Boxes that shall move with their picture belong in the column 'boxes', not in 'target'.")
        region = row["text"].split(",") if row.get("task") == "grounded_caption" else None
        if region:
            boxes = [[float(side) for side in region]]
        sample = self(row["image"], boxes, rng)
        changed = {**row, "image": sample.picture}
        if region:
            changed["text"] = ",".join(str(side) for side in sample.boxes[0].tolist())
        elif boxes is not None:
            changed["boxes"] = sample.boxes.tolist()
            if row.get("labels") is not None:
                changed["labels"] = [row["labels"][i] for i in sample.kept.tolist()]
        return changed

    def on_batch(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Changes the rows of a batch of columns; for `Dataset.with_transform`, drawing anew at every epoch."""
        rows = [self.on_row(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows] for name in batch}

    def on_pixels(self, pixel_values: torch.Tensor, rng: Randomness | None = None) -> torch.Tensor:
        """
        Changes the normalised pixels of one picture: image classification puts noise over a random rectangle, other
        tasks do nothing.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(channels, height, width)`): What the processor gave.
            rng ([`Randomness`], *optional*): Where numbers are drawn, the global generators by default.

        Returns:
            `torch.FloatTensor` of shape `(channels, height, width)`. `pixel_values` is left as it is.
        """
        for step in self.pixel_steps:
            pixel_values = step(pixel_values, rng or Randomness())
        return pixel_values


def training_transform(
    task: str,
    size: int,
    largest: int = 480,
    fill: tuple[int, int, int] = (128, 128, 128),
    document: bool = False,
) -> TrainingTransform:
    """
    Gives the transform of the official training on a task.

    | task | what happens | official size |
    | --- | --- | --- |
    | `caption`, `vqa`, `image_text_matching` | pre-training: [`random_resize`], then the square in the middle, \
then [`~modeling_ofa.data.augment.ofa_augment`] | 384 |
    | `visual_grounding`, `grounded_caption` | pre-training: [`random_resize`], then a square around the first \
box | 384 |
    | `object_detection` | pre-training: a random flip, then [`scale_jitter`] | 256 |
    | `image_classification` | ImageNet: a random part, a random flip, the augmentations of timm and then of OFA; in \
its pixels a random rectangle of noise | 480 |
    | `ocr` | fine-tuning: [`~modeling_ofa.layouts_ofa.ocr_resize`] to a random place | 480 |

    Args:
        task (`str`): One of these.
        size (`int`): Side of the square that comes out.
        largest (`int`, *optional*, defaults to 480): Up to which size [`random_resize`] goes.
        fill (`tuple[int, int, int]`, *optional*, defaults to grey):
            What timm's augmentations put around moved pictures: the mean colour of the normalisation.
        document (`bool`, *optional*, defaults to `False`): Whether pictures of OCR are long lines to be wrapped.

    Raises:
        ValueError: The official training has no transform for this task, `size` is not positive, or `largest` less.

    Example:

    ```python
    >>> transform = training_transform("visual_grounding", 384)
    >>> sample = transform(picture, [[10.5, 5.0, 30.0, 33.0]], Randomness.seeded(3))
    >>> inputs = processor(
    ...     task="visual_grounding", images=sample.picture, text="the mug", target=sample.boxes[0].tolist(), size=384
    ... )
    >>> training_set = dataset.with_transform(transform.on_batch)  # or row by row, of `Example`s
    ```
    """
    if size < 1:
        raise ValueError(f"The side of a picture is at least one pixel, not {size}.")
    resize = partial(random_resize, smallest=size, largest=largest)
    is_resized = task in ("caption", "vqa", "image_text_matching", "visual_grounding", "grounded_caption")
    if is_resized and largest < size:
        raise ValueError(f"Pictures are first resized to {size} up to `largest`, which is less: {largest}.")
    if task in ("caption", "vqa", "image_text_matching"):
        return TrainingTransform((resize, partial(center_crop, size=size), _on_picture(ofa_augment)))
    if task in ("visual_grounding", "grounded_caption"):
        return TrainingTransform((resize, partial(object_crop, size=size)))
    if task == "object_detection":
        return TrainingTransform((random_flip, partial(scale_jitter, size=size)))
    if task == "image_classification":
        part: PictureStep = partial(random_resized_crop, size=size)
        steps = (part, random_mirror, partial(rand_augment, fill=fill), ofa_augment)
        return TrainingTransform(tuple(_on_picture(step) for step in steps), (random_erase,))
    if task == "ocr":
        return TrainingTransform((_on_picture(partial(_place_text, side=size, document=document)),))
    raise ValueError(
        f"The official training changes no pictures of task {task!r}: what the processor does is all it takes."
    )


def random_resize(sample: Sample, rng: Randomness, smallest: int, largest: int) -> Sample:
    """
    Resizes a picture so that its shorter side has a random size, drawn from `rng.python`, and the longer one 7/5 of
    `largest` at most.
    """
    return resize_shorter_side(sample, rng.python.choice(range(smallest, largest + 1)), largest * 7 // 5)


def resize_shorter_side(sample: Sample, size: int, longest: int) -> Sample:
    """
    Resizes a picture so that its shorter side has a size. The longer one keeps the proportion, unless that makes it
    longer than `longest`, to which it is then squeezed.
    """
    width, height = sample.picture.size
    if width < height:
        return _resize(sample, size, min(int(size * height / width), longest))
    return _resize(sample, min(int(size * width / height), longest), size)


def center_crop(sample: Sample, rng: Randomness, size: int) -> Sample:
    """Cuts a square out of the middle."""
    width, height = sample.picture.size
    return _crop(sample, round((width - size) / 2), round((height - size) / 2), size)


def object_crop(sample: Sample, rng: Randomness, size: int) -> Sample:
    """
    Cuts a square around the first box, or as near to that as the picture allows. Boxes are cut off at its edges.

    Raises:
        ValueError: There is no box.
    """
    if not len(sample.boxes):
        raise ValueError("Visual grounding needs the box of what the text describes, but this row has none.")
    x0, y0, x1, y1 = sample.boxes[0].tolist()
    half = size / 2
    left, top = (
        max(center - half + min(side - center - half, 0), 0)
        for center, side in zip(((x0 + x1) / 2, (y0 + y1) / 2), sample.picture.size, strict=True)
    )
    return _crop(sample, left, top, size)


def random_flip(sample: Sample, rng: Randomness) -> Sample:
    """Turns left and right around with a probability of a half, drawn from `rng.python`."""
    if rng.python.random() >= 0.5:
        return sample
    width = sample.picture.width
    boxes = sample.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
    return replace(sample, picture=sample.picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), boxes=boxes)


def scale_jitter(sample: Sample, rng: Randomness, size: int) -> Sample:
    """
    Resizes a picture so that it covers a square 1 to 1.5 times, and cuts a square out at a random place ("large scale
    jitter"), both drawn from `rng.torch`. Boxes are cut off at its edges, and dropped when nothing is left of them.
    """
    sides = torch.tensor(sample.picture.size[::-1])  # height, width
    scale = torch.rand(1, generator=rng.torch) * (1.5 - 1.0) + 1.0
    covered = (scale * size).round()
    sides = (sides * torch.maximum(covered / sides[0], covered / sides[1])).round().int()
    sample = _resize(sample, int(sides[1]), int(sides[0]))
    top, left = ((sides - size) * torch.rand(2, generator=rng.torch)).floor().int().tolist()
    sample = _crop(sample, left, top, size)
    left_over = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(dim=1)
    return replace(sample, boxes=sample.boxes[left_over], kept=sample.kept[left_over])


def random_mirror(picture: PIL.Image.Image, rng: Randomness) -> PIL.Image.Image:
    """Turns left and right around with a probability of a half, drawn from `rng.torch` as torchvision does."""
    if torch.rand(1, generator=rng.torch) >= 0.5:
        return picture
    return picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def _as_corners(boxes: torch.Tensor | Sequence[Sequence[float]]) -> torch.Tensor:
    try:
        corners = torch.as_tensor(boxes, dtype=torch.float32)
        if corners.numel() == 0:
            return corners.reshape(0, 4)
        if corners.ndim == 2 and corners.shape[1] == 4 and corners.isfinite().all():
            return corners
    except (TypeError, ValueError):
        pass  # said below
    raise ValueError(f"Boxes are rows of four numbers [x0, y0, x1, y1], not {boxes!r}.")


def _resize(sample: Sample, width: int, height: int) -> Sample:
    ratios = torch.tensor([width / sample.picture.width, height / sample.picture.height])
    picture = sample.picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
    return replace(sample, picture=picture, boxes=sample.boxes * ratios.repeat(2))


def _crop(sample: Sample, left: float, top: float, size: int) -> Sample:
    """Cuts out a square. Pixels are cut at the nearest whole number, boxes at the very place."""
    x, y = round(left), round(top)
    boxes = (sample.boxes - torch.tensor([left, top, left, top])).clamp(0, size)
    return replace(sample, picture=sample.picture.crop((x, y, x + size, y + size)), boxes=boxes)


def _on_picture(step: PictureStep) -> Step:
    """A step of a task without boxes."""
    return partial(_change_picture, change=step)


def _change_picture(sample: Sample, rng: Randomness, change: PictureStep) -> Sample:
    return replace(sample, picture=change(sample.picture, rng))


def _place_text(picture: PIL.Image.Image, rng: Randomness, side: int, document: bool) -> PIL.Image.Image:
    return ocr_resize(picture, side, document, rng.python)


__all__ = [
    "Sample",
    "TrainingTransform",
    "center_crop",
    "object_crop",
    "random_flip",
    "random_mirror",
    "random_resize",
    "resize_shorter_side",
    "scale_jitter",
    "training_transform",
]
