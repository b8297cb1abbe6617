"""What pre-training asks of an Example: its eight tasks, with the negatives and the noise of the official code."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image

from ..data.augment import Randomness
from ..data.collator import encoded_picture
from ..data.noise import TextInfilling
from ..data.transforms import TrainingTransform, training_transform
from ..processing_ofa import OFAProcessor
from ..tasks_ofa import TASKS, clean_question, clean_text


_SOURCE_WORDS, _TARGET_WORDS = 80, 30  # kept of what the encoder reads, and of a caption that is written
_READ_TOKENS, _TEXT_TOKENS = 512, 256  # of a text the first are read, and the last of these kept
_PIXELS_PER_CODE = 8
# Officially the first two tokens of this data set's captions are not learned.
_HEADLESS, _HEAD = "cc12m", 2

# Where pre-training asks in other words than fine-tuning.
PRETRAINING_TASKS = {
    **TASKS,
    "caption": replace(TASKS["caption"], clean_target=clean_text, max_target_words=_TARGET_WORDS),
    "vqa": replace(TASKS["vqa"], question_mark=False, max_target_tokens=None),
    # Captions and questions come cleaned, and answers are left as they are.
    "image_text_matching": replace(TASKS["image_text_matching"], clean=str, max_words=_SOURCE_WORDS),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Negatives:
    """
    What image-text matching takes wrong captions and answers from: the three files of the official `negative_sample`
    folder.

    Args:
        captions (`Sequence[str]`): Captions of other pictures (`all_captions.txt`, a line each).
        objects (`Sequence[str]`): Names of things (`object.txt`, a line each).
        answers (`Mapping[str, Sequence[str]]`):
            Answers by type of question, such as `"how many"` (`type2ans.json`). Those of answers without a type, and
            of answers that people did not agree on, come from the type `"other"`.

    Raises:
        ValueError: There is nothing to choose from.
    """

    captions: Sequence[str]
    objects: Sequence[str]
    answers: Mapping[str, Sequence[str]]

    def __post_init__(self):
        for name, list_ in (("captions", self.captions), ("objects", self.objects)):
            if len(list_) < 2:
                raise ValueError(f"There are {len(list_)} {name} to make negatives from: give two or more.")
        if len(self.answers.get("other", ())) < 2:
            raise ValueError("The answers to make negatives from need a type 'other', with two or more.")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Negatives":
        """
        Reads an official folder.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is not what it should be.
        """
        captions, objects = (
            [line.strip() for line in (Path(folder) / name).read_text(encoding="utf-8").split("\n") if line.strip()]
            for name in ("all_captions.txt", "object.txt")
        )
        path = Path(folder) / "type2ans.json"
        try:
            answers = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(answers, dict) or not all(isinstance(one, list) for one in answers.values()):
            raise ValueError(f"{path} must map types of questions to lists of answers.")
        return cls(captions, objects, answers)

    @cached_property
    def types(self) -> dict[str, str]:
        """`dict[str, str]`: The type of each answer, of those types that offer another one."""
        kinds = [(kind, one) for kind, one in self.answers.items() if kind != "other" and len(one) > 1]
        return {answer: kind for kind, answers in kinds for answer in answers}

    def caption(self, caption: str, objects: Sequence[str] | None, rng: Randomness) -> str:
        """
        Gives a wrong caption: in two of five cases the caption with another object, if it is known which it names,
        else one of another picture.

        The official code looks for the object in the caption as it is written, and so leaves "A Frisbee" alone if the
        object is "frisbee"; here case does not matter, since it does not to the model.
        """
        if rng.python.random() > 0.6 and objects:
            named = rng.python.choice(objects)
            return caption.lower().replace(named.lower(), _other(self.objects, named, rng))
        return rng.python.choice(self.captions)

    def answer(self, answer: str, confidence: float, rng: Randomness) -> str:
        """Gives a wrong answer, the likelier one of the same type the more people agreed on the right one."""
        drawn = rng.python.random()
        kind = self.types.get(answer, "other") if confidence > drawn + 0.1 else "other"
        if kind == "how many" and answer.isdecimal() and drawn > 0.5:
            other = int(answer) + rng.python.choice([-1, 1])
            return str(other if int(answer) else 1)
        return _other(self.answers[kind], answer, rng)


def _other(words: Sequence[str], word: str, rng: Randomness) -> str:
    """Gives any of the words but the last, and that one in place of `word`."""
    drawn = words[rng.python.choice(range(len(words) - 1))]
    return words[-1] if drawn == word else drawn


class PretrainingRows:
    """
    Makes rows of Examples, for the collator, as the official pre-training does.

    A row is what [`DataCollatorForOFA`] takes, and may have `source_ids` and `target_ids`, tokens that stand in place
    of the text and the target, and `unlearned`, how many tokens of the target are not learned.

    Args:
        processor ([`OFAProcessor`]): Reads pictures, and tells how texts become tokens.
        negatives ([`Negatives`]): What wrong captions and answers come from.
        image_size (`int`, *optional*, defaults to 384): Side of the pictures of image-text rows.
        code_image_size (`int`, *optional*, defaults to 128):
            Side of the middle that image infilling draws. The pictures of these rows are twice as large.
        augment (`bool`, *optional*, defaults to `True`):
            Whether pictures are cut, enlarged and mirrored as officially, and not just resized.
        matching (`float`, *optional*, defaults to 1.0):
            Which part of the captions and questions comes with a row of image-text matching; officially all.
    """

    def __init__(
        self,
        processor: OFAProcessor,
        negatives: Negatives,
        image_size: int = 384,
        code_image_size: int = 128,
        augment: bool = True,
        matching: float = 1.0,
    ):
        if not 0 <= matching <= 1:
            raise ValueError(f"matching is {matching}, but must be a part: from 0 to 1.")
        self.matching = matching
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.negatives = negatives
        self.image_size, self.code_image_size = image_size, code_image_size
        self.num_codes = (code_image_size // _PIXELS_PER_CODE) ** 2
        self.infilling = TextInfilling(self.tokenizer)
        self.transforms = {
            "caption": training_transform("caption", image_size, image_size * 5 // 4),
            "visual_grounding": training_transform("visual_grounding", image_size, image_size * 5 // 4),
            "object_detection": training_transform("object_detection", 2 * code_image_size),
        }
        if not augment:
            self.transforms = dict.fromkeys(self.transforms, TrainingTransform(steps=()))
        # Small models have fewer positions; insertions may make a text a little longer.
        room = self.tokenizer.model_max_length - len(self.tokenizer(TASKS["text_infilling"].instruction)["input_ids"])
        self.max_text = min(_TEXT_TOKENS, room * 3 // 4)

    def image_text(self, example: Mapping[str, Any], rng: Randomness) -> list[Row]:
        """
        Gives two rows: a caption or a question, and with it (see `matching`) the question whether one like it is
        right, which it is not half of the time; or a phrase to ground, and its region to describe. An Example of any
        other task, which the official data has not, is one row, asked as in fine-tuning.

        Args:
            example (`Mapping[str, Any]`): An Example.
            rng ([`Randomness`]): Where numbers are drawn, in the official order.
        """
        task = example["task"]
        if task == "visual_grounding":
            return self._grounding(example, rng)
        if task not in ("caption", "vqa"):
            return [{"unlearned": 0, **example, "confidence": _confidence(example)}]
        picture = self.transforms["caption"](self._picture(example), rng=rng).picture
        row = _row(task, picture, example, target=example["target"])
        if task == "caption":
            right = clean_text(example["target"])
            wrong = clean_text(self.negatives.caption(example["target"], example["objects"], rng))
            row["unlearned"] = _HEAD if example.get("source") == _HEADLESS else 0
        else:
            right = example["target"]
            wrong = self.negatives.answer(right, example["confidence"], rng)
            row["text"] = example["text"]
        if self.matching < 1 and rng.python.random() >= self.matching:
            return [row]
        # An object that the caption does not name replaces nothing, and leaves it right.
        matches = rng.python.random() >= 0.5 or wrong == right
        said = right if matches else wrong
        asked = {"text": said} if task == "caption" else {"text": clean_question(row["text"]), "text_pair": said}
        answer = "yes" if matches else "no"
        return [row, _row("image_text_matching", picture, example, target=answer, **asked)]

    def _grounding(self, example: Mapping[str, Any], rng: Randomness) -> list[Row]:
        changed = self.transforms["visual_grounding"].on_row({**example, "image": self._picture(example)}, rng)
        [box], picture, phrase = changed["boxes"], changed["image"], example["text"]
        region = ",".join(map(str, box))
        return [
            _row("visual_grounding", picture, example, text=phrase, target=box),
            _row("grounded_caption", picture, example, text=region, target=phrase),
        ]

    def text_infilling(self, example: Mapping[str, Any], rng: Randomness) -> Row:
        """Gives the text with gaps. It is made of tokens, since gaps may open within words."""
        text = f" {example['target'].strip().lower()}"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][:_READ_TOKENS][-self.max_text :]
        noisy = self.infilling([self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id], rng.torch)
        mask = self.tokenizer.mask_token
        row = _row("text_infilling", None, example, text=mask, target=mask)
        return {**row, "source_ids": noisy[1:-1].tolist(), "target_ids": ids}

    def image_infilling(self, example: Mapping[str, Any], rng: Randomness) -> Row:
        """
        Gives a picture, whose middle the processor blanks, and the codes of that.

        Raises:
            ValueError: There are more or fewer codes than the middle has.
        """
        if len(example["codes"]) != self.num_codes:
            raise ValueError(
                f"{len(example['codes'])} image codes, but the middle of the picture has {self.num_codes} (see "
                "code_image_size)."
            )
        return _row("image_infilling", self._picture(example), example, target=example["codes"])

    def object_detection(self, example: Mapping[str, Any], rng: Randomness) -> Row:
        """Gives a part of a picture and the objects in it, as many as the decoder has positions for."""
        changed = self.transforms["object_detection"].on_row({**example, "image": self._picture(example)}, rng)
        found, room = [], self.tokenizer.model_max_length
        for box, label in zip(changed["boxes"], changed["labels"], strict=True):
            room -= len(box) + len(self.tokenizer(f" {label}", add_special_tokens=False)["input_ids"])
            if room < 0:
                break
            found.append({"box": box, "label": label})
        return _row("object_detection", changed["image"], example, target=found)

    def _picture(self, example: Mapping[str, Any]) -> PIL.Image.Image:
        return self.processor.image_processor.fetch_images(encoded_picture(example["image"]))


def _confidence(example: Mapping[str, Any]) -> float:
    weight = example.get("confidence")
    return 1.0 if weight is None else weight


def _row(task: str, picture: PIL.Image.Image | None, example: Mapping[str, Any], **columns: Any) -> Row:
    return {
        "task": PRETRAINING_TASKS[task],
        "image": picture,
        "confidence": _confidence(example),
        "unlearned": 0,
        **columns,
    }


__all__ = ["PRETRAINING_TASKS", "Negatives", "PretrainingRows"]
