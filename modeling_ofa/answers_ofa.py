"""What a task answers with, both ways: targets as tokens for training, tokens as answers, and what may be written."""

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .boxes_ofa import BoxCodec
from .constraints_ofa import BoxConstraint, Constraint, LabelledBoxesConstraint, TokenRange, TrieConstraint
from .rows_ofa import as_list
from .tasks_ofa import Task
from .trie_ofa import AnswerTrie


_SPACE_IN_CHINESE = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")


class Written(NamedTuple):
    """
    The answer in a generated row.

    Args:
        tokens (`list[int]`): Its ids, without prompt, end and padding.
        log_probs (`list[float]`, *optional*): Their log-probabilities, and the end's if it was written.
    """

    tokens: list[int]
    log_probs: list[float] | None


class AnswerFormat:
    """
    How answers are written with a tokenizer.

    Args:
        tokenizer ([`OFATokenizer`]): The tokenizer.
        clip_boxes (`bool`): Whether what lies outside of the picture is cut off from target boxes.
    """

    def __init__(self, tokenizer: Any, clip_boxes: bool = True):
        self.tokenizer = tokenizer
        self.clip_boxes = clip_boxes
        self.is_chinese = getattr(tokenizer, "is_chinese", False)

    @property
    def has_bins(self) -> bool:
        """`bool`: Whether the tokenizer can speak of boxes."""
        return getattr(self.tokenizer, "bin_start_id", None) is not None

    def bins(self) -> range:
        """
        `range`: The ids of `<bin_0>`, `<bin_1>`, …

        Raises:
            `ValueError`: if the tokenizer has none.
        """
        start, number = getattr(self.tokenizer, "bin_start_id", None), getattr(self.tokenizer, "num_bins", 0)
        if start is None or not number:
            raise ValueError("This tokenizer has no <bin_i> tokens, so it cannot speak of boxes.")
        return range(start, start + number)

    def codes(self) -> range:
        """
        `range`: The ids of `<code_0>`, `<code_1>`, …

        Raises:
            `ValueError`: if the tokenizer has none.
        """
        start, number = getattr(self.tokenizer, "code_start_id", None), getattr(self.tokenizer, "num_codes", 0)
        if start is None or not number:
            raise ValueError("This tokenizer has no <code_i> tokens, so it cannot speak of pictures.")
        return range(start, start + number)

    # Targets

    def encode(self, target: Any, row: Task | None, codec: BoxCodec | None) -> list[int]:
        """
        Gives the ids of a target, without the end.

        Args:
            target: What [`OFAProcessor.__call__`] takes for one row.
            row ([`Task`], *optional*): Its task; without one a text is taken as it is.
            codec ([`BoxCodec`], *optional*): For the boxes of its picture.

        Raises:
            `ValueError`: if the target is not what the task answers with.
        """
        kind = "text" if row is None else row.answer
        if kind == "box":
            return self.encode_box(target, codec)
        if kind == "boxes":
            parts = [[*self.encode_box(box, codec), *self._words(f" {label}")] for box, label in _labelled(target)]
            return [token for part in parts for token in part]
        if kind == "codes":
            return self._encode_codes(target)
        if not isinstance(target, str):
            hint = ""
            if isinstance(target, int) and kind == "label":
                hint = " Numbers of labels differ between data sets: give their names, as ClassLabel.int2str has them."
            raise ValueError(f"A target is a text here, not {target!r}.{hint}")
        return self._words(target) if row is None else self._encode_text(target, row)

    def encode_box(self, box: Any, codec: BoxCodec | None) -> list[int]:
        """Gives the ids of the four bins of a box in pixels."""
        self.bins()
        if codec is None:
            raise ValueError("A box needs its picture: give images=.")
        return codec.encode(box, self.clip_boxes, self.tokenizer.unk_token_id)

    def _words(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_text(self, target: str, row: Task) -> list[int]:
        if row.answers:
            target = row.labels.get(target, target)
            if target not in row.answers:
                words = ", ".join(map(repr, (*row.answers, *row.labels)))
                raise ValueError(f"Task {row.name!r} is answered by one of {words}, not by {target!r}.")
        target = row.clean_target(target)
        if row.max_target_words is not None:
            # What a picture of Chinese text says has no words to count.
            if self.is_chinese and row.image_layout in ("page", "document"):
                target = target[: row.max_target_words]
            else:
                target = " ".join(target.split()[: row.max_target_words])
        return self._words(row.target.format(target))[: row.max_target_tokens]

    def _encode_codes(self, codes: Any) -> list[int]:
        ids = self.codes()
        try:
            given = codes.split() if isinstance(codes, str) else as_list(codes)
            numbers = [int(one) if isinstance(one, str) else operator.index(one) for one in given]
        except (TypeError, ValueError):
            raise ValueError(f"Image codes are whole numbers, not {codes!r}.") from None
        if bad := [one for one in numbers if not 0 <= one < len(ids)]:
            raise ValueError(f"Image codes are numbers from 0 to {len(ids) - 1}, not {bad[0]}.")
        return [ids[one] for one in numbers]

    # What may be written

    def trie(self, answers: Iterable[str], row: Task) -> AnswerTrie:
        """
        Gives the trie of a closed list of answers of a task.

        Raises:
            `ValueError`: if there is no answer, or one that is no text, or a blank one.
        """
        if isinstance(answers, str):
            raise ValueError(f"A closed list is a list of texts, not the text {answers!r}.")
        answers = list(answers)
        if not answers:
            raise ValueError("There is no answer to choose from: pass at least one.")
        for i, answer in enumerate(answers):
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(f"Answer {i} of the closed list is {answer!r}, which is no text to choose.")
        texts = [row.target.format(answer) for answer in answers]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return AnswerTrie(ids, eos_token_id=self.tokenizer.eos_token_id)

    def constraint(self, row: Task, answers: Iterable[str] | AnswerTrie | None) -> Constraint | None:
        """
        Gives what a task may write, or `None` if that is anything.

        Args:
            row ([`Task`]): The task.
            answers (`Iterable[str]` or [`AnswerTrie`], *optional*): Its closed list, if it has one.
        """
        eos = self.tokenizer.eos_token_id
        if row.answer in ("text", "label"):
            if answers is None:
                return None
            return TrieConstraint(answers if isinstance(answers, AnswerTrie) else self.trie(answers, row))
        if row.answer == "codes":
            codes = self.codes()
            return TokenRange(codes.start, codes.stop, others=(eos,))
        bins = self.bins()
        if row.answer == "box":
            return BoxConstraint(bins.start, bins.stop, eos)
        code_start = getattr(self.tokenizer, "code_start_id", None)
        words = bins.start if code_start is None else min(bins.start, code_start)
        return LabelledBoxesConstraint(bins.start, bins.stop, text_stop=words, eos_token_id=eos)

    # Answers

    def cut_out(self, tokens: list[int], prompt_length: int, log_probs: Sequence[float] | None) -> Written:
        """
        Cuts the answer out of a generated row.

        Args:
            tokens (`list[int]`): All ids.
            prompt_length (`int`): How many of them the decoder was given, with the start token.
            log_probs (`Sequence[float]`, *optional*): Log-probabilities of the last of them, one each.
        """
        bos, eos, pad = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        start = 0 if prompt_length <= 1 and tokens[:1] != [bos] else prompt_length  # there may be no start token
        end = next((place for place in range(start, len(tokens)) if tokens[place] == eos), len(tokens))
        own = None
        if log_probs is not None:
            before = len(tokens) - len(log_probs)
            own = [float(one) for one in log_probs[max(start - before, 0) : end + 1 - before]]
        return Written([token for token in tokens[start:end] if token not in (bos, pad)], own)

    def parse(self, row: Task, written: Written, score: float | None, codec: BoxCodec | None) -> dict[str, Any]:
        """
        Turns the ids of one answer into the answer, as [`OFAProcessor.post_process`] describes it.

        Args:
            row ([`Task`]): The task.
            written ([`Written`]): The answer.
            score (`float`, *optional*): Its score, instead of one made of its log-probabilities.
            codec ([`BoxCodec`], *optional*): For the boxes of its picture. Needed for tasks that answer with boxes.
        """
        if row.answer in ("box", "boxes") and codec is not None:
            return self._parse_boxes(row, written, score, codec)
        if row.answer == "codes":
            codes = self.codes()
            answer: dict[str, Any] = {"codes": [one - codes.start for one in written.tokens if one in codes]}
        else:
            bins = self.bins() if codec is not None else ()
            [text] = self.decode([[one for one in written.tokens if one not in bins]])
            answer = {"label" if row.answer == "label" else "text": text}
            if codec is not None and any(one in bins for one in written.tokens):
                answer |= self._parse_boxes(replace(row, answer="boxes"), written, score, codec)
        if score is None and written.log_probs:
            total = math.fsum(written.log_probs)
            score = math.exp(total if row.answer == "label" else total / len(written.log_probs))
        return answer if score is None else {**answer, "score": score}

    def _parse_boxes(self, row: Task, written: Written, score: float | None, codec: BoxCodec) -> dict[str, Any]:
        found = list(codec.parse(written.tokens))
        if row.answer == "box":
            found = [one for one in found[:1] if one[1].start == 0]
        answer: dict[str, Any] = {"boxes": [box for box, _, _ in found]}
        if row.answer == "boxes":
            answer["labels"] = [self.decode([written.tokens[label]])[0] for _, _, label in found]
        answer["scores"] = [score] * len(found)
        if score is None and written.log_probs is not None:
            spans = [(bins, label) if row.answer == "boxes" else (bins,) for _, bins, label in found]
            parts = [[one for span in several for one in written.log_probs[span]] for several in spans]
            answer["scores"] = [math.exp(math.fsum(part) / len(part)) for part in parts]
        return answer

    def decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """Decodes rows of ids into texts, without the space that they begin with."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if self.is_chinese:
            texts = [_SPACE_IN_CHINESE.sub("", text) for text in texts]
        return [text.strip() for text in texts]


def constraint_masks(labels: torch.Tensor, constraint: Constraint, vocab_size: int) -> torch.Tensor:
    """
    The tokens among which each label was to be chosen, for losses under a constraint.

    Args:
        labels (`torch.LongTensor` of shape `(rows, length)`): Targets, -100 where there is none (prompts, padding).
        constraint ([`Constraint`]): What may be written.
        vocab_size (`int`): Number of tokens of the model.

    Returns:
        `torch.BoolTensor` of shape `(rows, length, vocab_size)`: all `True` where there is no label.
    """
    has_label = labels >= 0
    # Answers side by side from the left, as they are written.
    order = has_label.long().argsort(dim=1, descending=True, stable=True)
    answers = labels.gather(1, order).masked_fill(~has_label.gather(1, order), -1)
    steps = [constraint.allowed(answers[:, :step], vocab_size) for step in range(labels.shape[1])]
    places = (has_label.cumsum(1) - 1).clamp(min=0)
    masks = torch.stack(steps, dim=1).gather(1, places.unsqueeze(-1).expand(-1, -1, vocab_size))
    return masks | ~has_label.unsqueeze(-1)


def _labelled(target: Any) -> list[tuple[Any, str]]:
    """Gives the pairs of box and label of a target in any of its forms."""
    try:
        if isinstance(target, Mapping) and "boxes" in target:
            pairs = list(zip(target["boxes"], target["labels"], strict=True))
        else:
            pairs = [(one["box"], one["label"]) for one in ([target] if isinstance(target, Mapping) else target)]
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            "Labelled boxes are {'boxes': […], 'labels': […]}, one label a box, or a list of "
            f"{{'box': …, 'label': …}}, not {target!r}."
        ) from None
    for _, label in pairs:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"The label of a box is a text, not {label!r}.")
    return pairs


__all__ = ["AnswerFormat", "constraint_masks"]
