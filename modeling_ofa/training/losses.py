"""
The losses of the official fine-tuning recipes: label smoothing over what may be written, sample weights, dropping the
worst tokens, R-Drop ([Liang et al. 2021](https://huggingface.co/papers/2106.14448)) and encouraging loss
([Zhao et al. 2022](https://huggingface.co/papers/2209.05987)).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint


IGNORED = -100
# The logits that are turned into float32 at a time: 64 MB of them.
CHUNK = 2**24
# Tokens 0 to 3 (start, padding, end, unknown) are in every range.
NUM_SPECIAL = 4


class LossSums(NamedTuple):
    """
    What a batch costs, in sums, so that batches can be added up before they are divided.

    Args:
        loss (`torch.FloatTensor` of shape `()`): What is to be minimized.
        nll (`torch.FloatTensor` of shape `()`): The negative log-likelihood of the same tokens, without gradient.
        num_tokens (`int`): The tokens that count, what the sums are divided by.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    num_tokens: int


class _Tokens(NamedTuple):
    """The positions of a batch, all in one dimension; `labels` is -100 where nothing is to be learned."""

    logits: torch.Tensor  # (positions, vocab_size)
    labels: torch.Tensor  # (positions,)
    weights: torch.Tensor | None  # (positions,)
    masks: torch.Tensor | None  # (positions, vocab_size)

    def at(self, places: torch.Tensor | slice) -> "_Tokens":
        """These positions alone."""
        weights, masks = (None if one is None else one[places] for one in (self.weights, self.masks))
        return _Tokens(self.logits[places], self.labels[places], weights, masks)


