"""OFA's tasks as rows of one table: how each is asked, answered, decoded and measured."""

import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args


Answer = Literal["text", "label", "box", "boxes", "codes"]
DecoderPrompt = Literal["none", "src", "prev_output"]
ImageLayout = Literal["page", "document", "frame"]

_PLACE = re.compile(r"\{\w*\}")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def clean_text(text: str) -> str:
    """
    Cleans an English phrase or sentence as the official data sets do: lower case, no leading punctuation, spaces for
    hyphens and slashes, no double spaces; `<person>`, which stands for names in some data sets, becomes `person`.
    """
    return clean_question(text).replace("<person>", "person")


def clean_question(text: str) -> str:
    """[`clean_text`], but for `<person>`, which questions keep."""
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


def clean_article(text: str) -> str:
    """[`clean_text`] for Gigaword, whose `<unk>` becomes a word."""
    return clean_text(text).replace("<unk>", "unk")


def clean_sentence(text: str) -> str:
    """Cleans a sentence of GLUE: lower case, single spaces."""
    return squeeze(text.lower())


def lower(text: str) -> str:
    """Lower case, and nothing at the ends."""
    return text.strip().lower()


def squeeze(text: str) -> str:
    """Single spaces, and none at the ends."""
    return " ".join(text.split())


def drop_punctuation(text: str) -> str:
    """Deletes ASCII punctuation, as caption training does with its targets."""
    return text.translate(_DELETE_PUNCTUATION).strip()


def clean_print(text: str) -> str:
    """
    Cleans the text of a picture: compatible forms (full width, …) become plain, Chinese becomes simplified, letters
    become small.

    Raises:
        `ImportError`: if the text is Chinese and the package that simplifies it is missing.
    """
    if _CHINESE.search(text):
        try:
            from opencc import OpenCC
        except ImportError as error:
            raise ImportError(
                "Chinese targets of OCR are written in simplified characters: pip install opencc-python-reimplemented."
            ) from error
        text = OpenCC("t2s").convert(text)
    return unicodedata.normalize("NFKC", text).lower()


