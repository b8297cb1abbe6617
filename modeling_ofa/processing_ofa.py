"""OFA's processor: pictures and texts in, model inputs out; token ids in, answers out. Tasks are rows of one table."""

import math
import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .image_processing_pil_ofa import OFAImageProcessorPil
from .tokenization_ofa import OFATokenizer


_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE_IN_CHINESE = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")


@dataclass(frozen=True)
class Task:
    """
    One row of the table: how a task is asked, answered and decoded. A new task is a new row.

    Args:
        instruction (`str`):
            What the encoder reads, with the leading space that BPE sees. `{text}` stands for the cleaned text of the
            user; a task without it takes no text.
        instruction_zh (`str`, *optional*): The same for the Chinese checkpoints, if it differs.
        question (`bool`): Whether the text is a question: it gets its question mark if it lacks one.
        box (`bool`):
            Whether the answer is a box. The picture is then resized to the processor's `max_image_size`, in which
            boxes are counted.
        strip_target (`bool`): Whether training targets lose their punctuation.
        max_text_words, max_target_words, max_target_tokens (`int`, *optional*):
            The limits of the official recipe. The text's applies with `truncation=True`, those of targets always.
        generation (`Mapping[str, Any]`): How `generate` decodes at evaluation.
    """

    instruction: str
    instruction_zh: str | None = None
    question: bool = False
    box: bool = False
    strip_target: bool = False
    max_text_words: int | None = None
    max_target_words: int | None = None
    max_target_tokens: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def takes_text(self) -> bool:
        """`bool`: Whether the user gives a text with the picture."""
        return "{text}" in self.instruction


# fairseq's beam search never writes padding, and ends what has not ended at the last step (docs/generation.md).
_BEAM = {
    "num_beams": 5,
    "early_stopping": True,
    "do_sample": False,
    "forced_eos_token_id": 2,
    "suppress_tokens": [1],
}

TASKS: dict[str, Task] = {
    "caption": Task(
        " what does the image describe?",
        instruction_zh="图片描述了什么内容?",
        strip_target=True,
        max_target_words=20,
        # sixteen tokens and the end of the sequence
        generation={**_BEAM, "max_new_tokens": 17, "no_repeat_ngram_size": 3, "length_penalty": 1.0},
    ),
    "vqa": Task(
        " {text}",
        question=True,
        max_text_words=80,
        max_target_tokens=30,
        # fairseq's `--unnormalized`; an answer was at most 30 tokens long in training
        generation={**_BEAM, "max_new_tokens": 30, "length_penalty": 0.0},
    ),
    "visual_grounding": Task(
        ' which region does the text " {text} " describe?',
        instruction_zh='这段文字" {text} "描述的是哪个区域？',
        box=True,
        max_text_words=80,
        # four bins and the end of the sequence
        generation={**_BEAM, "min_new_tokens": 4, "max_new_tokens": 5, "length_penalty": 1.0},
    ),
}


def get_task(name: str) -> Task:
    """
    Looks up a row of `TASKS`.

    Raises:
        `ValueError`: if there is no such task; the message names those that there are.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"Unknown task {name!r}. The tasks are: {', '.join(map(repr, TASKS))}.")
    return TASKS[name]


def clean_text(text: str, question: bool = False) -> str:
    """
    Cleans an English text as the official data sets do: lower case, no leading punctuation, spaces for hyphens and
    slashes, no double spaces. `<person>`, which stands for names in some data sets, becomes `person` but in questions.
    """
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ")
    if not question:
        text = text.replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


class OFAProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Keyword arguments of a call, and their defaults: texts are padded to the longest of the batch."""

    _defaults = {"text_kwargs": {"padding": True}}


