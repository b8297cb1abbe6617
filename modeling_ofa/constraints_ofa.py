"""
What `generate` may write: constraints on the next token, and a logits processor with options for each row of a batch.

OFA answers every question with tokens of one vocabulary, so a task is kept to its answers by masks: a prefix tree of
answers, the bins of a box, the codes of a picture.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers.generation import LogitsProcessor

from .trie_ofa import AnswerTrie


# The price of an end that the constraint forbids, when a row may not go on: behind every whole answer.
CUT_SHORT = -1e6


class Constraint(ABC):
    """
    Says what may follow what was written. A constraint of your own implements `allowed`; it must depend on its
    arguments alone, since beams change places between steps.
    """

    @abstractmethod
    def allowed(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """
        The tokens that may come next.

        Args:
            tokens (`torch.LongTensor` of shape `(rows, length)`):
                What each row has answered so far, behind the decoder's start and prompt; -1 fills rows that have
                written less than others. After its end a row may hold anything.
            vocab_size (`int`): Number of tokens of the model.

        Returns:
            `torch.BoolTensor` of shape `(rows, vocab_size)`: at least one `True` in each row.
        """


def _token_range(start: int, stop: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    """`torch.BoolTensor` of shape `(vocab_size,)`: the tokens from `start` to `stop - 1`."""
    if not 0 <= start < stop <= vocab_size:
        raise ValueError(
            f"The tokens {start} to {stop - 1} are no range of a model with {vocab_size} tokens: give the ids of its "
            "own tokenizer."
        )
    tokens = torch.arange(vocab_size, device=device)
    return (tokens >= start) & (tokens < stop)


class TrieConstraint(Constraint):
    """
    One of the answers of a prefix tree, then the end. What begins no answer can only end, as in the official code.

    Args:
        trie ([`AnswerTrie`]): The answers.
    """

    def __init__(self, trie: AnswerTrie):
        self.trie = trie
        self._largest = int(trie.tokens.max())
        self._on_device = {trie.tokens.device: trie}

    def allowed(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
        if self._largest >= vocab_size:
            raise ValueError(
                f"An answer holds the token {self._largest}, but the model has {vocab_size}: encode the answers with "
                "the tokenizer of this model."
            )
        trie = self._on_device.get(tokens.device)
        if trie is None:
            trie = self._on_device[tokens.device] = self.trie.to(tokens.device)
        nodes = tokens.new_zeros(len(tokens))
        for column in tokens[:, : len(trie.levels) - 1].unbind(1):  # no answer is longer
            nodes = torch.where(column < 0, nodes, trie.descend(nodes, column))
        known = nodes.clamp(min=0)
        first = trie.first_child[known]
        count = torch.where(nodes < 0, 0, trie.first_child[known + 1] - first)
        offsets = torch.arange(int(count.max()), device=tokens.device)
        children = (first[:, None] + offsets).clamp(max=len(trie.tokens) - 1)
        # What is no child goes to a column too many, which is dropped.
        columns = torch.where(offsets < count[:, None], trie.tokens[children], vocab_size)
        allowed = torch.zeros(len(tokens), vocab_size + 1, dtype=torch.bool, device=tokens.device)
        allowed.scatter_(1, columns, True)
        allowed[:, trie.eos_token_id] |= count == 0
        return allowed[:, :-1]


class TokenRange(Constraint):
    """
    The tokens of a range, in any number: image codes, bins.

    Args:
        start (`int`), stop (`int`): The first token, and the one behind the last.
        others (`Sequence[int]`, *optional*, defaults to `(0, 1, 2, 3)`):
            Tokens that stay possible beside them. By default those that the official code never forbids: `<s>`,
            `<pad>`, `</s>` and `<unk>`.
    """

    def __init__(self, start: int, stop: int, others: Sequence[int] = (0, 1, 2, 3)):
        self.start, self.stop, self.others = start, stop, list(others)

    def allowed(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
        allowed = _token_range(self.start, self.stop, vocab_size, tokens.device)
        allowed[self.others] = True
        return allowed.expand(len(tokens), -1)


class BoxConstraint(Constraint):
    """
    Four bins, then the end. (The official evaluation of visual grounding has no constraint: four tokens of any kind.)

    Args:
        start (`int`), stop (`int`): The first bin's token, and the one behind the last bin's.
        eos_token_id (`int`, *optional*, defaults to 2): The end.
    """

    def __init__(self, start: int, stop: int, eos_token_id: int = 2):
        self.start, self.stop, self.eos_token_id = start, stop, eos_token_id

    def allowed(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
        bins = _token_range(self.start, self.stop, vocab_size, tokens.device)
        end = _token_range(self.eos_token_id, self.eos_token_id + 1, vocab_size, tokens.device)
        written = (tokens >= 0).sum(1, keepdim=True)
        return torch.where(written < 4, bins, end)


class LabelledBoxesConstraint(Constraint):
    """
    One or more objects, each four bins and a text of at least one token, then the end.

    Args:
        start (`int`), stop (`int`): The first bin's token, and the one behind the last bin's.
        text_start (`int`, *optional*, defaults to 4), text_stop (`int`, *optional*, defaults to 50265):
            The first token of texts, and the one behind the last: OFA's English words by default.
        eos_token_id (`int`, *optional*, defaults to 2): The end.
    """

    def __init__(self, start: int, stop: int, text_start: int = 4, text_stop: int = 50265, eos_token_id: int = 2):
        self.start, self.stop, self.eos_token_id = start, stop, eos_token_id
        self.text_start, self.text_stop = text_start, text_stop

    def allowed(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
        bins = _token_range(self.start, self.stop, vocab_size, tokens.device)
        text = _token_range(self.text_start, self.text_stop, vocab_size, tokens.device)
        end = _token_range(self.eos_token_id, self.eos_token_id + 1, vocab_size, tokens.device)
        no_text = (tokens < 0) | ((tokens >= self.start) & (tokens < self.stop))
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device).masked_fill(no_text, 0)
        last_text = nn.functional.pad(places, (1, 0)).amax(1, keepdim=True)
        written = (tokens >= 0).sum(1, keepdim=True)
        bins_behind = written - last_text
        after_bins = torch.where(bins_behind % 4 == 0, text, bins)
        after_text = torch.where(written == 0, bins, text | bins | end)
        return torch.where(bins_behind > 0, after_bins, after_text)


@dataclass(frozen=True)
class RowOptions:
    """
    How one row of a batch is decoded. Lengths count the tokens of its answer and its end, and no prompt.

    Args:
        constraint ([`Constraint`], *optional*): What may be written.
        renormalize (`bool`, *optional*, defaults to `True`):
            Whether the probability of what the constraint forbids goes to what it allows, as officially but with
            `zero_shot`.
        prompt (`Sequence[int]`, *optional*):
            Tokens that are written before the answer; an end among them does not end it. A prompt that all rows have
            is faster as `decoder_input_ids`; rows whose prompts are longer than these put their rest here.
        score_prompt (`bool`, *optional*, defaults to `False`):
            Whether `prompt` counts in score and length of a hypothesis, as officially. If it doesn't, the score is
            that of the answer after a prompt in `decoder_input_ids`.
        min_new_tokens (`int`, *optional*, defaults to 0): The answer does not end before it has so many tokens.
        max_new_tokens (`int`, *optional*):
            The answer and its end have at most so many tokens. The end is then forced at the price that the model
            asks for it; where the constraint forbids an end, at a price that puts it behind all whole answers.
        suppress_tokens (`Sequence[int]`, *optional*):
            Tokens that are not written; their probability goes to no other token.
        no_repeat_ngram_size (`int`, *optional*, defaults to 0):
            No sequence of so many tokens occurs twice, the decoder's start and the prompt included.
        length_penalty (`float`, *optional*):
            Power of the length that divides the score of a hypothesis in beam search; that of the call by default.

    Raises:
        ValueError: A number is out of range.
    """

    constraint: Constraint | None = None
    renormalize: bool = True
    prompt: Sequence[int] = ()
    score_prompt: bool = False
    min_new_tokens: int = 0
    max_new_tokens: int | None = None
    suppress_tokens: Sequence[int] = ()
    no_repeat_ngram_size: int = 0
    length_penalty: float | None = None

    def __post_init__(self):
        if self.min_new_tokens < 0 or self.no_repeat_ngram_size < 0:
            raise ValueError("`min_new_tokens` and `no_repeat_ngram_size` can't be negative.")
        if self.max_new_tokens is not None and self.max_new_tokens <= self.min_new_tokens:
            raise ValueError(
                f"The end counts as a token: `max_new_tokens` must be at least {self.min_new_tokens + 1}, got "
                f"{self.max_new_tokens}."
            )


@dataclass(frozen=True)
class RowLengths:
    """What the length of a hypothesis is, and what it is worth, in each row: tensors of shape `(rows, 1)`."""

    penalties: torch.Tensor
    uncounted: torch.Tensor  # tokens of the prompt that don't count
    longest: torch.Tensor  # steps that a row may take

    def divisors(self, steps: int, best_case: bool = False) -> torch.Tensor:
        """What divides the scores of hypotheses after `steps`, or at the length at which that helps them most."""
        length = torch.where(self.penalties > 0, self.longest, steps) if best_case else steps
        return (length - self.uncounted).clamp(min=1) ** self.penalties


class RowLogitsProcessor(LogitsProcessor):
    """
    Decodes each row of a batch under its own [`RowOptions`], so that one call of `generate` serves mixed tasks:

    ```python
    >>> rows = RowLogitsProcessor([RowOptions(max_new_tokens=17), RowOptions(BoxConstraint(58457, 59457))])
    >>> ids = model.generate(**inputs, num_beams=5, max_new_tokens=17, logits_processor=[rows])
    ```

    `OFAForConditionalGeneration` runs it before the library's own processors, where fairseq has its constraints. It
    keeps nothing of a call and may serve many, at the same time too.

    Args:
        rows ([`RowOptions`] or `Sequence` of them): One a row of the batch, or one for all rows.
        eos_token_id (`int`, *optional*, defaults to 2): The end of an answer.
        prompt_length (`int`, *optional*):
            Tokens that the decoder is given before it writes. `OFAForConditionalGeneration` says it to the processor;
            elsewhere it is 1, the decoder's start, unless given.

    Raises:
        TypeError: `rows` holds something else.
        ValueError: There are no rows.
    """

    def __init__(
        self, rows: RowOptions | Sequence[RowOptions], eos_token_id: int = 2, prompt_length: int | None = None
    ):
        self.rows = [rows] if isinstance(rows, RowOptions) else list(rows)
        self.eos_token_id = eos_token_id
        self.prompt_length = prompt_length
        if not self.rows:
            raise ValueError("There are no rows: pass the `RowOptions` of each row of the batch.")
        for i, row in enumerate(self.rows):
            if not isinstance(row, RowOptions):
                raise TypeError(f"Row {i} is a {type(row).__name__}, not `RowOptions`.")
        longest = max(len(row.prompt) for row in self.rows)
        self._prompts = torch.tensor([[*row.prompt, *[-1] * (longest - len(row.prompt))] for row in self.rows])
        self._prompt_lengths = torch.tensor([len(row.prompt) for row in self.rows])
        self._min_lengths = torch.tensor([row.min_new_tokens for row in self.rows])
        self._max_lengths = torch.tensor([row.max_new_tokens or 2**31 for row in self.rows])
        self._first_end = int((self._prompt_lengths + self._max_lengths).min()) - 1
        self._scored = torch.tensor([row.score_prompt for row in self.rows])
        suppressed = [(i, token) for i, row in enumerate(self.rows) for token in row.suppress_tokens]
        self._suppressed = torch.tensor(suppressed, dtype=torch.long).view(-1, 2)
        constrained = [i for i, row in enumerate(self.rows) if row.constraint is not None]
        self._constraints = self._groups(constrained, lambda row: (id(row.constraint), row.renormalize))
        blocked = [i for i, row in enumerate(self.rows) if row.no_repeat_ngram_size > 0]
        self._ngrams = self._groups(blocked, lambda row: row.no_repeat_ngram_size)

    def _groups(
        self, members: list[int], key: Callable[[RowOptions], Hashable]
    ) -> list[tuple[RowOptions, torch.Tensor | slice]]:
        """Those rows that can be served together: the options of one of them, and which rows they are."""
        groups: dict[Hashable, list[int]] = {}
        for i in members:
            groups.setdefault(key(self.rows[i]), []).append(i)
        everything = slice(None)  # needs no copy
        return [
            (self.rows[group[0]], everything if len(group) == len(self.rows) else torch.tensor(group))
            for group in groups.values()
        ]

    @property
    def max_new_tokens(self) -> int | None:
        """`int`: The steps that the longest row may take, prompt and end included; `None` if one has no bound."""
        steps = [len(row.prompt) + row.max_new_tokens for row in self.rows if row.max_new_tokens is not None]
        return max(steps) if len(steps) == len(self.rows) else None

    def to(self, device: torch.device) -> "RowLogitsProcessor":
        """The processor with its tensors on `device`: itself if they are there."""
        if self._prompts.device == device:
            return self
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(moved, name, value.to(device))
        for name in ("_constraints", "_ngrams"):
            groups = [(row, i if isinstance(i, slice) else i.to(device)) for row, i in getattr(self, name)]
            setattr(moved, name, groups)
        return moved

    def begin(self, prompt_length: int, batch_size: int, device: torch.device) -> "RowLogitsProcessor":
        """
        The processor for one call of `generate`. One that knows its prompt keeps to it: an assistant model is given
        what was written so far as its prompt.

        Raises:
            ValueError: The batch has another number of rows.
        """
        if len(self.rows) not in (1, batch_size):
            raise ValueError(
                f"The batch has {batch_size} rows, but the `RowLogitsProcessor` has {len(self.rows)}: it needs one "
                "`RowOptions` a row, or one for all."
            )
        begun = copy.copy(self.to(device))
        if begun.prompt_length is None:
            begun.prompt_length = prompt_length
        return begun

    @property
    def answer_starts(self) -> torch.Tensor | None:
        """`torch.LongTensor` of shape `(rows,)`: Where answers begin, if any row has an end before: in its prompt."""
        if not any(self.eos_token_id in row.prompt for row in self.rows):
            return None
        return self._prompt_lengths + (self.prompt_length or 1)

    def row_lengths(self, length_penalty: float, steps: int) -> RowLengths:
        """
        How hypotheses are ranked.

        Args:
            length_penalty (`float`): That of rows which have none of their own.
            steps (`int`): Bound of the call, which holds for every row.
        """
        penalties = [length_penalty if row.length_penalty is None else row.length_penalty for row in self.rows]
        return RowLengths(
            penalties=torch.tensor(penalties, dtype=torch.float32, device=self._prompts.device)[:, None],
            uncounted=self._prompt_lengths.masked_fill(self._scored, 0)[:, None],
            longest=(self._prompt_lengths + self._max_lengths).clamp(max=steps)[:, None],
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if len(input_ids) % len(self.rows):
            raise ValueError(f"{len(input_ids)} rows of scores don't belong to {len(self.rows)} `RowOptions`.")
        if scores.device != self._prompts.device:
            return self.to(scores.device)(input_ids, scores)
        vocab_size, length = scores.shape[-1], input_ids.shape[-1]
        step = length - (self.prompt_length or 1)
        # Beams or samples of a row lie side by side: (rows, beams, length) and (rows, beams, vocabulary).
        tokens = input_ids.reshape(len(self.rows), -1, length)
        free = scores.reshape(len(self.rows), -1, vocab_size)
        answered = step - self._prompt_lengths  # (rows,), negative while the prompt is written

        result = free.clone()
        for options, rows in self._constraints:
            constraint = cast(Constraint, options.constraint)
            answers = self._answers(tokens[rows], answered[rows], step)
            allowed = constraint.allowed(answers.flatten(0, 1), vocab_size).unflatten(0, answers.shape[:2])
            ruled = torch.where(allowed, free[rows], -math.inf)
            result[rows] = ruled.log_softmax(-1) if options.renormalize else ruled
        price_of_end = result[..., self.eos_token_id].clone()

        owners, suppressed = self._suppressed.unbind(1)
        result[owners, :, suppressed] = -math.inf
        too_early = (answered < self._min_lengths)[:, None]
        result[..., self.eos_token_id] = torch.where(too_early, -math.inf, result[..., self.eos_token_id])
        for options, rows in self._ngrams:
            size = options.no_repeat_ngram_size
            if length >= size:
                windows = tokens[rows].unfold(2, size, 1)  # (rows, beams, places, size)
                repeated = (windows[..., :-1] == tokens[rows][:, :, None, length - size + 1 :]).all(-1)
                ban = torch.where(repeated, -math.inf, math.inf).to(result.dtype)
                result[rows] = result[rows].scatter_reduce(2, windows[..., -1], ban, "amin")

        if step >= self._first_end:
            price = price_of_end.clamp(min=max(CUT_SHORT, torch.finfo(free.dtype).min))
            last = answered >= self._max_lengths - 1
            result = self._force(result, torch.where(last, self.eos_token_id, -1), price)
        if step < self._prompts.shape[1]:
            forced = self._prompts[:, step]
            price = free.gather(-1, forced.clamp(min=0)[:, None, None].expand(-1, free.shape[1], 1)).squeeze(-1)
            result = self._force(result, forced, torch.where(self._scored[:, None], price, 0))
        return result.reshape(scores.shape)

    @staticmethod
    def _answers(tokens: torch.Tensor, answered: torch.Tensor, step: int) -> torch.Tensor:
        """
        What was written behind prompts of any length: `(rows, beams, length)`, filled with -1.

        Args:
            tokens (`torch.LongTensor` of shape `(rows, beams, length)`): All tokens, those given to the decoder too.
            answered (`torch.LongTensor` of shape `(rows,)`): How many of them are the answer's.
            step (`int`): How many of them are not given to the decoder.
        """
        length = tokens.shape[-1]
        places = torch.arange(step, device=tokens.device) - answered[:, None] + length  # (rows, step)
        index = places.clamp(max=length - 1)[:, None].expand(-1, tokens.shape[1], -1)
        return tokens.gather(-1, index).masked_fill((places >= length)[:, None], -1)

    @staticmethod
    def _force(scores: torch.Tensor, forced: torch.Tensor, price: torch.Tensor) -> torch.Tensor:
        """Leaves each row but one token, `forced` (`(rows,)`; -1: all stay), at this price a beam."""
        index = forced.clamp(min=0)[:, None, None].expand(-1, scores.shape[1], 1)
        only = torch.full_like(scores, -math.inf).scatter(-1, index, price[..., None])
        return torch.where(forced[:, None, None] < 0, scores, only)


__all__ = [
    "BoxConstraint",
    "Constraint",
    "LabelledBoxesConstraint",
    "RowLogitsProcessor",
    "RowOptions",
    "TokenRange",
    "TrieConstraint",
]