@dataclass(frozen=True)
class Task:
    """
    One row of the table. A task of your own is a row of your own: pass it wherever a task's name is taken, or name it
    with [`register_task`].

    Args:
        name (`str`): The name.
        instruction (`str`):
            What the encoder reads, with the leading space that BPE sees. `{text}`, `{text_pair}` and `{region}` stand
            for what the user gives, cleaned; a task takes just those texts that its instruction names. A region is a
            box `[x0, y0, x1, y1]` in pixels (or the string `"x0,y0,x1,y1"`), given as `text`, and must come last.
        instruction_zh (`str`, *optional*): The same for the Chinese checkpoints, if the official code has one.
        pair_instruction (`str`, *optional*):
            What the encoder reads where a `text_pair` is given too, for tasks that can do without.
        text_is, text_pair_is (`str`, *optional*): What the texts are, for messages and help.
        takes_image, takes_audio (`bool`): Whether the task is about a picture, or a recording of speech.
        takes_objects (`bool`): Whether names of objects seen in the picture may follow the text: `object: cup plate`.
        clean (`Callable[[str], str]`): Cleans English texts. Chinese ones become lower case only.
        question_mark (`bool`): Whether a text without a question mark gets one.
        max_words, max_tokens (`int`, *optional*):
            With `truncation=True`, the words of each text and the tokens of the whole instruction that are kept.
        answer (`str`):
            What the model writes: `"text"`, `"label"` (one of a closed list of answers), `"box"`, `"boxes"` (boxes
            with labels) or `"codes"` (the words of a picture).
        answers (`tuple[str, ...]`): The closed list, where it belongs to the task and not to the data set.
        labels (`Mapping[str, str]`): The words of the data set for these answers.
        target (`str`): How a text target is written; most have a leading space.
        clean_target (`Callable[[str], str]`): Cleans a text target.
        max_target_words, max_target_tokens (`int`, *optional*): What is kept of a text target.
        ends (`bool`): Whether the model is trained to write `</s>`.
        decoder_prompt (`str`):
            What the official fine-tuning puts in front of the answer in the decoder: `"none"`, the whole source with
            its end (`"src"`) or without it (`"prev_output"`). See [`OFAProcessor`].
        image_size (`int` or `"max"`, *optional*):
            Side of the square that pictures become: of so many pixels, of the processor's `max_image_size`, or by
            default whatever the image processor says.
        image_mean, image_std (`tuple[float, ...]`, *optional*):
            Normalization, if it is not the image processor's.
        image_layout (`str`, *optional*):
            `"page"` keeps the aspect ratio of printed text, `"document"` wraps one long line of it, `"frame"` blanks
            the middle that shall be drawn.
        constrained (`bool`):
            Whether evaluation decodes under the constraint that follows from `answer` (answers, bins, codes). Boxes of
            visual grounding are free in the official evaluation.
        generation (`Mapping[str, Any]`):
            How `generate` decodes at evaluation. By default five beams, thirty tokens at most, ranked by their plain
            probability, which is fairseq's `--unnormalized`.
        metric (`str`): Name of the metric, a key of `modeling_ofa.evaluation.METRICS`.

    Raises:
        `ValueError`: if a field is none of its words, or an instruction names something else than the texts.
    """

    name: str
    instruction: str
    instruction_zh: str | None = None
    pair_instruction: str | None = None
    text_is: str | None = None
    text_pair_is: str | None = None
    takes_image: bool = True
    takes_audio: bool = False
    takes_objects: bool = False
    clean: Callable[[str], str] = clean_text
    question_mark: bool = False
    max_words: int | None = None
    max_tokens: int | None = None
    answer: Answer = "text"
    answers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = " {}"
    clean_target: Callable[[str], str] = str
    max_target_words: int | None = None
    max_target_tokens: int | None = None
    ends: bool = True
    decoder_prompt: DecoderPrompt = "none"
    image_size: int | Literal["max"] | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    image_layout: ImageLayout | None = None
    constrained: bool = True
    generation: Mapping[str, Any] = field(default_factory=lambda: dict(_ANSWER))
    metric: str = "label_accuracy"

    def __post_init__(self):
        named = f"of task {self.name!r}"
        for name, words in (("answer", Answer), ("decoder_prompt", DecoderPrompt), ("image_layout", ImageLayout)):
            value = getattr(self, name)
            if value is not None and value not in get_args(words):
                raise ValueError(f"The {name} {named} is one of {', '.join(get_args(words))}, not {value!r}.")
        for instruction in (self.instruction, self.instruction_zh or "", self.pair_instruction or ""):
            places = _PLACE.findall(instruction)
            if unknown := set(places) - {"{text}", "{text_pair}", "{region}"}:
                raise ValueError(f"Instructions {named} take {{text}}, {{text_pair}} and {{region}}, not {unknown}.")
            if "{region}" in places and not instruction.endswith("{region}"):
                raise ValueError(f"The {{region}} in an instruction {named} must come last.")
        if isinstance(self.answers, str):
            raise ValueError(f"The answers {named} are a list of texts, not the text {self.answers!r}.")
        if self.answers and (strangers := set(self.labels.values()) - set(self.answers)):
            raise ValueError(f"The labels {named} stand for answers, but {strangers} are none.")

    @property
    def takes_text(self) -> bool:
        """`bool`: Whether the user gives a text."""
        return self.takes_region or "{text}" in self.instruction

    @property
    def takes_region(self) -> bool:
        """`bool`: Whether the text that the user gives is a region of the picture."""
        return "{region}" in self.instruction

    @property
    def takes_pair(self) -> bool:
        """`bool`: Whether the user gives, or may give, a second text."""
        return self.needs_pair or self.pair_instruction is not None

    @property
    def needs_pair(self) -> bool:
        """`bool`: Whether the user must give a second text."""
        return "{text_pair}" in self.instruction


# fairseq's beam search never writes padding, and ends what has not ended at the last step (docs/generation.md).
_BEAM = {
    "num_beams": 5,
    "early_stopping": True,
    "do_sample": False,
    "forced_eos_token_id": 2,
    "suppress_tokens": [1],
    "length_penalty": 1.0,
}
_ANSWER: dict[str, Any] = {**_BEAM, "max_new_tokens": 30, "length_penalty": 0.0}
# Sixteen tokens and the end.
_CAPTION = {**_BEAM, "max_new_tokens": 17, "no_repeat_ngram_size": 3}
_DRAW = {"do_sample": True, "top_k": 256, "temperature": 1.0}

