"""What OFA adds to `generate`: one encoder row an image, and fairseq's beam search where transformers' differs."""

import copy
import dataclasses
import math
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.generation import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import ForcedEOSTokenLogitsProcessor
from transformers.utils.deprecation import deprecate_kwarg

from .constraints_ofa import RowLengths, RowLogitsProcessor, RowOptions


# Beams that can't go on score less: the library gives them -1e9, and constraints -inf.
DEAD = -5e8

# Inputs that the encoder alone reads: `generate` copies none of them per beam, and decoding steps do without them.
ENCODER_ONLY_INPUTS = ("pixel_values", "pixel_values_2", "patch_masks", "sample_patch_num", "inputs_embeds")


def decodes_rows(processor: Any) -> bool:
    """
    Whether this is a [`RowLogitsProcessor`]. The code that a checkpoint brings along may be loaded twice, for model
    and processor, and its classes are then not the same ones.
    """
    return hasattr(processor, "row_lengths")


class OFACache(EncoderDecoderCache):
    """
    An [`EncoderDecoderCache`] whose cross-attention part has one row per *image*, not per beam, and which keeps the
    projected position keys that the decoder would otherwise compute again at every step.
    """

    def __init__(self, *caches: Cache):
        super().__init__(*caches)
        self.position_keys: dict[str, torch.Tensor] = {}

    @classmethod
    def wrap(cls, cache: EncoderDecoderCache) -> "OFACache":
        """`cache` itself, states and flags shared, as an [`OFACache`]."""
        wrapped = cls(cache.self_attention_cache, cache.cross_attention_cache)
        wrapped.__dict__.update(cache.__dict__)
        return wrapped

    def expand_to_rows(self):
        """Copies what belongs to an image for each of its beams or samples, as the caches of other models have it."""
        rows = self.self_attention_cache.layers[0].keys.shape[0]
        for layer in self.cross_attention_cache.layers:
            copies = rows // layer.keys.shape[0]
            if copies > 1:
                layer.keys = layer.keys.repeat_interleave(copies, dim=0)
                layer.values = layer.values.repeat_interleave(copies, dim=0)
        keys = self.position_keys.get("cross")
        if keys is not None and keys.shape[0] > 1:
            self.position_keys["cross"] = keys.repeat_interleave(rows // keys.shape[0], dim=0)

    def reset(self):
        super().reset()
        self.position_keys.clear()

    def reorder_cache(self, beam_idx: torch.LongTensor):
        # Beams never move between images, so what belongs to the image stays where it is.
        self.self_attention_cache.reorder_cache(beam_idx)


class ForcedEOSLogitsProcessor(LogitsProcessor):
    """
    Lets nothing but the end follow at the last step, at the price that the model asks for it. The library's own
    [`ForcedEOSTokenLogitsProcessor`] makes it free, which ranks the beams that were cut short too high.
    """

    def __init__(self, max_length: int, eos_token_id: torch.Tensor):
        self.max_length = max_length
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[-1] != self.max_length - 1:
            return scores
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.eos_token_id] = scores[:, self.eos_token_id]
        return forced


