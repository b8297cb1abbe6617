"""The noise that OFA trains with: text infilling as BART does it, and random words in what the decoder reads."""

import math
from collections.abc import Sequence

import torch

from ..tokenization_ofa import OFATokenizer


# <s>, <pad>, </s> and <unk>, with which every dictionary of fairseq starts: random words are drawn behind them.
_NUM_LEADING_TOKENS = 4
_WORD_MARK = "\u0120"  # how byte-level BPE writes a space


def word_starts(tokenizer: OFATokenizer) -> torch.Tensor:
    """
    Tells which tokens begin a word: what infilling masks together is a token that does and those after it that don't.

    With BPE these are the tokens that start with a space, fairseq's filling words (`madeupword0000`, …) and the four
    special tokens at the beginning; codes, bins and `<mask>` count as continuations. With word pieces it is every
    token that does not start with `##`.

    Args:
        tokenizer ([`OFATokenizer`]): The tokenizer.

    Returns:
        `torch.BoolTensor` of shape `(tokens,)`.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if tokenizer.is_chinese:
        starts = torch.tensor([not token.startswith("##") for token in tokens])
    else:
        starts = torch.tensor([token.startswith((_WORD_MARK, "madeupword")) for token in tokens])
    starts[:_NUM_LEADING_TOKENS] = True
    return starts


class TextInfilling:
    """
    Hides spans of whole words behind `<mask>`, or behind random words: BART's text infilling with the settings of
    OFA's pre-training.

    Words to hide are chosen at random until `mask_ratio` of all words is spent; each is the beginning of a span whose
    length is drawn from a Poisson distribution. Spans of no word become insertions. All numbers are drawn from torch,
    in the official order, so the same seed hides the same words as the official code does.

    Args:
        tokenizer ([`OFATokenizer`]): Tells where words begin, which token is the mask, and how many words there are.
        mask_ratio (`float`, *optional*, defaults to 0.3): Share of the words that is hidden.
        random_ratio (`float`, *optional*, defaults to 0.0): Share of the masks that become a random word instead.
        mask_length (`str`, *optional*, defaults to `"span-poisson"`):
            What one mask hides: `"subword"` a token, `"word"` a word, `"span-poisson"` a span of words.
        replace_length (`int`, *optional*, defaults to 1):
            What is left of a span: 1 one mask, 0 nothing, -1 a mask for each of its tokens.
        poisson_lambda (`float`, *optional*, defaults to 3.0): Mean length of the spans in words.

    Raises:
        ValueError: A setting is out of range.

    Example:

    ```python
    >>> infill = TextInfilling(tokenizer)
    >>> torch.manual_seed(0)
    >>> tokenizer.decode(infill(tokenizer(" hello world this is a pure text example")["input_ids"]))
    '<s> hello world this<mask> text example</s>'
    ```
    """

    def __init__(
        self,
        tokenizer: OFATokenizer,
        mask_ratio: float = 0.3,
        random_ratio: float = 0.0,
        mask_length: str = "span-poisson",
        replace_length: int = 1,
        poisson_lambda: float = 3.0,
    ):
        for name, ratio in (("mask_ratio", mask_ratio), ("random_ratio", random_ratio)):
            if not 0 <= ratio <= 1:
                raise ValueError(f"`{name}` is a share of 0 to 1, not {ratio}.")
        if mask_length not in ("subword", "word", "span-poisson"):
            raise ValueError(f"`mask_length` is 'subword', 'word' or 'span-poisson', not {mask_length!r}.")
        if replace_length not in (-1, 0, 1):
            raise ValueError(f"`replace_length` is 1, 0 or -1, not {replace_length}.")
        if not 0.1 <= poisson_lambda <= 100:
            raise ValueError(f"`poisson_lambda`, the mean length of spans, is 0.1 to 100 words, not {poisson_lambda}.")
        self.mask_ratio = mask_ratio
        self.random_ratio = random_ratio
        self.mask_length = mask_length
        self.replace_length = replace_length
        self.mask_token_id = tokenizer.mask_token_id
        self.num_words = count_words(tokenizer)
        self.word_starts = word_starts(tokenizer)  # (tokens,)
        self.span_probabilities = _poisson(poisson_lambda)  # (lengths,), of 0, 1, 2, … words

    def __call__(
        self, input_ids: torch.Tensor | Sequence[int], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """
        Hides words of one text.

        Args:
            input_ids (`torch.LongTensor` of shape `(length,)` or `Sequence[int]`):
                The tokens with `<s>` and `</s>` around them, which are never hidden.
            generator (`torch.Generator`, *optional*): What to draw from; torch's global generator by default.

        Returns:
            `torch.LongTensor` of shape `(new length,)`: The tokens with masks. `input_ids` is left as it is.
        """
        tokens = torch.as_tensor(input_ids, dtype=torch.long).clone()
        if tokens.ndim != 1 or len(tokens) < 2:
            raise ValueError(f"Infilling takes one text with <s> and </s>, not ids of shape {tuple(tokens.shape)}.")
        is_start = torch.ones_like(tokens) if self.mask_length == "subword" else self.word_starts[tokens].long()
        is_start[0] = is_start[-1] = 0
        # Rounded up after a product in single precision, as officially: in double precision some come out one higher.
        budget = math.ceil(is_start.float().sum() * self.mask_ratio)
        if budget == 0:
            return tokens
        lengths, num_inserts = self._draw_lengths(budget, generator)
        tokens = self._hide(tokens, is_start, lengths, generator)
        return self._insert(tokens, num_inserts, generator) if num_inserts else tokens

    def _draw_lengths(self, budget: int, generator: torch.Generator | None) -> tuple[torch.Tensor, int]:
        """Draws the spans' lengths in words, which add up to `budget`, and the number of those that have no word."""
        if self.mask_length != "span-poisson":
            return torch.ones(budget, dtype=torch.long), 0
        lengths = torch.empty(0, dtype=torch.long)
        while lengths.sum() < budget:
            drawn = torch.multinomial(self.span_probabilities, budget, replacement=True, generator=generator)
            lengths = torch.cat([lengths, drawn])
        total = lengths.cumsum(0)
        last = int((total < budget).sum())  # the span that reaches the budget is cut to it, further ones are dropped
        lengths = lengths[: last + 1]
        lengths[last] -= total[last] - budget
        spans = lengths[lengths > 0]
        return spans, len(lengths) - len(spans)

    def _hide(
        self, tokens: torch.Tensor, is_start: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Hides as many spans as there are `lengths`; overlapping ones unite. Changes its arguments."""
        candidates = is_start.nonzero()[:, 0]
        at = candidates[torch.randperm(len(candidates), generator=generator)[: len(lengths)]]
        is_random = torch.empty(len(lengths)).uniform_(generator=generator) < self.random_ratio
        keep = torch.ones(len(tokens), dtype=torch.bool)
        is_start[-1] = len(tokens)  # more words than any span has left, so no span runs over the end

        # All spans grow by a token at a time, each until it comes to a word more than it may hide.
        first, left = True, lengths - 1
        while len(at):
            if self.replace_length == -1 or (self.replace_length == 1 and first):
                tokens[at] = self.mask_token_id
                tokens[at[is_random]] = self._random_words(int(is_random.sum()), generator)
            else:
                keep[at] = False
            first, left = False, left - is_start[at + 1]
            grows = left >= 0
            at, left, is_random = at[grows] + 1, left[grows], is_random[grows]
        return tokens[keep]

    def _insert(self, tokens: torch.Tensor, count: int, generator: torch.Generator | None) -> torch.Tensor:
        """Puts masks, the first of them random words where there shall be such, between the tokens."""
        # Officially the count passes through a ratio and back, which rounds some up by one.
        count = math.ceil(len(tokens) * (count / len(tokens)))
        length = len(tokens) + count
        at = torch.randperm(length - 2, generator=generator)[:count] + 1  # between the first token and the last
        is_old = torch.ones(length, dtype=torch.bool)
        is_old[at] = False
        num_random = math.ceil(count * self.random_ratio)
        noisy = torch.full((length,), self.mask_token_id)
        noisy[at[:num_random]] = self._random_words(num_random, generator)
        noisy[is_old] = tokens
        return noisy

    def _random_words(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        return torch.randint(_NUM_LEADING_TOKENS, self.num_words, (count,), generator=generator)


def add_target_noise(
    labels: torch.Tensor | Sequence[int],
    noise_ratio: float,
    num_words: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Exchanges tokens of a target for random words: what the decoder reads in Gigaword's fine-tuning (with a ratio of
    0.2), while it is to write the target as it was.

    Args:
        labels (`torch.LongTensor` of shape `(length,)` or `Sequence[int]`): The target, without `<s>` and `</s>`.
        noise_ratio (`float`): How likely each token is exchanged.
        num_words (`int`): Random words have an id of 4 to `num_words - 1`, see [`count_words`].
        generator (`torch.Generator`, *optional*): What to draw from; torch's global generator by default.

    Returns:
        `torch.LongTensor` of shape `(length,)`. `labels` is left as it is.

    Raises:
        ValueError: `noise_ratio` is not between 0 and 1.
    """
    if not 0 <= noise_ratio <= 1:
        raise ValueError(f"`noise_ratio` is a share of 0 to 1, not {noise_ratio}.")
    noisy = torch.as_tensor(labels, dtype=torch.long).clone()
    is_random = torch.empty(len(noisy)).uniform_(generator=generator) < noise_ratio
    noisy[is_random] = torch.randint(_NUM_LEADING_TOKENS, num_words, (int(is_random.sum()),), generator=generator)
    return noisy


def count_words(tokenizer: OFATokenizer) -> int:
    """Gives the number of tokens before the first code or bin."""
    starts = (tokenizer.code_start_id, tokenizer.bin_start_id)
    return min([start for start in starts if start is not None], default=len(tokenizer))


def _poisson(mean: float) -> torch.Tensor:
    """The probabilities of 0, 1, 2, … up to the first one behind the mean that is below one in ten million."""
    probabilities = [math.exp(-mean)]
    while probabilities[-1] >= 1e-7 or len(probabilities) <= mean:
        probabilities.append(probabilities[-1] * mean / len(probabilities))
    weights = torch.tensor(probabilities)
    return weights / weights.sum()


__all__ = ["TextInfilling", "add_target_noise", "count_words", "word_starts"]