class OFAProcessor(ProcessorMixin):
    r"""
    OFA's processor: an [`OFAImageProcessor`] and an [`OFATokenizer`], and the instructions of OFA's tasks.

    Args:
        image_processor ([`OFAImageProcessor`]): for the pictures.
        tokenizer ([`OFATokenizer`]): for the texts.
        chat_template (`str`, *optional*): a Jinja template for conversations; OFA was trained without one.
        max_image_size (`int`, *optional*, defaults to 512):
            Side of the square in which boxes are counted, and to which tasks that speak of boxes resize pictures.
        num_beams (`int`, *optional*):
            Beams with which this checkpoint decodes, in place of the tasks' own; 1 is greedy search.

    Example:

    ```python
    >>> inputs = processor(task="caption", images=image, return_tensors="pt")
    >>> ids = model.generate(**inputs, **processor.generation_kwargs("caption"))
    >>> processor.post_process(ids, task="caption")
    [{'text': 'a dog on a beach'}]

    >>> inputs = processor(task="visual_grounding", images=image, text="the dog", return_tensors="pt")
    >>> ids = model.generate(**inputs, **processor.generation_kwargs("visual_grounding"))
    >>> processor.post_process(ids, task="visual_grounding", image_sizes=[(image.height, image.width)])
    [{'boxes': [[64.1, 113.9, 320.3, 341.7]], 'scores': [None]}]
    ```
    """

    valid_processor_kwargs = OFAProcessorKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        max_image_size: int = 512,
        num_beams: int | None = None,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.max_image_size = max_image_size
        self.num_beams = num_beams

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "OFAProcessor":
        """
        Loads a processor. A folder that holds a tokenizer but no picture settings, such as those of `OFA-Sys/*`, gets
        the default image processor (480 × 480).

        Raises:
            `FileNotFoundError`: if the name is that of a folder, and there is none.
        """
        name = os.fspath(pretrained_model_name_or_path)
        if (os.path.isabs(name) or name.startswith(("./", "../", "~"))) and not os.path.exists(name):
            raise FileNotFoundError(f"No such folder: {name}")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError:
            hub_kwargs = {key: value for key, value in kwargs.items() if key != "trust_remote_code"}
            if get_image_processor_config(pretrained_model_name_or_path, **hub_kwargs):
                raise
            tokenizer = OFATokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
            return cls(OFAImageProcessorPil(), tokenizer)

    def __call__(
        self,
        images: ImageInput | str | os.PathLike | bytes | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        task: str | None = None,
        target: Any = None,
        **kwargs: Unpack[OFAProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares a batch for the model.

        Args:
            images (picture or list of pictures, *optional*):
                A picture, or one for each row: whatever [`OFAImageProcessor`] takes, or `None` for a row without one.
                A row may also be a list of at most one picture.
            text (`str` or `list[str]`, *optional*):
                Without `task`, what the encoder reads, as it is (OFA's own instructions start with a space). With
                `task`, the question or phrase, which is cleaned and put into the task's instruction.
            task (`str`, *optional*): A name in `TASKS`.
            target (`str`, box or a list of these, *optional*):
                What the model shall answer, for training: a text, or for tasks that answer with a box
                `[x0, y0, x1, y1]` in pixels of the upright original picture. What of a box lies outside of the picture
                is cut off (the official code does not, and turns such sides into `<unk>`).
            **kwargs:
                For the tokenizer (`padding`, which is to the longest text by default, `truncation`, `max_length`, …),
                for the image processor (`size`, …) and `return_tensors`. With `task`, `truncation=True` first cuts the
                user's text to the number of words of the official recipe, so that the instruction stays whole.

        Returns:
            [`BatchFeature`]: with these fields:

            - **input_ids**, **attention_mask** of shape `(batch, length)`, if there is a text or task.
            - **pixel_values** of shape `(batch, 3, height, width)` and **patch_masks** of shape `(batch,)`, if there
              is an image; rows without one are zeros, and `False` in `patch_masks`.
            - **labels** of shape `(batch, target length)`, if there is a `target`, padded with -100.

        Raises:
            `ValueError`: if the task is unknown, if something that it needs is missing, if images, texts and targets
                do not match in number, if a text is longer than the model's positions, or if a picture or box is bad.
        """
        row = None if task is None else get_task(task)
        pictures = self._as_pictures(images)
        texts = self._as_texts(text, row, task, None if pictures is None else len(pictures))
        if pictures is None and texts is None:
            raise ValueError("Nothing to process: give images=, text= or task=.")
        if pictures is not None and texts is not None and len(pictures) != len(texts):
            raise ValueError(
                f"{len(pictures)} images but {len(texts)} texts: give one image for each text (None where a text "
                "has none)."
            )
        merged = self._merge_kwargs(
            OFAProcessorKwargs, tokenizer_init_kwargs=getattr(self.tokenizer, "init_kwargs", None), **kwargs
        )
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        return_tensors = text_kwargs.pop("return_tensors", None)
        return_tensors = images_kwargs.pop("return_tensors", None) or return_tensors

        data: dict[str, Any] = {}
        if texts is not None:
            data.update(self._encode_texts(texts, row, text_kwargs))
        if pictures is not None and any(picture is not None for picture in pictures):
            if row is not None and row.box:
                images_kwargs.setdefault("size", {"height": self.max_image_size, "width": self.max_image_size})
            fetch = self.image_processor.fetch_images
            pictures = [None if picture is None else fetch(picture) for picture in pictures]
            data.update(self._encode_pictures(pictures, images_kwargs))
        if target is not None:
            labels = self._encode_targets(target, row, pictures, len(texts or pictures or []), images_kwargs)
            if text_kwargs.get("padding"):
                longest = max(map(len, labels))
                labels = [ids + [-100] * (longest - len(ids)) for ids in labels]
            data["labels"] = labels
        return BatchFeature(data, tensor_type=return_tensors)

    def generation_kwargs(self, task: str) -> dict[str, Any]:
        """
        Gives the keyword arguments of `generate` with which a task is decoded at evaluation.

        Args:
            task (`str`): a name in `TASKS`.
        """
        options = dict(get_task(task).generation)
        if self.num_beams is not None:
            options["num_beams"] = self.num_beams
        if options.get("num_beams", 1) == 1:
            for name in ("early_stopping", "length_penalty"):  # of beams alone
                options.pop(name, None)
        return options

    def post_process(
        self,
        ids: Any,
        task: str,
        image_sizes: Sequence[Sequence[int]] | None = None,
        scores: Sequence[float] | None = None,
        size: int | Mapping[str, int] | None = None,
    ) -> list[dict[str, Any]]:
        """
        Turns generated token ids into answers.

        Args:
            ids (`torch.LongTensor` of shape `(rows, length)` or `list[list[int]]`):
                What `generate` gives. With `num_return_sequences` there may be several rows for each picture.
            task (`str`): A name in `TASKS`.
            image_sizes (`list[tuple[int, int]]`, *optional*):
                Height and width of each upright original picture, for tasks that answer with a box.
            scores (`torch.FloatTensor` of shape `(rows,)` or `list[float]`, *optional*):
                A score for each row, such as `sequences_scores` of `generate`.
            size (`int` or `dict[str, int]`, *optional*):
                The `size` that the call was given, if it was given one.

        Returns:
            `list[dict[str, Any]]`: For each row `{"text": …}` (and `"score"` if there are scores), or for tasks that
            answer with a box `{"boxes": [[x0, y0, x1, y1]], "scores": [score or None]}` in pixels of the original
            picture. Both are empty if the model did not answer with four bins.

        Raises:
            `ValueError`: if the task is unknown, or if sizes or scores are missing or do not match in number.
        """
        row = get_task(task)
        rows: list[list[int]] = ids.tolist() if hasattr(ids, "tolist") else [list(map(int, one)) for one in ids]
        row_scores = scores.tolist() if hasattr(scores, "tolist") else scores  # type: ignore[union-attr]
        if row_scores is not None and len(row_scores) != len(rows):
            raise ValueError(f"{len(row_scores)} scores for {len(rows)} rows of ids.")
        if not row.box:
            texts = self.post_process_image_text_to_text(rows)
            if row_scores is None:
                return [{"text": text} for text in texts]
            return [{"text": text, "score": score} for text, score in zip(texts, row_scores, strict=True)]

        if image_sizes is None:
            raise ValueError(f"Task {task!r} answers with boxes: give image_sizes=[(height, width), …].")
        if len(image_sizes) == 0 or len(rows) % len(image_sizes) != 0:
            raise ValueError(f"{len(image_sizes)} image_sizes do not match {len(rows)} rows of ids.")
        beams = len(rows) // len(image_sizes)
        answers = []
        for i, tokens in enumerate(rows):
            box = self._decode_box(tokens, image_sizes[i // beams], self._sides(size))
            score = None if row_scores is None else row_scores[i]
            answers.append({"boxes": [box], "scores": [score]} if box else {"boxes": [], "scores": []})
        return answers

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """
        Decodes generated token ids into texts, without the space that they begin with.

        Args:
            generated_outputs (`torch.LongTensor` of shape `(rows, length)`): what `generate` gives.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): whether to leave `<s>`, `</s>`, `<pad>` out.
            **kwargs: passed to the tokenizer's `batch_decode`.
        """
        texts = self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        if getattr(self.tokenizer, "is_chinese", False):
            texts = [_SPACE_IN_CHINESE.sub("", text) for text in texts]
        return [text.strip() for text in texts]

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: What a call with image and text gives."""
        return [*super().model_input_names, "patch_masks"]

    def _as_pictures(self, images: Any) -> list[Any] | None:
        """Gives one picture or `None` for each row."""
        if images is None:
            return None
        if not isinstance(images, list | tuple):
            return list(images) if getattr(images, "ndim", None) == 4 else [images]
        pictures: list[Any] = []
        for i, image in enumerate(images):
            if isinstance(image, list | tuple):
                if len(image) > 1:
                    raise ValueError(f"OFA reads one picture a text, but row {i} of images has {len(image)}.")
                pictures.append(image[0] if image else None)
            elif getattr(image, "ndim", None) == 4:
                pictures.extend(image)
            else:
                pictures.append(image)
        if not pictures:
            raise ValueError("images is empty; leave it out for a batch without pictures.")
        return pictures

    def _as_texts(self, text: Any, row: Task | None, task: str | None, pictures: int | None) -> list[str] | None:
        """Gives what the encoder shall read for each row, before truncation."""
        texts = [text] if isinstance(text, str) else None if text is None else list(text)
        if texts is not None and (not texts or not all(isinstance(one, str) for one in texts)):
            raise ValueError("text must be a string or a list of strings, and not empty.")
        if row is None:
            return texts
        if pictures is None:
            raise ValueError(f"Task {task!r} is about a picture: give images=.")
        if row.takes_text:
            if texts is None:
                raise ValueError(f"Task {task!r} needs text=: {'the question' if row.question else 'the phrase'}.")
            return texts
        if texts is not None and any(texts):
            raise ValueError(f"Task {task!r} takes no text, its instruction is {row.instruction!r}; leave task= out.")
        return [""] * pictures

    def _encode_texts(self, texts: list[str], row: Task | None, text_kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Tokenises the texts, put into the task's instruction if there is one."""
        truncates = text_kwargs.get("truncation") not in (None, False, "do_not_truncate")
        if row is not None:
            instruction = row.instruction
            if row.instruction_zh is not None and getattr(self.tokenizer, "is_chinese", False):
                instruction = row.instruction_zh
            cleaned = [self._clean(text, row, row.max_text_words if truncates else None) for text in texts]
            texts = [instruction.replace("{text}", text) for text in cleaned]
        encoded = self.tokenizer(texts, **text_kwargs)
        if not truncates:
            limit, pad = self.tokenizer.model_max_length, self.tokenizer.pad_token_id
            for i, ids in enumerate(encoded["input_ids"]):
                length = len(ids) - ids.count(pad)
                if length > limit:
                    raise ValueError(
                        f"Text {i} is {length:,} tokens long, but the model has {limit:,} positions. Shorten it, or "
                        "pass truncation=True to drop the end."
                    )
        return encoded

    def _clean(self, text: str, row: Task, max_words: int | None) -> str:
        """Cleans the user's text for an instruction."""
        if getattr(self.tokenizer, "is_chinese", False):
            text = text.lower().strip()
            text = text[:max_words]
        else:
            text = clean_text(text, question=row.question)
            if max_words is not None and len(words := text.split(" ")) > max_words:
                text = " ".join(words[:max_words])
        return text if not row.question or text.endswith(("?", "？")) else f"{text}?"

    def _encode_pictures(self, pictures: list[Any], images_kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        """Gives the pixels of the rows that have a picture, and zeros for the others."""
        pixels = iter(
            self.image_processor([picture for picture in pictures if picture is not None], **images_kwargs)[
                "pixel_values"
            ]
        )
        rows = [None if picture is None else next(pixels) for picture in pictures]
        first = next(one for one in rows if one is not None)
        return {
            "pixel_values": [first * 0 if one is None else one for one in rows],
            "patch_masks": [picture is not None for picture in pictures],
        }

    def _encode_targets(
        self,
        target: Any,
        row: Task | None,
        pictures: list[Any] | None,
        rows: int,
        images_kwargs: dict[str, Any],
    ) -> list[list[int]]:
        """Gives the label ids of each row, ending in `</s>`."""
        targets = target.tolist() if hasattr(target, "tolist") else target
        is_box = row is not None and row.box
        if isinstance(targets, str) or (is_box and len(targets) == 4 and all(np.ndim(side) == 0 for side in targets)):
            targets = [targets]
        if len(targets) != rows:
            raise ValueError(f"{len(targets)} targets for {rows} rows of images and texts.")
        if is_box:
            sides = self._sides(images_kwargs.get("size"))
            bodies = [
                self._encode_box(box, picture, sides) for box, picture in zip(targets, pictures or [], strict=True)
            ]
        else:
            if not all(isinstance(one, str) for one in targets):
                raise ValueError(f"A target is a text here, not {targets!r}.")
            if row is not None:
                targets = [self._clean_target(one, row) for one in targets]
            bodies = self.tokenizer(targets, add_special_tokens=False)["input_ids"]
            if row is not None and row.max_target_tokens is not None:
                bodies = [ids[: row.max_target_tokens] for ids in bodies]
        labels = [[*ids, self.tokenizer.eos_token_id] for ids in bodies]
        for i, ids in enumerate(labels):
            if len(ids) > self.tokenizer.model_max_length:
                raise ValueError(
                    f"Target {i} is {len(ids):,} tokens long, but the model has "
                    f"{self.tokenizer.model_max_length:,} positions."
                )
        return labels

    @staticmethod
    def _clean_target(target: str, row: Task) -> str:
        """Puts a target text as the official data sets do, with a leading space."""
        if row.strip_target:
            target = target.translate(_DELETE_PUNCTUATION).strip()
        if row.max_target_words is not None:
            target = " ".join(target.split()[: row.max_target_words])
        return f" {target}"

    def _sides(self, size: Any) -> tuple[int, int]:
        """Gives the height and width to which a call with this `size` resizes pictures for a task with boxes."""
        if size is None:
            return self.max_image_size, self.max_image_size
        if isinstance(size, int):
            return size, size
        if "height" not in size or "width" not in size:
            raise ValueError(f"Boxes need a size with height and width, not {dict(size)}.")
        return size["height"], size["width"]

    def _bins(self) -> tuple[int, int]:
        """Gives the id of `<bin_0>` and the number of bins."""
        start, number = getattr(self.tokenizer, "bin_start_id", None), getattr(self.tokenizer, "num_bins", 0)
        if start is None:
            raise ValueError("This tokenizer has no <bin_i> tokens, so it cannot speak of boxes.")
        return start, number

    def _encode_box(self, box: Any, picture: Any, sides: tuple[int, int]) -> list[int]:
        """Quantises a box in pixels to the ids of four bins, in the official code's single precision."""
        if picture is None:
            raise ValueError("A target box needs its picture: give images=.")
        height, width = _picture_size(picture)
        if len(box) != 4 or not all(isinstance(side, int | float | np.number) and math.isfinite(side) for side in box):
            raise ValueError(f"A target box is four numbers [x0, y0, x1, y1], not {box!r}.")
        x0, y0, x1, y1 = box
        if x1 < x0 or y1 < y0 or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise ValueError(
                f"The box {list(box)} is not a region of its picture of {width} × {height} pixels; [x0, y0, x1, y1] "
                "are the left, upper, right and lower side."
            )
        start, number = self._bins()
        limits = np.array([width, height, width, height], dtype=np.float32)
        ratios = np.array([sides[1] / width, sides[0] / height] * 2, dtype=np.float32)
        resized = np.clip(np.array(box, dtype=np.float32), 0, limits) * ratios
        bins = np.rint(resized / np.float32(self.max_image_size) * np.float32(number - 1))
        return [start + min(int(one), number - 1) for one in bins]

    def _decode_box(self, tokens: list[int], size: Sequence[int], sides: tuple[int, int]) -> list[float] | None:
        """Turns the first four tokens into a box in pixels of the original picture, if they are bins."""
        start, number = self._bins()
        special = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        bins = [token - start for token in tokens if token not in special][:4]
        if len(bins) < 4 or not all(0 <= one < number for one in bins):
            return None
        height, width = (float(side) for side in size)
        ratios = [sides[1] / width, sides[0] / height] * 2
        return [one / (number - 1) * self.max_image_size / ratio for one, ratio in zip(bins, ratios, strict=True)]


def _picture_size(picture: Any) -> tuple[int, int]:
    """Gives height and width of a picture or an array that [`OFAImageProcessor`] takes."""
    if isinstance(picture, PIL.Image.Image):
        return picture.height, picture.width
    shape = tuple(picture.shape)
    return (shape[1], shape[2]) if shape[0] <= 4 else (shape[0], shape[1])


__all__ = ["TASKS", "OFAProcessor", "Task"]