class EndOfAnswerCriteria(EosTokenCriteria):
    """
    Stops a row at the end of its answer, not at one in its prompt.

    Args:
        eos_token_id (`torch.LongTensor`): The end.
        starts (`torch.LongTensor` of shape `(rows,)`): Where the answer of each row begins.
    """

    def __init__(self, eos_token_id: torch.Tensor, starts: torch.Tensor):
        super().__init__(eos_token_id)
        self.starts = starts

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        ended = super().__call__(input_ids, scores, **kwargs)
        starts = self.starts.to(input_ids.device).repeat_interleave(len(input_ids) // len(self.starts))
        return ended & (input_ids.shape[1] > starts)


class BeamTemperatureLogitsProcessor(LogitsProcessor):
    """Beam search over `softmax(logits / temperature)`. The library reads `temperature` in sampling only."""

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return (scores / self.temperature).log_softmax(dim=-1)


class OFAGenerationMixin(GenerationMixin):
    """
    [`GenerationMixin`] with these differences: the encoder's output is never copied per beam, `patch_images` is
    understood as `pixel_values`, and beam search ranks as fairseq's, from which all published OFA numbers come:

    - `forced_eos_token_id` costs what the model asks for the end of the sentence,
    - `temperature` divides the logits of deterministic beam search too,
    - with `early_stopping=True`, the first `num_beams` finished hypotheses are the answer, even if one that finishes
      in the same step as the last of them scores higher,
    - a beam that a constraint leaves nothing to write is no hypothesis, and nothing waits for it,
    - a [`RowLogitsProcessor`] decodes each row under its own options; its constraints come before everything else,
    - `decoder_input_ids` may have different lengths, padded on the right as `decoder_attention_mask` says: shorter
      prompts are answered earlier, and `min_new_tokens` and `max_new_tokens` count each row's answer,
    - a batch for training may be answered as it is: `decoder_prompt_lengths` of shape `(batch,)` says how many tokens
      of each row of `decoder_input_ids` are a prompt and no target. Without `decoder_input_ids`, which the library's
      trainer takes out of such batches, prompts are the first tokens of `input_ids`, as OFA's are.
    """

    @deprecate_kwarg("patch_images", version="1.0", new_name="pixel_values", warn_if_greater_or_equal_version=True)
    def generate(self, *args: Any, **kwargs: Any):
        output = super().generate(*args, **self._split_prompts(self._cut_prompts(args, kwargs)))
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, OFACache):
            cache.expand_to_rows()
        return output

    generate.__doc__ = GenerationMixin.generate.__doc__

    def _cut_prompts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Makes decoder inputs of `decoder_prompt_lengths`, if they are given."""
        lengths = kwargs.pop("decoder_prompt_lengths", None)
        if lengths is None:
            return kwargs
        source = kwargs.get("decoder_input_ids")
        if source is None:
            source = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        mask = torch.arange(int(lengths.max()), device=source.device) < lengths[:, None]
        ids = source[:, : mask.shape[1]].masked_fill(~mask, self.config.pad_token_id)
        return {**kwargs, "decoder_input_ids": ids, "decoder_attention_mask": mask.long()}

    def _split_prompts(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Puts what longer prompts have more than the shortest under the care of a [`RowLogitsProcessor`]."""
        ids, mask = kwargs.get("decoder_input_ids"), kwargs.get("decoder_attention_mask")
        if ids is None or mask is None:
            return kwargs
        lengths = mask.sum(dim=1).tolist()
        shortest = min(lengths)
        steps = torch.arange(mask.shape[1], device=mask.device)
        if shortest == 0 or not torch.equal(mask.bool(), steps < mask.sum(dim=1, keepdim=True)):
            raise ValueError("Prompts in `decoder_input_ids` have a start token at least and are padded on the right.")
        if shortest == mask.shape[1]:
            return kwargs
        kwargs = {**kwargs, "decoder_input_ids": ids[:, :shortest], "decoder_attention_mask": None}
        if shortest == max(lengths):
            return kwargs
        processors = list(kwargs.get("logits_processor") or [])
        given = next((one for one in processors if decodes_rows(one)), None)
        config = kwargs.get("generation_config") or self.generation_config
        shared = {
            name: kwargs.pop(name, None) or getattr(config, name, None)
            for name in ("min_new_tokens", "max_new_tokens")
        }
        if shared["min_new_tokens"]:
            kwargs["min_new_tokens"] = 0  # the library would forbid an end that stands in a prompt
        rows = [RowOptions()] if given is None else given.rows
        rows = rows * len(lengths) if len(rows) == 1 else rows
        rows = [
            dataclasses.replace(
                row,
                prompt=ids[i, shortest : lengths[i]].tolist(),
                min_new_tokens=row.min_new_tokens or shared["min_new_tokens"] or 0,
                max_new_tokens=row.max_new_tokens or shared["max_new_tokens"],
            )
            for i, row in enumerate(rows)
        ]
        rows_type, eos_token_id = RowLogitsProcessor, self.config.eos_token_id
        if given is not None:
            rows_type, eos_token_id = type(given), given.eos_token_id
        split = rows_type(rows, eos_token_id)
        if split.max_new_tokens is not None:
            kwargs["max_new_tokens"] = split.max_new_tokens
        return {**kwargs, "logits_processor": [split, *(one for one in processors if one is not given)]}

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = True,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        # The decoder reads one encoder row an image, however many beams or samples the image has.
        names = ("encoder_outputs", "attention_mask", *ENCODER_ONLY_INPUTS)
        per_image = {name: model_kwargs.pop(name) for name in names if name in model_kwargs}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **per_image}

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        model_inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if model_inputs.get("encoder_outputs") is not None:
            # What the encoder has read, only the encoder of an assistant model reads again.
            for name in ENCODER_ONLY_INPUTS:
                model_inputs.pop(name, None)
        cache = model_inputs.get("past_key_values")
        if model_inputs.get("decoder_attention_mask") is None and (cache is None or cache.get_seq_length() == 0):
            # A padding token that was generated is a token like any other, with a cache and without one.
            model_inputs["decoder_attention_mask"] = torch.ones_like(model_inputs["decoder_input_ids"])
        return model_inputs

    def _prepare_cache_for_generation(self, generation_config: GenerationConfig, model_kwargs: dict, *args: Any):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, EncoderDecoderCache) and not isinstance(cache, OFACache):
            model_kwargs["past_key_values"] = OFACache.wrap(cache)

    def _get_logits_processor(
        self,
        generation_config: GenerationConfig,
        input_ids_seq_length: int,
        encoder_input_ids: torch.Tensor,
        **kwargs: Any,
    ) -> LogitsProcessorList:
        processors = super()._get_logits_processor(
            generation_config,
            input_ids_seq_length=input_ids_seq_length,
            encoder_input_ids=encoder_input_ids,
            **kwargs,
        )
        first, others = LogitsProcessorList(), LogitsProcessorList()
        temperature = generation_config.temperature
        if not generation_config.do_sample and temperature not in (None, 1.0):
            first.append(BeamTemperatureLogitsProcessor(temperature))
        for processor in processors:
            if decodes_rows(processor):
                batch_size, device = encoder_input_ids.shape[0], encoder_input_ids.device
                first.append(processor.begin(input_ids_seq_length, batch_size, device))
            elif isinstance(processor, ForcedEOSTokenLogitsProcessor):
                others.append(ForcedEOSLogitsProcessor(processor.max_length, processor.eos_token_id))
            else:
                others.append(processor)
        return LogitsProcessorList([*first, *others])

    @staticmethod
    def _at_ends_of_answers(rows: RowLogitsProcessor | None, criteria: StoppingCriteriaList) -> StoppingCriteriaList:
        """Gives stopping criteria that pass over ends in prompts."""
        starts = None if rows is None else rows.answer_starts
        if starts is None:
            return criteria
        return StoppingCriteriaList(
            EndOfAnswerCriteria(one.eos_token_id, starts) if isinstance(one, EosTokenCriteria) else one
            for one in criteria
        )

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        *args: Any,
        **kwargs: Any,
    ):
        rows = next((p for p in logits_processor if decodes_rows(p)), None)
        stopping_criteria = self._at_ends_of_answers(rows, stopping_criteria)
        return super()._sample(input_ids, logits_processor, stopping_criteria, *args, **kwargs)

    def _beam_search(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ):
        rows = next((p for p in logits_processor if decodes_rows(p)), None)
        stopping_criteria = self._at_ends_of_answers(rows, stopping_criteria)
        if rows is not None:
            steps = generation_config.max_length - input_ids.shape[1]
            generation_config = copy.copy(generation_config)
            generation_config.length_penalty = rows.row_lengths(generation_config.length_penalty, steps)
        return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _check_early_stop_heuristic(
        self,
        is_early_stop_heuristic_unsatisfied: torch.Tensor,
        running_beam_scores: torch.Tensor,
        is_sent_finished: torch.Tensor,
        cur_len: int,
        decoder_prompt_len: int,
        early_stopping: bool | str,
        length_penalty: float | RowLengths,
        **kwargs: Any,
    ) -> torch.Tensor:
        if early_stopping is True:
            is_early_stop_heuristic_unsatisfied = is_early_stop_heuristic_unsatisfied & ~is_sent_finished.all(
                dim=-1, keepdim=True
            )
        running_beam_scores = running_beam_scores.masked_fill(running_beam_scores < DEAD, -math.inf)
        if not isinstance(length_penalty, int | float):
            steps = cur_len - decoder_prompt_len
            running_beam_scores = running_beam_scores / length_penalty.divisors(steps, early_stopping == "never")
            length_penalty = 0.0
        return super()._check_early_stop_heuristic(
            is_early_stop_heuristic_unsatisfied=is_early_stop_heuristic_unsatisfied,
            running_beam_scores=running_beam_scores,
            is_sent_finished=is_sent_finished,
            cur_len=cur_len,
            decoder_prompt_len=decoder_prompt_len,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            **kwargs,
        )

    def _update_finished_beams(
        self,
        *args: Any,
        topk_log_probs: torch.Tensor,
        is_sent_finished: torch.Tensor,
        next_token_hits_stopping_criteria: torch.Tensor,
        top_num_beam_mask: torch.Tensor,
        num_beams: int,
        cur_len: int,
        decoder_prompt_len: int,
        length_penalty: float | RowLengths,
        early_stopping: bool | str,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        finished = next_token_hits_stopping_criteria & top_num_beam_mask & (topk_log_probs > DEAD)
        if early_stopping is True:
            # Candidates come best first; only as many are let in as there are hypotheses missing.
            missing = num_beams - is_sent_finished.sum(dim=-1, keepdim=True)
            finished = finished & (finished.cumsum(dim=-1) <= missing)
        if not isinstance(length_penalty, int | float):
            topk_log_probs = topk_log_probs / length_penalty.divisors(cur_len + 1 - decoder_prompt_len)
            length_penalty = 0.0
        return super()._update_finished_beams(
            *args,
            # What is unfinished must not tie with an empty place, which scores -1e9.
            topk_log_probs=topk_log_probs.masked_fill(~finished, -math.inf),
            is_sent_finished=is_sent_finished,
            next_token_hits_stopping_criteria=finished,
            top_num_beam_mask=top_num_beam_mask,
            num_beams=num_beams,
            cur_len=cur_len,
            decoder_prompt_len=decoder_prompt_len,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            **kwargs,
        )


__all__ = [
    "BeamTemperatureLogitsProcessor",
    "EndOfAnswerCriteria",
    "ForcedEOSLogitsProcessor",
    "OFACache",
    "OFAGenerationMixin",
]