@dataclass
class OFALoss:
    """
    The loss of the official recipes. It never holds a float32 copy of all logits: tokens are scored a few at a time,
    and scored again for the gradient.

    Args:
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Probability that is spread over all tokens that may be written, those other than the label.
        constraint_range (`Sequence[int]` of length 2, *optional*):
            First token, and the one behind the last, of those that may be written; tokens 0 to 3 always may. Image
            generation takes the range of the codes.
        drop_worst_ratio (`float`, *optional*, defaults to 0.0):
            Part of the tokens of a batch that is left out, those with the largest loss. One token is always kept.
        drop_worst_after (`int`, *optional*, defaults to 0): None is left out up to this step.
        rdrop_alpha (`float`, *optional*):
            Weight of R-Drop, the divergence between two runs of the same rows under different dropout. The rows of
            a batch then come twice, all of them and all of them again.
        encouraging_log_end (`float`, *optional*):
            Turns encouraging loss on, a bonus that keeps pushing tokens which are nearly right. It is the probability
            from which on the bonus is linear; 1.0 never.
        ignore_prefix_size (`int`, *optional*, defaults to 0): Labels that are not learned at the start of each row.
        ignore_eos (`bool`, *optional*, defaults to `False`): Whether the end of a sentence is not learned.
        eos_token_id (`int`, *optional*, defaults to 2): The end of a sentence.
        official_rdrop_order (`bool`, *optional*, defaults to `False`):
            With both R-Drop and encouraging loss, the official code has sorted the tokens by their loss before it
            compares the first half of them with the second, and so compares tokens of different places (and, where
            the worst are dropped, takes the bonus of a wrong label). `True` does the same, to repeat its numbers.

    Raises:
        ValueError: An option is out of its range.

    Example:

    ```python
    >>> loss, nll, num_tokens = OFALoss(label_smoothing=0.1)(model(**batch).logits, batch["labels"])
    >>> (loss / num_tokens).backward()
    ```
    """

    label_smoothing: float = 0.0
    constraint_range: Sequence[int] | None = None
    drop_worst_ratio: float = 0.0
    drop_worst_after: int = 0
    rdrop_alpha: float | None = None
    encouraging_log_end: float | None = None
    ignore_prefix_size: int = 0
    ignore_eos: bool = False
    eos_token_id: int = 2
    official_rdrop_order: bool = False

    def __post_init__(self):
        for name in ("label_smoothing", "drop_worst_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"`{name}` is a part of a whole, 0 or more and less than 1, not {getattr(self, name)}."
                )
        if self.encouraging_log_end is not None and not 0.0 < self.encouraging_log_end <= 1.0:
            raise ValueError(f"`encouraging_log_end` is a probability above 0, not {self.encouraging_log_end}.")
        if self.constraint_range is not None:
            if (
                len(self.constraint_range) != 2
                or not NUM_SPECIAL <= self.constraint_range[0] < self.constraint_range[1]
            ):
                raise ValueError(
                    f"`constraint_range` is the first token (at least {NUM_SPECIAL}) and the one behind the last, not "
                    f"{self.constraint_range}."
                )

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        sample_weights: torch.Tensor | None = None,
        constraint_masks: torch.Tensor | None = None,
        step: int = 0,
    ) -> LossSums:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(rows, length, vocab_size)`): What the model gives, in any precision.
            labels (`torch.LongTensor` of shape `(rows, length)`): Targets, -100 where nothing is to be learned.
            sample_weights (`torch.FloatTensor` of shape `(rows,)`, *optional*):
                How sure the data is of each row. Log-probabilities are multiplied by it, as officially.
            constraint_masks (`torch.BoolTensor` of shape `(rows, length, vocab_size)`, *optional*):
                `True` for the tokens that may be written, such as those of a prefix tree of answers. With
                `constraint_range` too, what both allow may be written.
            step (`int`, *optional*, defaults to 0): Updates done so far.

        Raises:
            ValueError: A label is no token of the vocabulary or may not be written, or rows do not come twice for
                R-Drop.
        """
        if self.rdrop_alpha is not None and len(labels) % 2:
            raise ValueError(
                f"R-Drop compares every row with itself, but there are {len(labels)} rows: give each twice."
            )
        labels = self._learned(labels)
        tokens = _Tokens(
            logits.flatten(0, 1),
            labels.flatten(),
            None if sample_weights is None else sample_weights.float()[:, None].expand_as(labels).flatten(),
            None if constraint_masks is None else constraint_masks.flatten(0, 1),
        )
        self._check(tokens, length=labels.shape[1])

        losses, nlls, bonuses = _in_chunks(self._score, *tokens)  # (labels,) each
        kept = self._kept(losses.detach(), step)
        loss, nll = losses[kept].sum(), nlls[kept].sum()
        if self.official_rdrop_order and self.rdrop_alpha and self.encouraging_log_end and step > 0:
            places, order = (tokens.labels != IGNORED).nonzero()[:, 0], losses[kept].argsort(descending=True)
            by_loss = tokens.at(places[kept][order])
            _, _, bonuses = _in_chunks(self._score, *by_loss._replace(labels=tokens.labels[places][order]))
            loss = loss + bonuses.sum() + self.rdrop_alpha * self._divergences(by_loss).sum()
        else:
            loss = loss + bonuses[kept].sum()
            if self.rdrop_alpha is not None:
                loss = loss + self.rdrop_alpha * self._divergences(tokens)[kept[: len(kept) // 2]].sum()
        return LossSums(loss, nll.detach(), len(kept))

    def count(self, labels: torch.Tensor, step: int = 0) -> int:
        """
        Gives the `num_tokens` of a batch before it is run, to divide what several batches cost together.

        Args:
            labels (`torch.LongTensor` of shape `(rows, length)`): Its labels, each row once.
            step (`int`, *optional*, defaults to 0): Updates done so far.
        """
        number = self._num_kept(int((self._learned(labels) != IGNORED).sum()), step)
        return number if self.rdrop_alpha is None else 2 * number

    def _learned(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels without those that options leave out."""
        left_out = torch.arange(labels.shape[1], device=labels.device) < self.ignore_prefix_size
        if self.ignore_eos:
            left_out = left_out | (labels == self.eos_token_id)
        return labels.masked_fill(left_out, IGNORED)

    def _check(self, tokens: _Tokens, length: int) -> None:
        """Refuses labels whose loss would be infinite, or an error of the device."""
        vocab_size = tokens.logits.shape[-1]
        known = (tokens.labels >= 0) & (tokens.labels < vocab_size)
        allowed = known
        if self.constraint_range is not None:
            start, stop = self.constraint_range
            if stop > vocab_size:
                raise ValueError(f"`constraint_range` ends at {stop}, but the model has {vocab_size} tokens.")
            allowed = allowed & ((tokens.labels < NUM_SPECIAL) | ((tokens.labels >= start) & (tokens.labels < stop)))
        if tokens.masks is not None:
            index = tokens.labels.clamp(0, vocab_size - 1).unsqueeze(-1)
            allowed = allowed & tokens.masks.gather(-1, index).squeeze(-1)
        bad = ~allowed & (tokens.labels != IGNORED)
        if not bad.any():
            return
        place = int(bad.nonzero()[0])
        what = f"Label {place % length} of row {place // length} is the token {int(tokens.labels[place])}"
        if not known[place]:
            raise ValueError(
                f"{what}, but the model has {vocab_size} tokens: encode with the tokenizer of this model."
            )
        raise ValueError(f"{what}, which the constraint of the loss forbids: is the row's target in the closed list?")

    def _num_kept(self, number: int, step: int) -> int:
        """How many of so many tokens count."""
        if self.drop_worst_ratio == 0.0 or step <= self.drop_worst_after:
            return number
        return min(number, max(1, int(number * (1 - self.drop_worst_ratio))))

    def _kept(self, losses: torch.Tensor, step: int) -> torch.Tensor:
        """Which tokens count; of R-Drop's pairs both or none, by the loss of the first."""
        pairs = len(losses) if self.rdrop_alpha is None else len(losses) // 2
        number = self._num_kept(pairs, step)
        kept = torch.arange(pairs, device=losses.device)
        if number < pairs:
            kept = losses[:pairs].topk(number, largest=False).indices
        return kept if self.rdrop_alpha is None else torch.cat([kept, kept + pairs])

    def _score(self, *columns: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, negative log-likelihood and bonus of the labels among some [`_Tokens`], `(labels,)` each."""
        tokens = _Tokens(*columns)
        counted = tokens.labels != IGNORED
        scores, weights, allowed = self._prepare(tokens, counted)
        labels = tokens.labels[counted]
        if self.constraint_range is not None:
            labels = torch.where(labels < NUM_SPECIAL, labels, labels - self.constraint_range[0] + NUM_SPECIAL)
        total = scores.logsumexp(-1)
        losses = nlls = weights * (total - scores.gather(-1, labels[:, None]).squeeze(-1))
        if self.label_smoothing:
            number = scores.shape[-1] if allowed is None else allowed.sum(-1)
            finite = scores if allowed is None else scores.masked_fill(~allowed, 0.0)
            # The official code guards against a single choice where choices are limited, and only there.
            limited = allowed is not None or self.constraint_range is not None
            share = self.label_smoothing / (number - 1 + (1e-6 if limited else 0.0))
            everything = weights * (number * total - finite.sum(-1))
            losses = (1.0 - self.label_smoothing - share) * nlls + share * everything
        if self.encouraging_log_end is None:
            return losses, nlls, torch.zeros_like(losses)
        bonus = self._bonus(_log_probs(scores, weights, allowed).exp())
        bonuses = (1.0 - self.label_smoothing) * bonus.gather(-1, labels[:, None]).squeeze(-1)
        if self.label_smoothing:
            bonuses = bonuses + self.label_smoothing / tokens.logits.shape[-1] * bonus.sum(-1)
        return losses, nlls, bonuses

    def _prepare(
        self, tokens: _Tokens, counted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Scores of what may be written, in float32, at the positions that count, with their weights and masks."""
        scores, _, weights, allowed = tokens.at(counted)
        if self.constraint_range is not None:
            columns = (slice(NUM_SPECIAL), slice(*self.constraint_range))
            scores = torch.cat([scores[:, part] for part in columns], dim=1)
            allowed = None if allowed is None else torch.cat([allowed[:, part] for part in columns], dim=1)
        scores = scores.float()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        return scores, scores.new_ones(len(scores)) if weights is None else weights, allowed

    def _bonus(self, probs: torch.Tensor) -> torch.Tensor:
        """What encouraging loss gives for probabilities `(labels, choices)`: log(1 - p), and its tangent near 1."""
        end = self.encouraging_log_end
        bonus = (-probs.clamp(max=1.0 - 1e-5)).log1p()
        if end is None or end == 1.0:
            return bonus
        return torch.where(probs > end, math.log(1.0 - end) - (probs - end) / (1.0 - end), bonus)

    def _divergences(self, tokens: _Tokens) -> torch.Tensor:
        """The mean of both Kullback-Leibler divergences between each label's position and its twin, `(labels,)`."""
        half = len(tokens.labels) // 2
        first, second = tokens.at(slice(half)), tokens.at(slice(half, None))

        def diverge(*columns: Any) -> tuple[torch.Tensor]:
            one, other = _Tokens(*columns[:4]), _Tokens(*columns[4:])
            counted = one.labels != IGNORED
            p, q = (_log_probs(*self._prepare(twin, counted)) for twin in (one, other))
            # What neither may write is equal in both, and what one of them may not is infinitely different.
            same = p == q
            terms = (q.exp() - p.exp()) * (q.masked_fill(same, 0.0) - p.masked_fill(same, 0.0)) / 2
            return (terms.sum(-1),)

        return _in_chunks(diverge, *first, *second)[0]


def _log_probs(scores: torch.Tensor, weights: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """Weighted log-probabilities `(labels, choices)`, -inf for what may not be written."""
    log_probs = weights[:, None] * scores.log_softmax(-1)
    return log_probs if allowed is None else log_probs.masked_fill(~allowed, -math.inf)


def _in_chunks(function: Callable[..., tuple[torch.Tensor, ...]], *columns: torch.Tensor | None) -> list[torch.Tensor]:
    """Calls a function on a few positions at a time and forgets all but its results until the gradient needs it."""
    width = max(column.shape[-1] for column in columns if column is not None and column.ndim > 1)
    size = max(1, CHUNK // width)
    parts = [itertools.repeat(None) if column is None else column.split(size) for column in columns]
    results = [
        checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(*parts, strict=False)
    ]
    return [torch.cat(values) for values in zip(*results, strict=True)]


__all__ = ["LossSums", "OFALoss"]