_YES_NO = ("yes", "no")
_DESCRIBE = " what does the image describe?"
_MATCH = ' does the image describe " {text} "?'
_IMPLY = ' can text1 " {text} " imply text2 " {text_pair} "?'
_ENTAILMENT = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
_GLUE: dict[str, Any] = {
    "takes_image": False,
    "clean": clean_sentence,
    "max_words": 512,
    "answer": "label",
    "ends": False,
    "decoder_prompt": "src",
    "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": 30},
}

_ROWS = (
    Task(
        "caption",
        _DESCRIBE,
        instruction_zh="图片描述了什么内容?",
        clean_target=drop_punctuation,
        max_target_words=20,
        generation=_CAPTION,
        metric="coco_caption",
    ),
    Task(
        "vqa",
        " {text}",
        text_is="the question",
        takes_objects=True,
        clean=clean_question,
        question_mark=True,
        max_words=80,
        max_target_tokens=30,
        decoder_prompt="prev_output",
        metric="vqa_soft_score",
    ),
    Task(
        "visual_grounding",
        ' which region does the text " {text} " describe?',
        instruction_zh='这段文字" {text} "描述的是哪个区域？',
        text_is="the phrase that names one thing in the picture",
        max_words=80,
        answer="box",
        image_size="max",
        constrained=False,
        # four bins and the end
        generation={**_BEAM, "min_new_tokens": 4, "max_new_tokens": 5},
        metric="grounding_accuracy",
    ),
    Task(
        "grounded_caption",
        "  what does the region describe? region: {region}",
        text_is="the region, x0,y0,x1,y1 in pixels",
        clean_target=clean_text,
        max_target_words=30,
        generation=_CAPTION,
        metric="coco_caption",
    ),
    Task(
        "visual_entailment",
        _MATCH,
        pair_instruction=' can image and text1 " {text_pair} " imply text2 " {text} "?',
        text_is="the hypothesis",
        text_pair_is="the premise, if there is one",
        max_words=80,
        answer="label",
        answers=("yes", "maybe", "no"),
        labels=_ENTAILMENT,
        decoder_prompt="prev_output",
    ),
    Task(
        "image_text_matching",
        _MATCH,
        pair_instruction=' what is the answer to question " {text} ". is " {text_pair} "?',
        text_is="the caption, or a question",
        text_pair_is="an answer to the question, if the text is one",
        max_words=128,
        answer="label",
        answers=_YES_NO,
    ),
    Task(
        "image_classification",
        _DESCRIBE,
        answer="label",
        image_mean=(0.485, 0.456, 0.406),  # ImageNet's
        image_std=(0.229, 0.224, 0.225),
    ),
    Task(
        "object_detection",
        " what are the objects in the image?",
        answer="boxes",
        generation={**_BEAM, "max_new_tokens": 256},
        metric="detection_map",
    ),
    Task(
        "image_generation",
        " what is the complete image? caption: {text}",
        text_is="the caption of the picture to draw",
        takes_image=False,
        clean=squeeze,
        max_words=64,
        answer="codes",
        # 32 x 32 codes of a picture of 256 pixels a side
        generation={**_DRAW, "min_new_tokens": 1024, "max_new_tokens": 1025},
        metric="token_accuracy",
    ),
    Task(
        "image_infilling",
        " what is the image in the middle part?",
        answer="codes",
        image_size=256,
        image_layout="frame",
        # 16 x 16 codes of the middle, 128 pixels a side
        generation={**_DRAW, "min_new_tokens": 256, "max_new_tokens": 257},
        metric="token_accuracy",
    ),
    Task(
        "text_infilling",
        ' what is the complete text of " {text} "?',
        text_is="the text, with <mask> for what is missing",
        takes_image=False,
        clean=lower,
        max_tokens=512,
        clean_target=lower,
        generation={**_BEAM, "max_new_tokens": 257},
        metric="edit_distance",
    ),
    Task(
        "summarization",
        ' what is the summary of article " {text} "?',
        instruction_zh="{text} 请用一个句子简单总结上文：",
        text_is="the article",
        takes_image=False,
        clean=clean_article,
        max_words=512,
        max_tokens=512,
        target="{}",
        clean_target=clean_article,
        max_target_words=128,
        generation={**_BEAM, "num_beams": 6, "max_new_tokens": 33, "no_repeat_ngram_size": 3, "length_penalty": 0.7},
        metric="rouge",
    ),
    Task(
        "cola",
        ' is the text " {text} " grammatically correct?',
        text_is="the sentence",
        answers=_YES_NO,
        labels={"acceptable": "yes", "unacceptable": "no"},
        metric="glue_cola",
        **_GLUE,
    ),
    Task(
        "mnli",
        _IMPLY,
        text_is="the premise",
        text_pair_is="the hypothesis",
        answers=("yes", "maybe", "no"),
        labels=_ENTAILMENT,
        metric="glue_mnli",
        **_GLUE,
    ),
    Task(
        "mrpc",
        ' does text1 " {text} " and text2 " {text_pair} " have the same semantics?',
        text_is="the first sentence",
        text_pair_is="the second sentence",
        answers=_YES_NO,
        labels={"equivalent": "yes", "not_equivalent": "no"},
        metric="glue_mrpc",
        **_GLUE,
    ),
    Task(
        "qnli",
        ' does " {text_pair} " contain the answer to question " {text} "?',
        text_is="the question",
        text_pair_is="the sentence",
        answers=_YES_NO,
        labels={"entailment": "yes", "not_entailment": "no"},
        metric="glue_qnli",
        **_GLUE,
    ),
    Task(
        "qqp",
        ' is question " {text} " and question " {text_pair} " equivalent?',
        text_is="the first question",
        text_pair_is="the second question",
        answers=_YES_NO,
        labels={"duplicate": "yes", "not_duplicate": "no"},
        metric="glue_qqp",
        **_GLUE,
    ),
    Task(
        "rte",
        _IMPLY,
        text_is="the premise",
        text_pair_is="the hypothesis",
        answers=_YES_NO,
        labels={"entailment": "yes", "not_entailment": "no"},
        metric="glue_rte",
        **_GLUE,
    ),
    Task(
        "sst2",
        ' is the sentiment of text " {text} " positive or negative?',
        text_is="the sentence",
        answers=("positive", "negative"),
        metric="glue_sst2",
        **_GLUE,
    ),
    Task(
        "ocr",
        " what are the texts on the image?",
        instruction_zh="图片上的文字是什么?",
        clean_target=clean_print,
        max_target_words=30,
        image_layout="page",
        # sixty-four tokens and the end
        generation={**_BEAM, "max_new_tokens": 65},
        metric="edit_distance",
    ),
    Task(
        "speech_recognition",
        " what does the audio say?",
        takes_image=False,
        takes_audio=True,
        generation={**_BEAM, "max_new_tokens": 257},
        metric="edit_distance",
    ),
)

TASKS: dict[str, Task] = {row.name: row for row in _ROWS}


def get_task(task: str | Task) -> Task:
    """
    Looks up a row of `TASKS`; a row is given back as it is.

    Raises:
        `ValueError`: if there is no such task; the message names those that there are.
    """
    # Pipeline and processor may have copies of this code of their own, as `decodes_rows` explains.
    if not isinstance(task, str) and hasattr(task, "instruction"):
        return task
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"Unknown task {task!r}. The tasks are: {', '.join(map(repr, TASKS))}.")
    return TASKS[task]


def register_task(task: Task) -> Task:
    """
    Adds a row of your own to `TASKS`, so that processor, collator, evaluation and command line know it by name.

    Raises:
        `ValueError`: if the name is taken by another row.
    """
    if TASKS.setdefault(task.name, task) != task:
        raise ValueError(
            f"There is a task {task.name!r} already: choose another name, or pass the row itself as task=."
        )
    return task


__all__ = ["TASKS", "Task", "get_task", "register_task"]
