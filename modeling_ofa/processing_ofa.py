"""OFA's processor: pictures and texts in, model inputs out; token ids in, answers out. Tasks are rows of `TASKS`."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .answers_ofa import AnswerFormat
from .boxes_ofa import BoxCodec
from .constraints_ofa import Constraint, RowLogitsProcessor, RowOptions
from .image_processing_pil_ofa import OFAImageProcessorPil
from .layouts_ofa import hide_middle, ocr_resize
from .rows_ofa import Asked, as_list, rows_of, tasks_of
from .tasks_ofa import TASKS, Task, get_task
from .tokenization_ofa import OFATokenizer
from .trie_ofa import AnswerTrie


DECODER_PROMPTS = ("none", "src", "prev_output", "official")
# A text of the user as OFA's instructions are written, with one space before it. (`strip` leaves Chinese as it is.)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ ' ' + message['content'].strip() }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ ' ' + part['text'].strip() }}"
    "{% endfor %}{% endif %}{% endfor %}"
)
# Options of `generate` that each row of a batch of several tasks has for itself.
_OF_ROWS = ("min_new_tokens", "max_new_tokens", "suppress_tokens", "no_repeat_ngram_size", "length_penalty")


class OFAProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Keyword arguments of a call, and their defaults: texts are padded to the longest of the batch."""

    _defaults = {"text_kwargs": {"padding": True}}


