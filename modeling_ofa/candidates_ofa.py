"""
Scores of closed lists of answers: the decoder runs over the prefix tree of the candidates, not over each candidate.

OFA's published evaluation of visual question answering, entailment and image classification decodes every candidate
from its first token to its last, over the whole vocabulary and with a copy of the image. Here candidates share what
they have in common, the image, the prompt and the beginnings of answers; a prefix is decoded only if there is a choice
after it; and logits are computed of those words only that may come next.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.deprecation import deprecate_kwarg

from .generation_ofa import ENCODER_ONLY_INPUTS, OFACache
from .trie_ofa import AnswerTrie


# Rows of logits over the whole vocabulary that are in memory at a time.
_VOCABULARY_ROWS = 64


def prefixes_to_run(trie: AnswerTrie, constrained: bool) -> torch.Tensor:
    """
    The nodes whose states are needed, `torch.BoolTensor` of shape `(nodes,)`: all but the ends of answers, or, under
    the constraint, those at or below which there is a choice. What is the only continuation has probability 1.
    """
    children = trie.first_child.diff()
    if not constrained:
        return children > 0
    needed = children > 1
    for start, stop in reversed(list(pairwise(trie.levels[1:]))):
        needed[trie.parents[start:stop][needed[start:stop]]] = True
    return needed


def fork(cache: OFACache, rows: torch.Tensor) -> OFACache:
    """A cache of these rows of `cache`, which stays as it is; both share what belongs to the images."""
    states = copy.copy(cache.self_attention_cache)
    states.layers = [copy.copy(layer) for layer in states.layers]
    states.reorder_cache(rows)
    forked = copy.copy(cache)
    forked.self_attention_cache = states
    return forked


class OFACandidateMixin:
    """[`~OFACandidateMixin.score_candidates`], for a model with an OFA encoder and decoder and a language head."""

    config: PreTrainedConfig
    training: bool
    model: Any
    lm_head: Any

    @torch.no_grad()
    def score_candidates(
        self,
        inputs: Mapping[str, Any],
        candidates: AnswerTrie | Sequence[Sequence[int] | torch.Tensor] | Sequence[str],
        constrained: bool = True,
        return_probs: bool = False,
        chunk_size: int = 256,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Exact log-probability of each candidate for each row: the sum over its tokens and its end.

        By default the softmax of a step runs over those tokens that continue some candidate, as in OFA's published
        evaluation; the probabilities of distinct candidates then sum to 1. The decoder's prompt is not scored.

        Memory beside the encoder's: the decoder reads at most `chunk_size` rows (images times prefixes) at a time, and
        keeps self-attention keys and values of at most so many rows for each depth of the tree at which further
        prefixes wait for their turn; logits are of the next tokens of these rows' prefixes, or, with
        `constrained=False`, of 64 rows and the whole vocabulary; and there is one number for each row and node of the
        tree. Cross-attention keys and values are stored once an image, whatever the number of candidates.

        Args:
            inputs (`Mapping[str, Any]`):
                What the processor gives: `input_ids`, `attention_mask`, `pixel_values`, `patch_masks`, … as in
                [`OFAModel.forward`], or `encoder_outputs`. And, where answers follow a prompt, `decoder_input_ids`,
                which begin with the start token: a tensor `(rows, length)`, padded as `decoder_attention_mask` says
                (by default, where the padding token is), or a list of token ids for each row.
            candidates ([`AnswerTrie`], or a `Sequence` of token ids without start and end, or of `str`):
                The answers. A trie that is built once saves building it in every call.
            constrained (`bool`, *optional*, defaults to `True`):
                `False` gives the probability that the model has for each candidate among all texts.
            return_probs (`bool`, *optional*, defaults to `False`):
                Whether to return the probabilities too.
            chunk_size (`int`, *optional*, defaults to 256):
                Rows that the decoder reads at a time.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                What encodes candidates that are texts, each with a space in front, as OFA is trained.

        Returns:
            `torch.FloatTensor` of shape `(rows, candidates)`: Log-probabilities; with `return_probs=True`, they and
            the probabilities.

        Raises:
            TypeError: The candidates are texts without a `tokenizer`, or no lists of token ids.
            ValueError: The model is in training mode; there is no candidate, or one with a token that the model lacks;
                the prompts don't fit the rows; or `inputs` has something that is not read here.

        Example:

        ```python
        >>> inputs = processor(images=image, text="what color is the car?", return_tensors="pt")
        >>> scores = model.score_candidates(inputs, ["red", "green", "dark blue"], tokenizer=processor.tokenizer)
        >>> confidence, best = scores.exp().max(dim=-1)
        ```
        """
        if self.training:
            raise ValueError("Dropout would make scores random: call `model.eval()` first.")
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be positive, got {chunk_size}.")
        trie = self._trie(candidates, tokenizer)
        prompts, encoder_outputs = self._encode_once(**inputs)
        states, mask = encoder_outputs.last_hidden_state, encoder_outputs.attention_mask
        positions = encoder_outputs.position_embeddings
        trie = trie.to(states.device)
        needed = prefixes_to_run(trie, constrained)
        scores = states.new_empty(len(prompts), len(trie.answers), dtype=torch.float32)
        for length in {len(prompt) for prompt in prompts}:
            alike = torch.tensor([row for row, prompt in enumerate(prompts) if len(prompt) == length])
            for rows in alike.to(states.device).split(chunk_size):
                encoded = type(encoder_outputs)(
                    last_hidden_state=states[rows],
                    attention_mask=None if mask is None else mask[rows],
                    position_embeddings=positions if positions.shape[0] == 1 else positions[rows],
                )
                prompt = torch.tensor([prompts[row] for row in rows.tolist()], device=states.device)
                scores[rows] = self._score_trie(encoded, prompt, trie, needed, constrained, chunk_size)
        return (scores, scores.exp()) if return_probs else scores

    def _trie(self, candidates: Any, tokenizer: PreTrainedTokenizerBase | None) -> AnswerTrie:
        """The candidates as a tree."""
        if hasattr(candidates, "first_child"):  # a trie, which the processor may have from its own copy of this code
            trie = candidates
        else:
            if isinstance(candidates, str):
                raise TypeError(f"`candidates` must be a list, got the text {candidates!r}.")
            if len(candidates) > 0 and all(isinstance(candidate, str) for candidate in candidates):
                if tokenizer is None:
                    raise TypeError("Candidates that are texts need a `tokenizer`, or pass lists of token ids.")
                blank = [i for i, candidate in enumerate(candidates) if not candidate.strip()]
                if blank:
                    raise ValueError(f"Candidate {blank[0]} is blank, which is no text to choose.")
                texts = [f" {candidate}" for candidate in candidates]
                candidates = tokenizer(texts, add_special_tokens=False)["input_ids"]
            trie = AnswerTrie(candidates, eos_token_id=self.config.eos_token_id)
        largest = int(trie.tokens.max())
        if largest >= self.config.vocab_size:
            raise ValueError(f"A candidate has token {largest}, but the model has {self.config.vocab_size} tokens.")
        return trie

    @deprecate_kwarg("patch_images", version="1.0", new_name="pixel_values", warn_if_greater_or_equal_version=True)
    def _encode_once(
        self,
        decoder_input_ids: torch.Tensor | Sequence[Sequence[int]] | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **inputs: Any,
    ) -> tuple[list[list[int]], Any]:
        """The prompt of each row, and what the encoder gives for all rows."""
        unknown = inputs.keys() - {"input_ids", "attention_mask", *ENCODER_ONLY_INPUTS}
        if unknown:
            raise ValueError(
                f"Scoring candidates does not read {', '.join(sorted(unknown))}: `inputs` holds what the encoder "
                "reads and the decoder's prompts, `decoder_input_ids`."
            )
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(**inputs)
        encoder_outputs = self.model.complete_encoder_outputs(encoder_outputs, inputs.get("attention_mask"))
        rows = encoder_outputs.last_hidden_state.shape[0]
        if decoder_input_ids is None:
            return [[self.config.decoder_start_token_id]] * rows, encoder_outputs
        if isinstance(decoder_input_ids, torch.Tensor) or decoder_attention_mask is not None:
            ids = torch.as_tensor(decoder_input_ids)
            masks = ids.ne(self.config.pad_token_id)
            if decoder_attention_mask is not None:
                masks = torch.as_tensor(decoder_attention_mask).bool()
            prompts = [prompt[mask].tolist() for prompt, mask in zip(ids, masks, strict=True)]
        else:
            prompts = [list(prompt) for prompt in decoder_input_ids]
        if len(prompts) != rows or not all(prompts):
            raise ValueError(
                f"`decoder_input_ids` must hold a prompt for each of the {rows} rows, of the start token at least, "
                f"but the prompts have {[len(prompt) for prompt in prompts]} tokens."
            )
        return prompts, encoder_outputs

    def _score_trie(
        self,
        encoder_outputs: Any,
        prompt: torch.Tensor,
        trie: AnswerTrie,
        needed: torch.Tensor,
        constrained: bool,
        chunk_size: int,
    ) -> torch.Tensor:
        """Log-probabilities `(images, answers)` after prompts `(images, length)`; prefixes in `needed` are decoded."""
        images = prompt.shape[0]
        outputs = self.model(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=prompt,
            decoder_attention_mask=torch.ones_like(prompt),
            use_cache=True,
        )
        cache, states = outputs.past_key_values, outputs.last_hidden_state[:, -1:]  # (images, prefixes, d_model)
        nodes = prompt.new_zeros(1)  # (prefixes,), here the root
        scores = states.new_zeros(images, len(trie.tokens), dtype=torch.float32)
        # Depth first: a chunk's children come next, so that few caches are kept at a time.
        waiting: list[tuple[torch.Tensor, torch.Tensor, OFACache]] = []
        while True:
            first, stop = trie.first_child[nodes, None], trie.first_child[nodes + 1, None]
            most = int((stop - first).max())
            children = first + torch.arange(most, device=nodes.device)  # (prefixes, most)
            exists = children < stop
            children = children.where(exists, first)
            log_probs = self._next_log_probs(states, trie.tokens[children], exists, constrained)
            scores[:, children[exists]] = log_probs[:, exists]

            # Rows of the decoder: the prefixes of the first image, those of the second, …
            offsets = torch.arange(images, device=nodes.device)[:, None] * len(nodes)
            ahead = exists & needed[children]
            longer, parents = children[ahead], ahead.nonzero()[:, 0]
            size = max(1, chunk_size // images)
            for start in range(0, len(longer), size):
                part = slice(start, start + size)
                waiting.append((longer[part], (offsets + parents[part]).flatten(), cache))
            if not waiting:
                break
            nodes, rows, cache = waiting.pop()
            cache = fork(cache, rows)
            tokens = trie.tokens[nodes].repeat(images)[:, None]
            states = self.model(
                encoder_outputs=encoder_outputs, decoder_input_ids=tokens, past_key_values=cache
            ).last_hidden_state.view(images, len(nodes), -1)
        for start, end in pairwise(trie.levels[1:]):  # an answer is as probable as its steps together
            scores[:, start:end] += scores[:, trie.parents[start:end]]
        return scores[:, trie.leaves]

    def _next_log_probs(
        self, states: torch.Tensor, tokens: torch.Tensor, exists: torch.Tensor, constrained: bool
    ) -> torch.Tensor:
        """
        Log-probabilities `(images, prefixes, children)` of the `tokens` `(prefixes, children)` after prefixes of these
        `states` `(images, prefixes, d_model)`, among one another or among all words. Where no token `exists`, any.
        """
        if constrained:
            words, columns = tokens.unique(return_inverse=True)
            # A lookup in the embeddings, with which the head shares its weight, works with offloaded weights too.
            tied = self.config.tie_word_embeddings
            weight = self.model.get_input_embeddings()(words) if tied else self.lm_head.weight[words]
            logits = states.float() @ weight.to(states.device).float().T  # (images, prefixes, words)
            logits = logits.gather(-1, columns.expand(len(states), -1, -1))
            return logits.masked_fill(~exists, -math.inf).log_softmax(-1)
        parts = []
        targets = tokens.repeat(len(states), 1).split(_VOCABULARY_ROWS)
        for part, target in zip(states.flatten(0, 1).split(_VOCABULARY_ROWS), targets, strict=True):
            logits = self.lm_head(part).float()
            parts.append(logits.gather(-1, target.to(logits.device)) - logits.logsumexp(-1, keepdim=True))
        return torch.cat(parts).view(len(states), *tokens.shape).to(states.device)


__all__ = ["OFACandidateMixin"]
