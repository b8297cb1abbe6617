"""
OFA ([Wang et al., ICML 2022](https://huggingface.co/papers/2202.03052)): one sequence-to-sequence transformer that
reads images and text and writes text, locations and image codes.

Positions never mix with content in the published models: they enter every attention as an additive bias, the product
of position queries and keys (absolute, the same in all layers) plus a learned table of distances (relative, one per
layer). That bias depends on positions alone, so one tensor serves all rows of a batch that share their layout.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    Seq2SeqSequenceClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, is_torchdynamo_compiling, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .candidates_ofa import OFACandidateMixin
from .configuration_ofa import OFAConfig
from .generation_ofa import OFACache, OFAGenerationMixin
from .layers_ofa import (
    OFAAttention,
    OFAClassificationHead,
    OFADecoderLayer,
    OFAEncoderLayer,
    OFAHead,
    OFALayer,
    OFAPromptEncoder,
    beside,
    image_distance_buckets,
    split_heads,
    token_distance_buckets,
)
from .peft_ofa import register_peft_targets
from .vision_ofa import (
    PATCH_SIZE,
    OFAFrozenBatchNorm2d,
    OFAResNet,
    OFAVisionTransformer,
    build_image_backbone,
    drop_path_rates,
)


logger = logging.get_logger(__name__)


@dataclass
class OFAEncoderOutput(BaseModelOutput):
    """
    What the encoder gives to the decoder.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, length, d_model)`):
            Final states of `[second image patches, image patches, text tokens]`.
        attention_mask (`torch.LongTensor` of shape `(batch, length)`):
            1 where the sequence has a patch or a token, 0 where it has none.
        position_embeddings (`torch.FloatTensor` of shape `(1 or batch, length, d_model)`):
            Normalized position embeddings of that sequence; one row where all rows agree.
    """

    attention_mask: torch.LongTensor | None = None
    position_embeddings: torch.FloatTensor | None = None


def shift_tokens_right(input_ids: torch.Tensor, pad_token_id: int, decoder_start_token_id: int) -> torch.Tensor:
    """Decoder inputs for `input_ids` as targets: one start token in front, the last token dropped, -100 as padding."""
    shifted = input_ids.roll(1, dims=-1)
    shifted[:, 0] = decoder_start_token_id
    return shifted.masked_fill(shifted == -100, pad_token_id)


class OFAPreTrainedModel(PreTrainedModel):
    """What all models of OFA have in common: how they are initialized, loaded and divided among devices."""

    config: OFAConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OFAEncoderLayer", "OFADecoderLayer"]  # and the image backbone, see OFAEncoder
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # flash kernels take no additive bias
    _can_compile_fullgraph = True
    # Tables that follow from the configuration, and the tied head under its old name, as older checkpoints hold them.
    _keys_to_ignore_on_load_unexpected = [
        r"(encoder|decoder)\.(version|token_rp_bucket|image_rp_bucket|image_position_idx)$",
        r"decoder\.output_projection\.weight$",
        r"num_batches_tracked$",  # which only a ResNet that is trained has
    ]

    def __init__(self, config: OFAConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        register_peft_targets()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, OFAResNet):
            for child in module.modules():
                if isinstance(child, nn.Conv2d):
                    init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, OFAFrozenBatchNorm2d):
            for buffer, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                init.constant_(getattr(module, buffer), value)
        elif isinstance(module, OFAVisionTransformer):
            init.normal_(module.positional_embedding, mean=0.0, std=module.num_channels**-0.5)
        elif isinstance(module, OFAAttention) and module.c_attn is not None:
            init.ones_(module.c_attn)
        elif isinstance(module, OFALayer) and module.w_resid is not None:
            init.ones_(module.w_resid)
        elif isinstance(module, OFAStack):
            init.copy_(module.token_buckets, module.make_token_buckets())

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        pad = self.config.pad_token_id
        input_ids = torch.tensor([[0, 6, 10, 4, 2], [0, 8, 12, 2, pad]], device=self.device)
        return {"input_ids": input_ids, "attention_mask": input_ids.ne(pad), "decoder_input_ids": input_ids}


class OFAStack(OFAPreTrainedModel):
    """What encoder and decoder share: embeddings of tokens and positions, and the relative bias tables."""

    def __init__(self, config: OFAConfig, num_layers: int, num_heads: int):
        super().__init__(config)
        self.num_heads = num_heads
        self.dropout = config.dropout
        d_model = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, d_model, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(d_model) if config.layernorm_embedding else None
        # Two rows more than the longest text: the start token and 1,024 image codes need 1,025 positions.
        self.max_length = config.max_position_embeddings + 2
        self.embed_positions = nn.Embedding(self.max_length, d_model)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, d_model)
        self.pos_ln = nn.LayerNorm(d_model)
        self.image_pos_ln = nn.LayerNorm(d_model)
        self.position_scaling = (d_model / num_heads * config.attn_scale_factor) ** -0.5
        self.token_rel_pos_table_list = nn.ModuleList(
            [nn.Embedding(2 * config.token_bucket_size - 1, num_heads) for _ in range(num_layers)]
        )
        num_image_buckets = (2 * config.image_bucket_size - 1) ** 2 + 3
        self.image_rel_pos_table_list = nn.ModuleList(
            [nn.Embedding(num_image_buckets, num_heads) for _ in range(num_layers)]
        )
        self.register_buffer("token_buckets", self.make_token_buckets(), persistent=False)
        self.gradient_checkpointing = False

    def make_token_buckets(self) -> torch.LongTensor:
        return token_distance_buckets(self.config.token_bucket_size, self.max_length)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        self.embed_tokens = value

    def text_bias(self, layer_idx: int, query_ids: torch.Tensor, key_ids: torch.Tensor) -> torch.Tensor:
        """Relative bias `(1, heads, queries, keys)` between text positions of shapes `(queries,)` and `(keys,)`."""
        distances = query_ids[:, None] - key_ids[None, :]
        buckets = self.token_buckets.to(distances.device)[distances + self.max_length - 1]
        return beside(self.token_rel_pos_table_list[layer_idx], buckets).permute(2, 0, 1).unsqueeze(0)

    def image_bias(self, layer_idx: int, buckets: torch.Tensor) -> torch.Tensor:
        """Relative bias `(rows, heads, queries, keys)` for buckets of shape `(rows, queries, keys)`."""
        return beside(self.image_rel_pos_table_list[layer_idx], buckets).permute(0, 3, 1, 2)

    def position_heads(self, projection: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        """Position queries or keys `(rows, heads, length, head_dim)` of states `(rows, length, d_model)`."""
        return split_heads(beside(projection, states), self.num_heads)

    @staticmethod
    def with_prompt(bias: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """A bias `(…, keys)` with zeros for the prefix keys in front; untouched, not copied, without a prefix."""
        return nn.functional.pad(bias, (prompt_length, 0)) if prompt_length else bias

    def drops_layer(self, layerdrop: float) -> bool:
        """LayerDrop ([Fan et al. 2019](https://huggingface.co/papers/1909.11556)): whether to skip a layer now."""
        return self.training and layerdrop > 0.0 and torch.rand([]).item() < layerdrop


class OFAEncoder(OFAStack):
    """Bidirectional stack over `[second image, image, text]`."""

    _can_record_outputs = {"hidden_states": OFAEncoderLayer, "attentions": OFAAttention}

    def __init__(self, config: OFAConfig):
        super().__init__(config, config.encoder_layers, config.encoder_attention_heads)
        d_model, num_heads = config.d_model, config.encoder_attention_heads
        self.type_embedding = nn.Embedding(config.type_vocab_size, d_model) if config.add_type_embedding else None
        self.embed_images = build_image_backbone(config)
        self._no_split_modules = [*self._no_split_modules, type(self.embed_images).__name__]
        self.image_proj = nn.Linear(self.embed_images.num_channels, d_model)
        self.patch_layernorm_embedding = nn.LayerNorm(d_model) if config.patch_layernorm_embedding else None
        self.pos_q_linear = nn.Linear(d_model, d_model)
        self.pos_k_linear = nn.Linear(d_model, d_model)
        rates = drop_path_rates(config.encoder_drop_path_rate, config.encoder_layers)
        self.layers = nn.ModuleList([OFAEncoderLayer(config, i, rate) for i, rate in enumerate(rates)])
        self.layer_norm = nn.LayerNorm(d_model) if config.encoder_normalize_before else None
        self.encoder_prompt_encoder = None
        if config.encoder_prompt_length:
            self.encoder_prompt_encoder = OFAPromptEncoder(
                config,
                config.encoder_prompt_length,
                config.encoder_layers,
                num_heads,
                config.encoder_prompt_projection_dim,
            )
        self.post_init()

    def text_positions(self, length: int, device: torch.device) -> torch.Tensor:
        """Embeddings `(1, length, d_model)` of the positions of a text, before their norm."""
        return beside(self.embed_positions, torch.arange(length, device=device)).unsqueeze(0)

    def get_image_features(
        self, pixel_values: torch.Tensor, sample_patch_num: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Patches of an image and where they are.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Normalized pixels.
            sample_patch_num (`int`, *optional*): Keep so many patches of each row, drawn by Python's `random`.

        Returns:
            Features `(batch, patches, channels)`, position ids `(1 or batch, patches)` and position embeddings before
            their norm, `(1 or batch, patches, d_model)`.
        """
        bucket_size = self.config.image_bucket_size
        features = self.embed_images(pixel_values.to(self.embed_images.conv1.weight.dtype))
        rows, columns = features.shape[-2:]
        if max(rows, columns) > bucket_size:
            raise ValueError(
                f"An image of {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels gives {rows}x{columns} "
                f"patches, but this model has positions for {bucket_size}x{bucket_size} only: resize it to at most "
                f"{bucket_size * PATCH_SIZE} pixels a side."
            )
        device = features.device
        ids = torch.arange(rows, device=device)[:, None] * bucket_size + torch.arange(columns, device=device) + 1
        ids = ids.reshape(1, -1)  # (1, patches)
        features = features.flatten(2).transpose(1, 2)  # (batch, patches, channels)
        original = self.config.orig_patch_image_size // PATCH_SIZE
        interpolates = self.config.interpolate_position and rows * columns > original**2
        if interpolates:
            grid = torch.arange(original, device=device)
            old = beside(self.embed_image_positions, grid[:, None] * bucket_size + grid + 1)
            old = old.permute(2, 0, 1).unsqueeze(0)
            positions = nn.functional.interpolate(old, size=(rows, columns), mode="bilinear")
            positions = positions.flatten(2).transpose(1, 2)  # (1, patches, d_model)
        else:
            positions = beside(self.embed_image_positions, ids)
        if sample_patch_num is not None:
            if sample_patch_num > rows * columns:
                raise ValueError(
                    f"`sample_patch_num` is {sample_patch_num}, but the image has {rows * columns} patches only."
                )
            draws = [random.sample(range(rows * columns), k=sample_patch_num) for _ in range(features.shape[0])]
            order = torch.tensor(draws, device=device)
            features = features.gather(1, order.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
            ids, positions = ids[0, order], positions[0, order]
        return features, ids, positions

    def embed(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        token_type: int,
        norm: nn.LayerNorm | None,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Adds the type (and, if entangled, the position) to `(batch, length, d_model)` states; zeroes the masked."""
        if self.config.entangle_position_embedding:
            states = states + positions
        if self.type_embedding is not None:
            if token_type >= self.type_embedding.num_embeddings:
                raise ValueError(
                    "A second image needs a third token type: load or build the model with `type_vocab_size=3`."
                )
            states = states + beside(self.type_embedding, torch.full((1, 1), token_type, device=states.device))
        if norm is not None:
            states = beside(norm, states)
        states = nn.functional.dropout(states, p=self.dropout, training=self.training)
        return states * mask.unsqueeze(-1).to(states.dtype)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        patch_masks: torch.BoolTensor | None = None,
        pixel_values_2: torch.FloatTensor | None = None,
        sample_patch_num: int | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OFAEncoderOutput:
        """Arguments as in [`OFAModel.forward`]."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch_size, text_length, _ = inputs_embeds.shape
        device = inputs_embeds.device
        if text_length > self.config.max_position_embeddings:
            raise ValueError(
                f"The text has {text_length} tokens, but this model reads at most "
                f"{self.config.max_position_embeddings}: shorten it, or let the tokenizer truncate it."
            )
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        elif attention_mask is None:
            attention_mask = torch.ones(batch_size, text_length, dtype=torch.long, device=device)
        attention_mask = attention_mask.to(device)

        # Segments of the sequence, from its end to its beginning: text, image, second image.
        text_ids = torch.arange(text_length, device=device)
        positions = self.text_positions(text_length, device)
        states = [self.embed(inputs_embeds, positions, 0, self.layernorm_embedding, attention_mask)]
        masks, position_states = [attention_mask], [beside(self.pos_ln, positions)]
        image_buckets: list[torch.Tensor] = []
        for token_type, pixels in enumerate((pixel_values, pixel_values_2), start=1):
            if pixels is None:
                continue
            found = self.get_image_features(pixels, sample_patch_num)
            features, ids, positions = [part.to(device) for part in found]
            mask = attention_mask.new_ones(features.shape[:2])
            if patch_masks is not None:
                mask = mask * patch_masks.to(mask)[:, None]
            features = beside(self.image_proj, features)
            states.insert(0, self.embed(features, positions, token_type, self.patch_layernorm_embedding, mask))
            masks.insert(0, mask)
            position_states.insert(0, beside(self.image_pos_ln, positions))
            image_buckets.insert(0, image_distance_buckets(ids, ids, self.config.image_bucket_size))
        hidden_states = torch.cat(states, dim=1)  # (batch, length, d_model)
        attention_mask = torch.cat(masks, dim=1)  # (batch, length)
        rows = max(part.shape[0] for part in position_states)
        position_embeddings = torch.cat([part.expand(rows, -1, -1) for part in position_states], dim=1)

        queries = self.position_heads(self.pos_q_linear, position_embeddings) * self.position_scaling
        keys = self.position_heads(self.pos_k_linear, position_embeddings)
        absolute_bias = queries @ keys.transpose(2, 3)  # (rows, heads, length, length)

        prompts = self.encoder_prompt_encoder(device) if self.encoder_prompt_encoder else [None] * len(self.layers)
        prompt_length = self.config.encoder_prompt_length or 0
        layer_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=nn.functional.pad(attention_mask, (prompt_length, 0), value=1),
            # Read for its shape only: as many keys as prompts and states together.
            encoder_hidden_states=hidden_states[:, :1].expand(-1, prompt_length + hidden_states.shape[1], -1),
        )

        for idx, layer in enumerate(self.layers):
            if self.drops_layer(self.config.encoder_layerdrop):
                continue
            bias = absolute_bias.clone()
            bias[..., -text_length:, -text_length:] += self.text_bias(idx, text_ids, text_ids)
            start = 0
            for buckets in image_buckets:
                block = slice(start, start + buckets.shape[-1])
                bias[..., block, block] += self.image_bias(idx, buckets)
                start = block.stop
            bias = self.with_prompt(bias, prompt_length)
            hidden_states = layer(hidden_states, bias, prompts[idx], attention_mask=layer_mask, **kwargs)
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return OFAEncoderOutput(
            last_hidden_state=hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings
        )


class OFADecoder(OFAStack):
    """Causal stack over words, locations or image codes, with cross-attention to the encoder's sequence."""

    _can_record_outputs = {
        "hidden_states": OFADecoderLayer,
        "attentions": OutputRecorder(OFAAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(OFAAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: OFAConfig):
        super().__init__(config, config.decoder_layers, config.decoder_attention_heads)
        d_model, num_heads = config.d_model, config.decoder_attention_heads
        self.code_layernorm_embedding = nn.LayerNorm(d_model) if config.code_layernorm_embedding else None
        self.self_pos_q_linear = nn.Linear(d_model, d_model)
        self.self_pos_k_linear = nn.Linear(d_model, d_model)
        self.cross_pos_q_linear = nn.Linear(d_model, d_model)
        self.cross_pos_k_linear = nn.Linear(d_model, d_model)
        rates = drop_path_rates(config.decoder_drop_path_rate, config.decoder_layers)
        self.layers = nn.ModuleList([OFADecoderLayer(config, i, rate) for i, rate in enumerate(rates)])
        self.layer_norm = nn.LayerNorm(d_model) if config.decoder_normalize_before else None
        self.decoder_prompt_encoder = None
        if config.decoder_prompt_length:
            self.decoder_prompt_encoder = OFAPromptEncoder(
                config,
                config.decoder_prompt_length,
                config.decoder_layers,
                num_heads,
                config.decoder_prompt_projection_dim,
            )
        self.post_init()

    def code_positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Image positions of the start token (0), of the codes of a square picture, and of what may follow them."""
        side, bucket_size = self.config.code_image_size // 8, self.config.image_bucket_size
        codes = position_ids - 1
        ids = codes // side * bucket_size + codes % side + 1
        ids = torch.where(position_ids == 0, 0, ids)
        beyond = min(1024, bucket_size**2)  # a constant of the official code, for positions that no code has
        return torch.where(position_ids > side * side, beyond, ids)

    @staticmethod
    def choose(
        code_rows: bool | torch.Tensor, text: Callable[[], torch.Tensor], code: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What rows of text need, what rows of image codes need, or row by row, for tensors with a row dimension."""
        if isinstance(code_rows, bool):
            return code() if code_rows else text()
        for_text, for_codes = text(), code()
        return torch.where(code_rows.view(-1, *[1] * (for_text.ndim - 1)), for_codes, for_text)

    def position_states(
        self, position_ids: torch.Tensor, code_rows: bool | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of positions `(length,)` before and after their norm, `(1 or batch, length, d_model)` each."""

        def text() -> torch.Tensor:
            return beside(self.embed_positions, position_ids).unsqueeze(0)

        def code() -> torch.Tensor:
            return beside(self.embed_image_positions, self.code_positions(position_ids)).unsqueeze(0)

        raw = self.choose(code_rows, text, code)
        return raw, self.choose(code_rows, lambda: beside(self.pos_ln, raw), lambda: beside(self.image_pos_ln, raw))

    def self_position_keys(
        self, cache: Cache | None, length: int, code_rows: bool | torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        """Position keys `(1 or batch, heads, length, head_dim)` of self-attention, cached as far as possible."""
        keys = cache.position_keys.get("self") if isinstance(cache, OFACache) else None
        known = 0 if keys is None else keys.shape[2]
        if known < length:
            # A static cache may be longer than the model has positions; what lies beyond them is masked.
            position_ids = torch.arange(known, length, device=device).clamp(max=self.max_length - 1)
            new = self.position_heads(self.self_pos_k_linear, self.position_states(position_ids, code_rows)[1])
            keys = new if keys is None else torch.cat([keys, new], dim=2)
            if isinstance(cache, OFACache):
                cache.position_keys["self"] = keys
        return keys[:, :, :length]

    def cross_position_keys(self, cache: Cache | None, position_embeddings: torch.Tensor) -> torch.Tensor:
        """Position keys `(1 or images, heads, source_length, head_dim)` of cross-attention, computed once a cache."""
        keys = cache.position_keys.get("cross") if isinstance(cache, OFACache) else None
        if keys is None:
            keys = self.position_heads(self.cross_pos_k_linear, position_embeddings)
            if isinstance(cache, OFACache):
                cache.position_keys["cross"] = keys
        return keys

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_position_embeddings: torch.FloatTensor | None = None,
        code_masks: torch.BoolTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Arguments as in [`OFAModel.forward`]; those of the encoder as in [`OFAEncoderOutput`], one row an image, of
        which the decoder may have several rows each (beams, samples), next to each other.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of decoder_input_ids or decoder_inputs_embeds")
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        if isinstance(past_key_values, EncoderDecoderCache) and not isinstance(past_key_values, OFACache):
            past_key_values = OFACache.wrap(past_key_values)  # such as the prefixes of peft
        elif past_key_values is not None and not isinstance(past_key_values, OFACache):
            past_key_values = OFACache(past_key_values, DynamicCache(config=self.config))
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        rows, length, d_model = inputs_embeds.shape
        images = encoder_hidden_states.shape[0]
        device = inputs_embeds.device

        self_cache = None if past_key_values is None else past_key_values.self_attention_cache
        past_length = 0 if self_cache is None else self_cache.get_seq_length()
        key_length = length if self_cache is None else self_cache.get_mask_sizes(length, 0)[0]
        if isinstance(past_length, int) and past_length + length > self.max_length:
            raise ValueError(
                f"The target has {past_length + length} tokens, but this model has {self.max_length} decoder "
                "positions: lower `max_new_tokens` or shorten the labels."
            )
        if attention_mask is None and input_ids is not None and isinstance(past_length, int) and past_length == 0:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        elif attention_mask is not None and attention_mask.shape[1] == length and isinstance(past_length, int):
            attention_mask = nn.functional.pad(attention_mask, (past_length, 0), value=1)  # what came before is seen

        # Rows agree nearly always, and then share one bias. To see it costs a synchronization that a graph can't have.
        code_rows: bool | torch.Tensor = code_masks is not None and code_masks.to(device, torch.bool)
        if isinstance(code_rows, torch.Tensor) and not is_torchdynamo_compiling():
            if code_rows.all():
                code_rows = True
            elif not code_rows.any():
                code_rows = False

        query_ids = torch.arange(length, device=device) + past_length
        key_ids = torch.arange(key_length, device=device).clamp(max=self.max_length - 1)
        positions, position_states = self.position_states(query_ids, code_rows)
        queries = self.position_heads(self.self_pos_q_linear, position_states) * self.position_scaling
        keys = self.self_position_keys(past_key_values, key_length, code_rows, device)
        absolute_bias = queries @ keys.transpose(2, 3)  # (1 or rows, heads, length, key_length)
        image_buckets = image_distance_buckets(
            self.code_positions(query_ids), self.code_positions(key_ids), self.config.image_bucket_size
        ).unsqueeze(0)

        # Queries of one image's rows stand side by side: (images, rows // images * length).
        beams = rows // images
        if position_states.shape[0] == 1:
            position_states = position_states.repeat(1, beams, 1)
        else:
            position_states = position_states.reshape(images, -1, d_model)
        queries = self.position_heads(self.cross_pos_q_linear, position_states) * self.position_scaling
        keys = self.cross_position_keys(past_key_values, encoder_position_embeddings.to(device))
        cross_bias = queries @ keys.transpose(2, 3)  # (1 or images, heads, beams * length, source_length)

        hidden_states = inputs_embeds
        if not self.config.disable_entangle:
            hidden_states = hidden_states + positions
        if self.layernorm_embedding is not None:
            code_norm = self.code_layernorm_embedding or self.layernorm_embedding
            hidden_states = self.choose(
                code_rows,
                lambda states=hidden_states: beside(self.layernorm_embedding, states),
                lambda states=hidden_states: beside(code_norm, states),
            )
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)

        prompts = self.decoder_prompt_encoder(device) if self.decoder_prompt_encoder else [None] * len(self.layers)
        prompt_length = self.config.decoder_prompt_length or 0
        self_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=self_cache,
            allow_is_causal_skip=not prompt_length,
        )
        if prompt_length:
            if not isinstance(self_mask, torch.Tensor):
                raise ValueError('Prefixes need the "eager" or "sdpa" attention implementation.')
            visible = True if self_mask.dtype == torch.bool else 0.0
            self_mask = nn.functional.pad(self_mask, (prompt_length, 0), value=visible)
        cross_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=inputs_embeds.reshape(images, -1, d_model),
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )

        for idx, layer in enumerate(self.layers):
            if self.drops_layer(self.config.decoder_layerdrop):
                continue
            relative_bias = self.choose(
                code_rows,
                lambda idx=idx: self.text_bias(idx, query_ids, key_ids),
                lambda idx=idx: self.image_bias(idx, image_buckets),
            )
            bias = self.with_prompt(absolute_bias + relative_bias, prompt_length)
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                bias,
                cross_bias,
                prompts[idx],
                attention_mask=self_mask,
                encoder_attention_mask=cross_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        if self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )


class OFAModel(OFAPreTrainedModel):
    """The bare OFA model: raw hidden states of the decoder, without a head."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: OFAConfig):
        super().__init__(config)
        self.encoder = OFAEncoder(config)
        self.decoder = OFADecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        self.encoder.embed_tokens = value
        self.decoder.embed_tokens = value

    @deprecate_kwarg("patch_images", version="1.0", new_name="pixel_values", warn_if_greater_or_equal_version=True)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        patch_masks: torch.BoolTensor | None = None,
        pixel_values_2: torch.FloatTensor | None = None,
        sample_patch_num: int | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        code_masks: torch.BoolTensor | None = None,
        encoder_outputs: OFAEncoderOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Seq2SeqModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, text_length)`):
                The instruction, `<s> … </s>`.
            attention_mask (`torch.LongTensor` of shape `(batch, text_length)`, *optional*):
                1 for tokens, 0 for padding; by default, what differs from the padding token. Patches are not in it.
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`, *optional*):
                Normalized images; height and width may differ.
            patch_masks (`torch.BoolTensor` of shape `(batch,)`, *optional*):
                False for rows without an image, whose pixels are then ignored. All rows have one by default.
            pixel_values_2 (`torch.FloatTensor` of shape `(batch, 3, height, width)`, *optional*):
                Second images, put in front of the first ones; needs `config.type_vocab_size=3`.
            sample_patch_num (`int`, *optional*):
                Keep a random subset of so many patches of each image, as pre-training does.
            decoder_input_ids (`torch.LongTensor` of shape `(batch, target_length)`, *optional*):
                Target tokens, shifted right; by default `input_ids`, shifted right.
            decoder_attention_mask (`torch.LongTensor` of shape `(batch, target_length)`, *optional*):
                1 for tokens, 0 for padding; by default, what differs from the padding token.
            code_masks (`torch.BoolTensor` of shape `(batch,)`, *optional*):
                True for rows whose target is the codes of an image. None has such a target by default.
            encoder_outputs ([`OFAEncoderOutput`], *optional*):
                What an earlier call of the encoder gave.
            past_key_values ([`Cache`], *optional*):
                Keys and values of earlier decoder tokens.
            inputs_embeds, decoder_inputs_embeds (`torch.FloatTensor` of shape `(batch, length, d_model)`, *optional*):
                Token embeddings, in place of `input_ids` and `decoder_input_ids`.
            use_cache (`bool`, *optional*):
                Whether to return the cache.

        Raises:
            ValueError: The text or the image is larger than the model has positions for.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise ValueError(
                    "The decoder has nothing to read: pass `decoder_input_ids`, `decoder_inputs_embeds`, or "
                    "`input_ids` to be shifted right."
                )
            decoder_input_ids = shift_tokens_right(
                input_ids, self.config.pad_token_id, self.config.decoder_start_token_id
            )
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=pixel_values,
                patch_masks=patch_masks,
                pixel_values_2=pixel_values_2,
                sample_patch_num=sample_patch_num,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        encoder_outputs = self.complete_encoder_outputs(encoder_outputs, attention_mask)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=encoder_outputs.attention_mask,
            encoder_position_embeddings=encoder_outputs.position_embeddings,
            code_masks=code_masks,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    def complete_encoder_outputs(
        self, encoder_outputs: BaseModelOutput | tuple, attention_mask: torch.Tensor | None
    ) -> OFAEncoderOutput:
        """States alone, as other models' encoders give them, are taken for those of a text without an image."""
        if isinstance(encoder_outputs, OFAEncoderOutput):
            return encoder_outputs
        if not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        states = encoder_outputs.last_hidden_state
        if attention_mask is not None and attention_mask.shape[1] != states.shape[1]:
            raise ValueError(
                f"`encoder_outputs` has {states.shape[1]} states for {attention_mask.shape[1]} tokens, so it includes "
                "an image: pass the `OFAEncoderOutput` that the encoder returned, which knows the image's positions."
            )
        return OFAEncoderOutput(
            last_hidden_state=states,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
            attention_mask=attention_mask,
            position_embeddings=self.encoder.pos_ln(self.encoder.text_positions(states.shape[1], states.device)),
        )


class OFAForConditionalGeneration(OFAPreTrainedModel, OFAGenerationMixin, OFACandidateMixin):
    """OFA with its language modeling head, tied to the token embeddings: every task of the paper."""

    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}

    def __init__(self, config: OFAConfig):
        super().__init__(config)
        self.model = OFAModel(config)
        self.lm_head = OFAHead(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Labels `(batch, target_length)`, -100 where there is none, as decoder inputs."""
        return shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    @deprecate_kwarg("patch_images", version="1.0", new_name="pixel_values", warn_if_greater_or_equal_version=True)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        patch_masks: torch.BoolTensor | None = None,
        pixel_values_2: torch.FloatTensor | None = None,
        sample_patch_num: int | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_prompt_lengths: torch.LongTensor | None = None,
        code_masks: torch.BoolTensor | None = None,
        encoder_outputs: OFAEncoderOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Seq2SeqLMOutput:
        """
        Arguments as in [`OFAModel.forward`], and these.

        Args:
            decoder_prompt_lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Read by `generate` alone.
            labels (`torch.LongTensor` of shape `(batch, target_length)`, *optional*):
                Target tokens, -100 where no loss is wanted; decoder inputs are made from them unless given.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*):
                Compute the logits of so many last positions only (0: of all), or of the positions listed.

        Returns:
            [`Seq2SeqLMOutput`]: cross-entropy `loss` (mean over the labels, or their sum over `num_items_in_batch`
            where the trainer passes it) and `logits` of shape `(batch, target_length, vocab_size)`.
        """
        if labels is not None:
            use_cache = False
            if not is_torchdynamo_compiling():
                known = (labels >= 0) & (labels < self.config.vocab_size) | (labels == -100)
                if not known.all():
                    raise ValueError(
                        f"A label is {labels[~known][0].item()}, but the model has {self.config.vocab_size} tokens: "
                        "wrong tokenizer? (-100 is the label that does not count.)"
                    )
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            patch_masks=patch_masks,
            pixel_values_2=pixel_values_2,
            sample_patch_num=sample_patch_num,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            code_masks=code_masks,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, shift_labels=labels, **kwargs
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


class OFAForSequenceClassification(OFAPreTrainedModel):
    """OFA with a classification head on the decoder's state at the last token of its input."""

    def __init__(self, config: OFAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = OFAModel(config)
        self.classification_head = OFAClassificationHead(config)
        self.post_init()

    @deprecate_kwarg("patch_images", version="1.0", new_name="pixel_values", warn_if_greater_or_equal_version=True)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Seq2SeqSequenceClassifierOutput:
        """
        Arguments as in [`OFAModel.forward`], but for these.

        Args:
            decoder_input_ids (`torch.LongTensor` of shape `(batch, target_length)`, *optional*):
                What the decoder reads; by default the same text as the encoder, `input_ids`.
            labels (`torch.LongTensor` of shape `(batch,)`, or of floats `(batch, num_labels)`, *optional*):
                Classes, numbers (`num_labels=1`) or several classes a row (floats).

        Returns:
            [`Seq2SeqSequenceClassifierOutput`]: `loss` and `logits` of shape `(batch, num_labels)`.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids, decoder_inputs_embeds = input_ids, inputs_embeds
            decoder_attention_mask = attention_mask if decoder_attention_mask is None else decoder_attention_mask
        if decoder_attention_mask is None and decoder_input_ids is not None:
            decoder_attention_mask = decoder_input_ids.ne(self.config.pad_token_id).long()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=False,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if decoder_attention_mask is None:
            last = torch.full((states.shape[0],), states.shape[1] - 1, device=states.device)
        else:
            steps = torch.arange(states.shape[1], device=states.device)
            last = (steps * decoder_attention_mask.to(states.device)).argmax(dim=1)
        logits = self.classification_head(states[torch.arange(states.shape[0], device=states.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return Seq2SeqSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


__all__ = ["OFAPreTrainedModel", "OFAModel", "OFAForConditionalGeneration", "OFAForSequenceClassification"]