class OFAProcessor(ProcessorMixin):
    r"""
    OFA's processor: an [`OFAImageProcessor`] and an [`OFATokenizer`], and the table of OFA's tasks.

    Args:
        image_processor ([`OFAImageProcessor`]): for the pictures.
        tokenizer ([`OFATokenizer`]): for the texts.
        chat_template (`str`, *optional*):
            A Jinja template for conversations. OFA was trained without one; see [`OFAProcessor.apply_chat_template`].
        max_image_size (`int`, *optional*, defaults to 512):
            Side of the square in which boxes are counted, and to which visual grounding resizes pictures.
        num_beams (`int`, *optional*):
            Beams with which this checkpoint decodes, in place of the tasks' own; 1 is greedy search.
        decoder_prompt (`str`, *optional*, defaults to `"none"`):
            What this checkpoint's decoder reads in front of its answer: nothing (`"none"`), the source with its end
            (`"src"`) or without it (`"prev_output"`), or what each task's official fine-tuning has (`"official"`).
        answers (`dict[str, list[str]]`, *optional*):
            By name of a task, the closed list of answers that this checkpoint was trained with, where the list is not
            the task's own: VQA's answers, the classes of ImageNet.
        clip_boxes (`bool`, *optional*, defaults to `True`):
            Whether what lies outside of the picture is cut off from target boxes. The official code does not, and
            writes `<unk>` for a side that no bin stands for.

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
        decoder_prompt: str = "none",
        answers: dict[str, list[str]] | None = None,
        clip_boxes: bool = True,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.max_image_size = max_image_size
        self.num_beams = num_beams
        self.decoder_prompt = _check_prompt(decoder_prompt)
        if answers is not None and not isinstance(answers, Mapping):
            raise ValueError("answers are closed lists by name of task, such as {'vqa': ['yes', 'no']}.")
        self.answers = answers
        self.clip_boxes = clip_boxes

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
        text: Any = None,
        task: str | Task | Sequence[str | Task] | None = None,
        target: Any = None,
        objects: Sequence[Any] | None = None,
        prompt_type: str | None = None,
        **kwargs: Unpack[OFAProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares a batch for the model. Lists may be any container: tuples, arrays, columns of a data set or a frame.

        Args:
            images (picture or list of pictures, *optional*):
                A picture, or one for each row: whatever [`OFAImageProcessor`] takes, or `None` for a row without one.
                A row may also be a list of at most one picture.
            text (`str`, region or a list of these, *optional*):
                Without `task`, what the encoder reads, as it is (OFA's own instructions start with a space). With
                `task`, the question, phrase, article, … that the task takes, which is cleaned and put into its
                instruction; for `grounded_caption` a region `[x0, y0, x1, y1]` in pixels, or `"x0,y0,x1,y1"`.
            task (`str`, [`Task`] or a list of these, *optional*):
                A name in `TASKS` or a row of your own, for the batch or for each of its rows.
            target (`str`, box, labelled boxes, codes or a list of these, *optional*):
                What the model shall answer, for training: a text; for a closed list one of its answers, or the data
                set's word for it; a box `[x0, y0, x1, y1]` in pixels of the upright original picture;
                `{"boxes": […], "labels": […]}` or a list of `{"box": …, "label": …}`; the numbers of image codes.
            objects (`list[str]` or a list of these, *optional*):
                Names of objects seen in each picture, for tasks that take them (at most 30 are read). An empty list is
                "none found", which is not the same as `None`.
            prompt_type (`str`, *optional*):
                In place of the processor's `decoder_prompt`.
            **kwargs:
                `text_pair` (`str` or a list), the second text, in the order of the data sets: GLUE's, and the premise
                of visual entailment. For the tokenizer `padding`, which is to the longest text by default,
                `truncation`, `max_length`, …; for the image processor `size`, …; and `return_tensors`. With `task`,
                `truncation=True` first cuts the user's texts to the number of words of the official recipe, so that
                the instruction stays whole.

        Returns:
            [`BatchFeature`]: with these fields:

            - **input_ids**, **attention_mask** of shape `(batch, length)`, if there is a text or task.
            - **pixel_values** of shape `(batch, 3, height, width)` and **patch_masks** of shape `(batch,)`, if there
              is an image; rows without one are zeros, and `False` in `patch_masks`. In a batch of several tasks all
              pictures get the size of the task that wants the largest.
            - **code_masks** of shape `(batch,)`, if a task answers with image codes: which rows do.
            - **labels** of shape `(batch, target length)`, if there is a `target`, padded with -100.
            - **decoder_input_ids**, **decoder_attention_mask** of shape `(batch, target length)`, if there are decoder
              prompts: the prompts, padded on the right, with the targets behind them if there are any.
            - **decoder_prompt_lengths** of shape `(batch,)`, if there are prompts and targets: where `generate`, given
              such a batch as it is, takes up.

        Raises:
            `ValueError`: if the task is unknown, if something that it needs is missing, if images, texts and targets
                do not match in number, if a text is longer than the model's positions, or if a picture or box is bad.
        """
        merged = self._merge_kwargs(
            OFAProcessorKwargs, tokenizer_init_kwargs=getattr(self.tokenizer, "init_kwargs", None), **kwargs
        )
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        return_tensors = text_kwargs.pop("return_tensors", None)
        return_tensors = images_kwargs.pop("return_tensors", None) or return_tensors
        text_pair = text_kwargs.pop("text_pair", None)

        rows = rows_of(images, text, task, text_pair, objects)
        fetch = self.image_processor.fetch_images
        rows = [row if row.picture is None else row._replace(picture=fetch(row.picture)) for row in rows]
        codecs = self._codecs(rows, images_kwargs)
        data: dict[str, Any] = {}
        if any(row.task is not None or row.text is not None for row in rows):
            data.update(self._encode_texts(rows, codecs, text_kwargs))
        if any(row.picture is not None for row in rows):
            data.update(self._encode_pictures(rows, images_kwargs))
        draws = [row.task is not None and row.task.answer == "codes" for row in rows]
        if any(draws):
            data["code_masks"] = draws
        bodies = None if target is None else self._encode_targets(target, rows, codecs)
        prompts = self._prompts(rows, prompt_type, data)
        pads = text_kwargs.get("padding") not in (None, False, "do_not_pad")
        data.update(self._decoder_side(rows, prompts, bodies, pads))
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Turns conversations into what the encoder reads. OFA knows no dialogue, so without a template of your own a
        conversation is one message of the user: an instruction of OFA's, the space before it left to this method, and
        at most one picture.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                `[{"role": "user", "content": [{"type": "image", "image": …}, {"type": "text", "text": …}]}]`, or
                several of these.
            chat_template (`str`, *optional*): A Jinja template, in place of the processor's.
            **kwargs: As in [`ProcessorMixin.apply_chat_template`]: `tokenize`, `return_dict`, `return_tensors`, ….

        Raises:
            `ValueError`: if a conversation has other messages or parts than that.
        """
        if chat_template is None and self.chat_template is None:
            chat_template = _CHAT_TEMPLATE
            for messages in [conversation] if isinstance(conversation[0], Mapping) else conversation:
                _check_conversation(messages)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def generation_kwargs(
        self,
        task: str | Task | Sequence[str | Task],
        answers: Sequence[str] | AnswerTrie | Mapping[str, Sequence[str] | AnswerTrie] | None = None,
        constrained: bool | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """
        Gives the keyword arguments of `generate` with which a task is decoded at evaluation. They may be used for
        any number of calls.

        Args:
            task (`str`, [`Task`] or a list of these):
                A task, or one for each row of a batch: then every row has its own length and constraint. It gets the
                answer that it gets alone, if all tasks want as many beams and pictures of one size.
            answers (`list[str]`, [`AnswerTrie`] or a `dict` of these by name of task, *optional*):
                The closed list of answers, in place of the task's own or the processor's `answers`. Make a trie once
                ([`OFAProcessor.answer_trie`]) where the list is long.
            constrained (`bool`, *optional*):
                Whether to let the model write nothing but what answers this task (one of the answers, bins, codes). By
                default as the official evaluation does.
            **options: Options of `generate` in place of the tasks' own, such as `num_beams=1`.

        Raises:
            `ValueError`: if the task is unknown, if one list of answers is given for several tasks, if answers are not
                texts, or if tasks that sample and tasks that search share a batch.
        """
        rows = tasks_of(task)
        if answers is not None and not isinstance(answers, Mapping):
            if any(row.name != rows[0].name for row in rows):
                raise ValueError("One list of answers for several tasks: give answers={'vqa': […]}, by name of task.")
            if rows[0].answer not in ("text", "label"):
                raise ValueError(f"Task {rows[0].name!r} answers with no text; leave answers= out.")
            answers = {rows[0].name: answers}
        firsts = [rows.index(row) for row in rows]  # a constraint is shared by the rows of a task
        constraints: dict[int, Constraint | None] = {}
        for first in set(firsts):
            row = rows[first]
            limited = row.constrained if constrained is None else constrained
            known = (answers or {}).get(row.name)
            known = self.closed_list(row) if known is None else known
            constraints[first] = self._format.constraint(row, known) if limited else None
        if len(constraints) > 1:
            return self._mixed_options(rows, [constraints[first] for first in firsts], options)
        search, constraint = self._search_options(rows[0], options), constraints[0]
        if constraint is not None:
            search["logits_processor"] = [RowLogitsProcessor(RowOptions(constraint), self.tokenizer.eos_token_id)]
        return search

    def closed_list(self, task: str | Task) -> Sequence[str] | None:
        """
        Gives the answers among which a task chooses, its own or this checkpoint's, or `None` if it writes freely.

        Args:
            task (`str` or [`Task`]): The task.
        """
        row = get_task(task)
        return row.answers or (self.answers or {}).get(row.name)

    def answer_trie(self, answers: Sequence[str], task: str | Task = "vqa") -> AnswerTrie:
        """
        Gives the trie of a closed list of answers, for `generation_kwargs` and for the model's `score_candidates`.

        Args:
            answers (`list[str]`): The answers.
            task (`str` or [`Task`]): The task, which tells how an answer is written.
        """
        return self._format.trie(answers, get_task(task))

    def post_process(
        self,
        ids: Any,
        task: str | Task | Sequence[str | Task],
        image_sizes: Sequence[Any] | None = None,
        scores: Sequence[float] | None = None,
        size: int | Mapping[str, int] | None = None,
        transition_scores: Any = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """
        Turns generated token ids into answers.

        Args:
            ids (`torch.LongTensor` of shape `(rows, length)`, `list[list[int]]` or `ModelOutput`):
                What `generate` gives. With `num_return_sequences` there may be several rows for each picture.
            task (`str`, [`Task`] or a list of these): The task, or that of each row of the batch.
            image_sizes (`list[tuple[int, int]]`, *optional*):
                Height and width of each upright original picture, for tasks that answer with boxes.
            scores (`torch.FloatTensor` of shape `(rows,)` or `list[float]`, *optional*):
                A score for each row, such as `sequences_scores` of `generate`.
            size (`int` or `dict[str, int]`, *optional*):
                The `size` that the call was given, if it was given one.
            transition_scores (`torch.FloatTensor` of shape `(rows, steps)`, *optional*):
                Log-probabilities of the generated tokens, `model.compute_transition_scores(…)` (of greedy search and
                sampling, which keep logits, with `normalize_logits=True`): what scores are made of where `scores` is
                not given. The score of a label is its probability, that of a text, of a box or of a box with its label
                the geometric mean of the probabilities of its tokens.
            inputs (`Mapping`, *optional*):
                What the call gave. Needed where rows have decoder prompts, which are no part of the answer, and where
                the size of the pictures is neither the tasks' own nor `size`.

        Returns:
            `list[dict[str, Any]]`: For each row, by what its task answers with:

            - a text: `{"text": …}`, and, where it holds locations and `image_sizes` are given, what boxes have,
            - a label: `{"label": …}`,
            - a box: `{"boxes": [[x0, y0, x1, y1]], "scores": [score or None]}` in pixels of the original picture; both
              are empty if the model did not answer with four bins,
            - boxes: the same with `"labels"`, texts,
            - codes: `{"codes": […]}`, numbers from 0.

            Texts, labels and codes have a `"score"` if there are scores.

        Raises:
            `ValueError`: if the task is unknown, if `ids` are no rows of ids, or if sizes or scores are missing, are
                none, or do not match in number.
        """
        generated = [as_list(one) for one in as_list(getattr(ids, "sequences", ids))]
        if any(not isinstance(one, list) for one in generated):
            raise ValueError("ids are rows of token ids, as generate gives them: of shape (rows, length).")
        count = len(generated)
        rows, sizes, row_scores = tasks_of(task), as_list(image_sizes), as_list(scores)
        if count % len(rows):
            raise ValueError(f"{len(rows)} tasks do not match {count} rows of ids.")
        log_probs = as_list(transition_scores)
        for name, values in (("scores", row_scores), ("transition_scores", log_probs)):
            if values is not None and len(values) != count:
                raise ValueError(f"{len(values)} {name} for {count} rows of ids.")
        if log_probs is not None and max((one for row in log_probs for one in row), default=0.0) > 1e-3:
            raise ValueError(
                "transition_scores are log-probabilities, but some are above 0: these are the logits of greedy search "
                "or sampling. Pass normalize_logits=True to compute_transition_scores."
            )
        if sizes is not None and (len(sizes) == 0 or count % len(sizes)):
            raise ValueError(f"{len(sizes)} image_sizes do not match {count} rows of ids.")
        lengths = None if inputs is None else inputs.get("decoder_prompt_lengths")
        if inputs is not None and lengths is None and inputs.get("decoder_attention_mask") is not None:
            lengths = [sum(one) for one in inputs["decoder_attention_mask"]]
        answers = []
        for i, tokens in enumerate(generated):
            row = rows[i * len(rows) // count]
            start = 1 if lengths is None else int(lengths[i * len(lengths) // count])
            written = self._format.cut_out(tokens, start, None if log_probs is None else log_probs[i])
            image_size = None if sizes is None else sizes[i * len(sizes) // count]
            if image_size is None and row.answer in ("box", "boxes"):
                raise ValueError(f"Task {row.name!r} answers with boxes: give image_sizes=[(height, width), …].")
            codec = None
            if image_size is not None and (row.answer in ("box", "boxes") or self._format.has_bins):
                codec = self._codec(_height_and_width(image_size), self._sides(rows, size, inputs))
            score = None if row_scores is None else row_scores[i]
            answers.append(self._format.parse(row, written, score, codec))
        return answers

    def post_process_candidates(
        self, log_probs: torch.Tensor, answers: Sequence[str], task: str | Task, top_k: int = 1
    ) -> list[dict[str, Any]]:
        """
        Turns the scores of a closed list of answers into answers.

        Args:
            log_probs (`torch.FloatTensor` of shape `(rows, answers)`): What the model's `score_candidates` gives.
            answers (`list[str]`): The answers, in the order in which they were scored.
            task (`str` or [`Task`]): The task.
            top_k (`int`, *optional*, defaults to 1): How many of the best answers to list under `"ranking"`.

        Returns:
            `list[dict[str, Any]]`: For each row the best answer (`"label"` or `"text"`), its probability as `"score"`,
            and with `top_k > 1` `"ranking"`, a list of `(answer, probability)`.

        Raises:
            `ValueError`: if the task is unknown, or if answers and scores do not match in number.
        """
        if len(answers) != log_probs.shape[-1]:
            raise ValueError(f"{len(answers)} answers for the scores of {log_probs.shape[-1]}.")
        key = "label" if get_task(task).answer == "label" else "text"
        values, order = log_probs.float().topk(min(top_k, log_probs.shape[-1]), dim=-1)
        results = []
        for row_values, row_order in zip(values.exp().tolist(), order.tolist(), strict=True):
            ranking = [(answers[i], value) for i, value in zip(row_order, row_values, strict=True)]
            result: dict[str, Any] = {key: ranking[0][0], "score": ranking[0][1]}
            results.append({**result, "ranking": ranking} if top_k > 1 else result)
        return results

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
        return self._format.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: What a call with image and text gives."""
        return [*super().model_input_names, "patch_masks"]

    @property
    def _format(self) -> AnswerFormat:
        return AnswerFormat(self.tokenizer, self.clip_boxes)

    # The encoder's side

    def _codecs(self, rows: Sequence[Asked], images_kwargs: dict[str, Any]) -> list[BoxCodec | None]:
        """Settles the size of the batch's pictures in `images_kwargs`, and gives what makes tokens of their boxes."""
        tasks = [row.task for row in rows if row.task is not None]
        if images_kwargs.get("size") is None and any(task.image_size is not None for task in tasks):
            height, width = self._sides(tasks)
            images_kwargs["size"] = {"height": height, "width": width}
        needs_boxes = [row.task is not None and row.picture is not None for row in rows]
        if not any(needs_boxes) or not self._format.has_bins:
            return [None] * len(rows)
        sides = self._sides(tasks, images_kwargs.get("size"))
        return [
            self._codec(_picture_size(row.picture), sides) if needs else None
            for row, needs in zip(rows, needs_boxes, strict=True)
        ]

    def _codec(self, image_size: Sequence[float], sides: tuple[int, int]) -> BoxCodec:
        """Gives what makes tokens of the boxes of a picture."""
        bins = self._format.bins()
        return BoxCodec(image_size, sides, self.max_image_size, bins.start, len(bins))

    def _sides(
        self, tasks: Sequence[Task], size: Any = None, inputs: Mapping[str, Any] | None = None
    ) -> tuple[int, int]:
        """
        Gives the height and width that the pictures of a batch have: those of what the call gave (`inputs`), of the
        `size` that it was given, or else what the task wants that wants the largest.
        """
        if size is None and inputs is not None and inputs.get("pixel_values") is not None:
            height, width = inputs["pixel_values"][0].shape[-2:]
            return int(height), int(width)
        sizes = [size]
        if size is None:
            default = getattr(self.image_processor, "size", None) or self.max_image_size
            wanted = [task.image_size or default for task in tasks if task.takes_image] or [default]
            sizes = [self.max_image_size if one == "max" else one for one in wanted]
        sides = []
        for one in sizes:
            if isinstance(one, int):
                one = {"height": one, "width": one}
            if "height" not in one or "width" not in one:
                raise ValueError(f"Boxes need a size with height and width, not {dict(one)}.")
            sides.append((one["height"], one["width"]))
        return max(sides)

    def _encode_texts(
        self, rows: Sequence[Asked], codecs: Sequence[BoxCodec | None], text_kwargs: dict[str, Any]
    ) -> Mapping[str, Any]:
        """Tokenises the texts, put into the task's instruction where there is one."""
        truncates = text_kwargs.get("truncation") not in (None, False, "do_not_truncate")
        limits = [row.task.max_tokens for row in rows if row.task is not None and row.task.max_tokens is not None]
        if truncates and limits:
            text_kwargs.setdefault("max_length", min(limits) + 2)  # with the start and the end
        encoded = self.tokenizer([self._source(row, truncates) for row in rows], **text_kwargs)
        pad = self.tokenizer.pad_token_id
        for i, (row, ids) in enumerate(zip(rows, encoded["input_ids"], strict=True)):
            length, limit = len(ids) - ids.count(pad), self.tokenizer.model_max_length
            if length > limit:
                raise ValueError(
                    f"Text {i} is {length:,} tokens long, but the model has {limit:,} positions. Shorten it, or "
                    "pass truncation=True to drop the end."
                )
            if row.task is not None and row.task.takes_region:
                bins = self._format.encode_box(row.text, codecs[i])
                places = [k for k, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
                for place, token in zip(places[-4:], bins, strict=True):
                    ids[place] = token
        return encoded

    def _source(self, row: Asked, truncates: bool) -> str:
        """Gives what the encoder reads."""
        task, _, text, pair, objects = row
        if task is None:
            return text or ""
        source = task.instruction
        if self._format.is_chinese and task.instruction_zh is not None:
            source = task.instruction_zh
        elif pair is not None and task.pair_instruction is not None:
            source = task.pair_instruction
        max_words = task.max_words if truncates else None
        # Chinese word pieces spell `<bin_i>` out, so the places of a region are written as masks at first.
        given = {"{region}": self.tokenizer.mask_token * 4}
        if text is not None and not task.takes_region:
            given["{text}"] = self._clean(text, task, max_words)
        if pair is not None:
            given["{text_pair}"] = self._clean(pair, task, max_words, is_pair=True)
        source = re.sub(r"\{(text|text_pair|region)\}", lambda match: given.get(match[0], ""), source)
        if objects is not None:
            names = objects.split("&&") if isinstance(objects, str) else list(objects)
            source = f"{source} object: {' '.join(names[:30])}"
        return source

    def _clean(self, text: str, task: Task, max_words: int | None, is_pair: bool = False) -> str:
        """Cleans the user's text for an instruction."""
        if self._format.is_chinese:
            text = text.lower().strip()[:max_words]
        else:
            text = task.clean(text)
            if max_words is not None and len(words := text.split(" ")) > max_words:
                text = " ".join(words[:max_words])
        asks = task.question_mark and not is_pair
        return f"{text}?" if asks and not text.endswith(("?", "？")) else text

    def _encode_pictures(self, rows: Sequence[Asked], images_kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        """Gives the pixels of the rows that have a picture, and zeros for the others."""
        groups: dict[tuple, list[int]] = {}
        for i, (task, picture, *_) in enumerate(rows):
            if picture is not None:
                groups.setdefault((None, None) if task is None else (task.image_mean, task.image_std), []).append(i)
        pixels: list[Any] = [None] * len(rows)
        for (mean, std), members in groups.items():
            own = {} if mean is None else {"image_mean": list(mean), "image_std": list(std)}
            laid_out = [self._lay_out(rows[i], images_kwargs) for i in members]
            values = self.image_processor(laid_out, **{**own, **images_kwargs})["pixel_values"]
            for i, one in zip(members, values, strict=True):
                task = rows[i].task
                pixels[i] = hide_middle(one) if task is not None and task.image_layout == "frame" else one
        first = next(one for one in pixels if one is not None)
        return {
            "pixel_values": [first * 0 if one is None else one for one in pixels],
            "patch_masks": [row.picture is not None for row in rows],
        }

    def _lay_out(self, row: Asked, images_kwargs: dict[str, Any]) -> Any:
        """Gives a picture, put on a square with its aspect ratio kept if the task wants that."""
        task, picture = row.task, row.picture
        if task is None or task.image_layout not in ("page", "document"):
            return picture
        if not isinstance(picture, PIL.Image.Image):
            raise ValueError(
                f"Task {task.name!r} keeps the aspect ratio of its picture, which must be a picture, no array."
            )
        side, _ = self._sides([task], images_kwargs.get("size"))
        return ocr_resize(picture, side, document=task.image_layout == "document")

    # The decoder's side

    def _encode_targets(
        self, target: Any, rows: Sequence[Asked], codecs: Sequence[BoxCodec | None]
    ) -> list[list[int]]:
        """Gives the ids that the decoder shall write in each row, without the end."""
        targets = as_list(target)
        if not isinstance(targets, list) or (len(rows) == 1 and len(targets) != 1):
            targets = [targets]
        if len(targets) != len(rows):
            raise ValueError(f"{len(targets)} targets for {len(rows)} rows of images and texts.")
        bodies = []
        for i, (one, row, codec) in enumerate(zip(targets, rows, codecs, strict=True)):
            try:
                bodies.append(self._format.encode(one, row.task, codec))
            except ValueError as error:
                raise ValueError(f"Target {i}: {error}") from error
        return bodies

    def _prompts(
        self, rows: Sequence[Asked], prompt_type: str | None, data: Mapping[str, Any]
    ) -> list[list[int]] | None:
        """Gives what each row's decoder reads before its answer, `<s>` included; `None` if it is nothing else."""
        chosen = _check_prompt(self.decoder_prompt if prompt_type is None else prompt_type)
        kinds = [chosen] * len(rows)
        if chosen == "official":
            kinds = ["none" if row.task is None else row.task.decoder_prompt for row in rows]
        if all(kind == "none" for kind in kinds):
            return None
        if "input_ids" not in data:
            raise ValueError(
                f"A decoder prompt of type {chosen!r} repeats the text for the decoder, but there is no text."
            )
        prompts = []
        for kind, ids in zip(kinds, data["input_ids"], strict=True):
            source = [token for token in ids if token != self.tokenizer.pad_token_id]
            cut = {"none": 1, "src": len(source), "prev_output": len(source) - 1}[kind]
            prompts.append(source[:cut])
        return prompts

    def _decoder_side(
        self, rows: Sequence[Asked], prompts: list[list[int]] | None, bodies: list[list[int]] | None, pads: bool
    ) -> dict[str, Any]:
        """Gives labels and decoder inputs, as far as there are targets and prompts."""
        data: dict[str, list[Any]] = {}
        if bodies is not None:
            for i, (row, body) in enumerate(zip(rows, bodies, strict=True)):
                before = len(prompts[i]) - 1 if prompts else 0
                ends = row.task is None or row.task.ends
                label = [-100] * before + body + ([self.tokenizer.eos_token_id] if ends else [])
                limit = self.tokenizer.model_max_length + 1  # decoders have positions for 1,024 codes and a start
                if len(label) > limit:
                    raise ValueError(
                        f"Target {i} is {len(label):,} tokens long, but the model has {limit:,} positions."
                    )
                data.setdefault("labels", []).append(label)
        if prompts is not None:
            data["decoder_input_ids"] = (
                prompts
                if bodies is None
                else [
                    [*prompt, *label[len(prompt) - 1 : -1]]
                    for prompt, label in zip(prompts, data["labels"], strict=True)
                ]
            )
            data["decoder_attention_mask"] = [[1] * len(ids) for ids in data["decoder_input_ids"]]
        if pads:
            fill = {"labels": -100, "decoder_input_ids": self.tokenizer.pad_token_id, "decoder_attention_mask": 0}
            for name, lists in data.items():
                longest = max(map(len, lists))
                data[name] = [ids + [fill[name]] * (longest - len(ids)) for ids in lists]
        if prompts is not None and bodies is not None:
            data["decoder_prompt_lengths"] = [len(prompt) for prompt in prompts]
        return data

    # Constraints and search

    def _search_options(self, row: Task, given: Mapping[str, Any]) -> dict[str, Any]:
        """Gives a task's options of `generate`, for this checkpoint, with those that the user gave in their place."""
        options = {"do_sample": False, **row.generation}
        if self.num_beams is not None and not options["do_sample"]:
            options["num_beams"] = self.num_beams
        options |= given
        # Small models have fewer positions than the longest answers need.
        limit = self.tokenizer.model_max_length + 1
        options["max_new_tokens"] = min(options.get("max_new_tokens", limit), limit)
        if "min_new_tokens" in options:
            options["min_new_tokens"] = min(options["min_new_tokens"], limit - 1)
        if options.get("num_beams", 1) == 1:
            for name in ("early_stopping", "length_penalty"):  # of beams alone
                options.pop(name, None)
        return options

    def _mixed_options(
        self, rows: Sequence[Task], constraints: Sequence[Constraint | None], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Gives the options of a batch of several tasks."""
        searches = [self._search_options(row, given) for row in rows]
        if len({options["do_sample"] for options in searches}) > 1:
            names = ", ".join(sorted({row.name for row in rows}))
            raise ValueError(f"Tasks that sample and tasks that search cannot share a batch: {names}.")
        entries = []
        for constraint, options in zip(constraints, searches, strict=True):
            own = {name: options[name] for name in _OF_ROWS if name in options}
            entries.append(RowOptions(constraint=constraint, **own))
        shared = {name: value for options in searches for name, value in options.items() if name not in _OF_ROWS}
        shared.pop("forced_eos_token_id", None)  # each row's own `max_new_tokens` forces it
        shared["num_beams"] = max(options.get("num_beams", 1) for options in searches)
        shared["max_new_tokens"] = max(entry.max_new_tokens or 0 for entry in entries)
        return {**shared, "logits_processor": [RowLogitsProcessor(entries, self.tokenizer.eos_token_id)]}


def _check_conversation(messages: Any) -> None:
    roles = [message["role"] for message in messages]
    if roles != ["user"]:
        raise ValueError(
            "OFA answers one instruction and was trained on no dialogue: a conversation is one message of the user, "
            f"not {', '.join(roles) or 'none'}."
        )
    content = messages[0]["content"]
    kinds = ["text"] if isinstance(content, str) else [part["type"] for part in content]
    if sorted(kinds) not in (["text"], ["image", "text"], ["image_url", "text"]):
        raise ValueError(
            f"A message to OFA is one text and at most one picture, not {', '.join(map(str, kinds)) or 'nothing'}."
        )


def _check_prompt(decoder_prompt: str) -> str:
    if decoder_prompt not in DECODER_PROMPTS:
        raise ValueError(
            f"A decoder prompt is one of {', '.join(map(repr, DECODER_PROMPTS))}, not {decoder_prompt!r}."
        )
    return decoder_prompt


def _picture_size(picture: Any) -> tuple[int, int]:
    """Gives height and width of a picture or an array that [`OFAImageProcessor`] takes."""
    if isinstance(picture, PIL.Image.Image):
        return picture.height, picture.width
    shape = tuple(picture.shape)
    return (shape[1], shape[2]) if shape[0] <= 4 else (shape[0], shape[1])


def _height_and_width(image_size: Any) -> tuple[float, float]:
    """Gives the size of a picture, in any container, as plain numbers."""
    sides = as_list(image_size)
    sides = [as_list(side) for side in sides] if isinstance(sides, list) else []
    if len(sides) != 2 or not all(isinstance(side, int | float) and side > 0 for side in sides):
        raise ValueError(f"image_sizes holds (height, width) of each picture in pixels, not {image_size!r}.")
    return sides[0], sides[1]


__all__ = ["TASKS", "OFAProcessor", "Task"]
