"""What OFA adds to `generate`: one encoder row an image, and fairseq's beam search where transformers' differs."""

import math
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import ForcedEOSTokenLogitsProcessor
from transformers.utils.deprecation import deprecate_kwarg


# Inputs that the encoder alone reads: `generate` copies none of them per beam, and decoding steps do without them.
ENCODER_ONLY_INPUTS = ("pixel_values", "pixel_values_2", "patch_masks", "sample_patch_num", "inputs_embeds")


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
      in the same step as the last of them scores higher.
    """

    @deprecate_kwarg("patch_images", version="1.0", new_name="pixel_values", warn_if_greater_or_equal_version=True)
    def generate(self, *args: Any, **kwargs: Any):
        output = super().generate(*args, **kwargs)
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, OFACache):
            cache.expand_to_rows()
        return output

    generate.__doc__ = GenerationMixin.generate.__doc__

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
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        for i, processor in enumerate(processors):
            if isinstance(processor, ForcedEOSTokenLogitsProcessor):
                processors[i] = ForcedEOSLogitsProcessor(processor.max_length, processor.eos_token_id)
        temperature = generation_config.temperature
        if not generation_config.do_sample and temperature not in (None, 1.0):
            processors.insert(0, BeamTemperatureLogitsProcessor(temperature))
        return processors

    def _update_finished_beams(
        self,
        *args: Any,
        is_sent_finished: torch.Tensor,
        next_token_hits_stopping_criteria: torch.Tensor,
        top_num_beam_mask: torch.Tensor,
        num_beams: int,
        early_stopping: bool | str,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        if early_stopping is True:
            # Candidates come best first; only as many are let in as there are hypotheses missing.
            finished = next_token_hits_stopping_criteria & top_num_beam_mask
            missing = num_beams - is_sent_finished.sum(dim=-1, keepdim=True)
            next_token_hits_stopping_criteria = finished & (finished.cumsum(dim=-1) <= missing)
        return super()._update_finished_beams(
            *args,
            is_sent_finished=is_sent_finished,
            next_token_hits_stopping_criteria=next_token_hits_stopping_criteria,
            top_num_beam_mask=top_num_beam_mask,
            num_beams=num_beams,
            early_stopping=early_stopping,
            **kwargs,
        )


__all__ = ["BeamTemperatureLogitsProcessor", "ForcedEOSLogitsProcessor", "OFACache", "OFAGenerationMixin"]
