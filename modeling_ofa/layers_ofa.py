"""OFA's layers: distance buckets, attention with a position bias, encoder and decoder layers, prefixes, heads."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_ofa import OFAConfig
from .vision_ofa import OFADropPath


# Relative distances beyond this one share a bucket; a constant of the official code, whatever the longest text.
_MAX_TOKEN_DISTANCE = 1024


def token_distance_buckets(bucket_size: int, max_length: int) -> torch.LongTensor:
    """
    Buckets of the distances `query - key` between tokens: exact up to half of `bucket_size`, logarithmic beyond.

    Args:
        bucket_size (`int`): Number of buckets to each side, zero included.
        max_length (`int`): Number of positions.

    Returns:
        `torch.LongTensor` of shape `(2 * max_length - 1,)`: entry `d + max_length - 1` is the bucket of distance `d`.
    """
    # On the CPU always: the ceiling below must not depend on how a device rounds a logarithm.
    distance = torch.arange(1 - max_length, max_length, device="cpu")
    half = bucket_size // 2
    magnitude = distance.abs().clamp(min=half - 1)
    logarithmic = torch.log(magnitude / half) / math.log((_MAX_TOKEN_DISTANCE - 1) / half) * (half - 1)
    bucket = (torch.ceil(logarithmic) + half).clamp(max=bucket_size - 1).long() * distance.sign()
    return torch.where(magnitude <= half, distance, bucket) + bucket_size - 1


def image_distance_buckets(query_ids: torch.Tensor, key_ids: torch.Tensor, bucket_size: int) -> torch.Tensor:
    """
    Buckets of the two-dimensional distances between image positions.

    Args:
        query_ids (`torch.LongTensor` of shape `(..., queries)`), key_ids (`torch.LongTensor` of shape `(..., keys)`):
            Image positions: 0 for none (the start token of image codes), else `row * bucket_size + column + 1`.
        bucket_size (`int`): Width of the grid of positions.

    Returns:
        `torch.LongTensor` of shape `(..., queries, keys)`: buckets of which the last three stand for "from none",
        "to none" and "from none to none".
    """
    query_ids, key_ids = query_ids.unsqueeze(-1), key_ids.unsqueeze(-2)
    span = 2 * bucket_size - 1
    rows = (query_ids - 1) // bucket_size - (key_ids - 1) // bucket_size
    columns = (query_ids - 1) % bucket_size - (key_ids - 1) % bucket_size
    buckets = (rows + bucket_size - 1) * span + columns + bucket_size - 1
    num_buckets = span * span + 3
    buckets = torch.where(query_ids == 0, num_buckets - 3, buckets)
    buckets = torch.where(key_ids == 0, num_buckets - 2, buckets)
    return torch.where((query_ids == 0) & (key_ids == 0), num_buckets - 1, buckets)


def split_heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`(batch, length, heads * dim)` to `(batch, heads, length, dim)`."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def beside(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a module gives, on the device of its inputs: a device map may have put it on another."""
    return module(inputs).to(inputs.device)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain steps: states `(batch, length, heads, dim)` and weights `(batch, heads, length, keys)`."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        # Clamped, since half precision adds a bias to its smallest number as minus infinity.
        weights = (weights + attention_mask).clamp(min=torch.finfo(weights.dtype).min)
    weights = nn.functional.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class OFAAttention(nn.Module):
    """
    Multi-head attention with an additive position bias and NormFormer's learned factor per head.

    In cross-attention the queries may have more rows than the keys: the beams of one image are then the query rows of
    one attention call, and the image's keys and values are stored once.
    """

    def __init__(self, config: OFAConfig, num_heads: int, layer_idx: int, is_causal: bool = False):
        super().__init__()
        if config.d_model % num_heads:
            raise ValueError(f"`d_model` ({config.d_model}) must be divisible by the attention heads ({num_heads}).")
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.dropout = config.attention_dropout
        self.head_dim = config.d_model // num_heads
        self.scaling = (self.head_dim * config.attn_scale_factor) ** -0.5
        self.num_heads = num_heads

        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        self.c_attn = nn.Parameter(torch.ones(num_heads)) if config.scale_heads else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        prompt: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(rows, length, d_model)`): Queries.
            key_value_states (`torch.FloatTensor` of shape `(images, source_length, d_model)`, *optional*):
                Encoder states, in cross-attention; `rows` is a multiple of `images`.
            attention_mask: What the attention implementation wants, for `rows // images` times `length` queries.
            position_bias (`torch.FloatTensor` of shape `(1 or batch, heads, queries, keys)`): Added to the logits.
            prompt (`torch.FloatTensor` of shape `(2, 1, heads, prompt_length, head_dim)`, *optional*):
                A key and value put in front of all others.

        Returns:
            States of shape `(rows, length, d_model)`, and weights of shape `(rows, heads, length, keys)` or `None`.
        """
        rows, length, _ = hidden_states.shape
        is_cross_attention = key_value_states is not None
        current_states = key_value_states if is_cross_attention else hidden_states
        images = current_states.shape[0]
        query = split_heads(
            self.q_proj(hidden_states).reshape(images, -1, self.num_heads * self.head_dim), self.num_heads
        )

        cache = None
        if past_key_values is not None:
            cache = (
                past_key_values.cross_attention_cache if is_cross_attention else past_key_values.self_attention_cache
            )
        if is_cross_attention and cache is not None and past_key_values.is_updated.get(self.layer_idx):
            key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            key = split_heads(self.k_proj(current_states), self.num_heads)
            value = split_heads(self.v_proj(current_states), self.num_heads)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
                if is_cross_attention:
                    past_key_values.is_updated[self.layer_idx] = True
        if prompt is not None:
            key = torch.cat([prompt[0].expand(key.shape[0], -1, -1, -1), key], dim=2)
            value = torch.cat([prompt[1].expand(value.shape[0], -1, -1, -1), value], dim=2)

        implementation = self.config._attn_implementation
        if position_bias is not None and implementation == "flex_attention":
            position_bias = position_bias.expand(images, -1, -1, -1)  # flex indexes the bias by row
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        states, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=position_bias,
            **kwargs,
        )
        if self.c_attn is not None:
            states = states * self.c_attn.unsqueeze(-1)
        if weights is not None and weights.ndim == 4 and images != rows:
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return self.out_proj(states.reshape(rows, length, -1)), weights


class OFAAdapter(nn.Module):
    """Bottleneck adapter ([Houlsby et al. 2019](https://huggingface.co/papers/1902.00751)), residual included."""

    def __init__(self, d_model: int, adapter_dim: int):
        super().__init__()
        self.down_proj = nn.Linear(d_model, adapter_dim)
        self.up_proj = nn.Linear(adapter_dim, d_model)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.up_proj(nn.functional.relu(self.down_proj(hidden_states)))


class OFALayer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: residual branches around attention and the feed-forward network."""

    def __init__(self, config: OFAConfig, ffn_dim: int, normalize_before: bool, drop_path_rate: float):
        super().__init__()
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.normalize_before = normalize_before
        self.activation_fn = ACT2FN[config.activation_function]
        self.drop_path = OFADropPath(drop_path_rate)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model) if config.scale_attn else None
        self.fc1 = nn.Linear(config.d_model, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, config.d_model)
        self.ffn_layer_norm = nn.LayerNorm(ffn_dim) if config.scale_fc else None
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.w_resid = nn.Parameter(torch.ones(config.d_model)) if config.scale_resids else None
        self.adapter = OFAAdapter(config.d_model, config.adapter_dim) if config.adapter_dim else None

    def attend(
        self,
        attention: OFAAttention,
        layer_norm: nn.LayerNorm,
        mid_layer_norm: nn.LayerNorm | None,
        hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One attention with its norms, dropouts and residual; states of shape `(batch, length, d_model)`."""
        residual = hidden_states
        if self.normalize_before:
            hidden_states = layer_norm(hidden_states)
        hidden_states, _ = attention(hidden_states, **kwargs)
        if mid_layer_norm is not None:
            hidden_states = mid_layer_norm(hidden_states)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        hidden_states = residual + self.drop_path(hidden_states)
        return hidden_states if self.normalize_before else layer_norm(hidden_states)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The feed-forward network with its norms, dropouts, adapter and residual."""
        residual = hidden_states
        if self.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.activation_fn(self.fc1(hidden_states))
        hidden_states = nn.functional.dropout(hidden_states, p=self.activation_dropout, training=self.training)
        if self.ffn_layer_norm is not None:
            hidden_states = self.ffn_layer_norm(hidden_states)
        hidden_states = self.fc2(hidden_states)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        if self.adapter is not None:
            hidden_states = self.adapter(hidden_states)
        if self.w_resid is not None:
            residual = residual * self.w_resid
        hidden_states = residual + self.drop_path(hidden_states)
        return hidden_states if self.normalize_before else self.final_layer_norm(hidden_states)


class OFAEncoderLayer(OFALayer):
    """Self-attention over patches and text, and the feed-forward network."""

    def __init__(self, config: OFAConfig, layer_idx: int, drop_path_rate: float):
        super().__init__(config, config.encoder_ffn_dim, config.encoder_normalize_before, drop_path_rate)
        self.self_attn = OFAAttention(config, config.encoder_attention_heads, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,  # positional, since gradients flow through it under checkpointing
        prompt: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.attend(
            self.self_attn,
            self.self_attn_layer_norm,
            self.self_attn_mid_layer_norm,
            hidden_states,
            attention_mask=attention_mask,
            position_bias=position_bias,
            prompt=prompt,
            **kwargs,
        )
        return self.feed_forward(hidden_states)


class OFADecoderLayer(OFALayer):
    """Causal self-attention, cross-attention to the encoder's states, and the feed-forward network."""

    def __init__(self, config: OFAConfig, layer_idx: int, drop_path_rate: float):
        super().__init__(config, config.decoder_ffn_dim, config.decoder_normalize_before, drop_path_rate)
        self.self_attn = OFAAttention(config, config.decoder_attention_heads, layer_idx, is_causal=True)
        self.cross_attn = OFAAttention(config, config.decoder_attention_heads, layer_idx)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.d_model) if config.scale_attn else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,  # positional, like the two biases, for gradient checkpointing
        position_bias: torch.Tensor,
        cross_position_bias: torch.Tensor,
        prompt: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.attend(
            self.self_attn,
            self.self_attn_layer_norm,
            self.self_attn_mid_layer_norm,
            hidden_states,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_bias=position_bias,
            prompt=prompt,
            **kwargs,
        )
        hidden_states = self.attend(
            self.cross_attn,
            self.cross_attn_layer_norm,
            self.cross_attn_mid_layer_norm,
            hidden_states,
            key_value_states=encoder_hidden_states,
            past_key_values=past_key_values,
            attention_mask=encoder_attention_mask,
            position_bias=cross_position_bias,
            **kwargs,
        )
        return self.feed_forward(hidden_states)


class OFAPromptEncoder(nn.Module):
    """
    Trained prefixes ([Li and Liang 2021](https://huggingface.co/papers/2101.00190)): keys and values in front of every
    self-attention of a stack, stored outright or computed by a small network.
    """

    dropout = 0.2  # fixed in the official code

    def __init__(self, config: OFAConfig, length: int, num_layers: int, num_heads: int, projection_dim: int | None):
        super().__init__()
        self.state_shape = (2 * num_layers, num_heads, config.d_model // num_heads)
        width = 2 * num_layers * config.d_model
        self.embedding = nn.Embedding(length, config.d_model if projection_dim else width)
        self.trans = None
        if projection_dim:
            self.trans = nn.Sequential(
                nn.Linear(config.d_model, projection_dim), nn.ReLU(), nn.Linear(projection_dim, width)
            )

    def forward(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The key and the value of each layer, of shape `(2, 1, heads, length, head_dim)`."""
        prompt = self.embedding(torch.arange(self.embedding.num_embeddings, device=device))
        if self.trans is not None:
            prompt = self.trans(prompt)
        prompt = nn.functional.dropout(prompt, p=self.dropout, training=self.training)
        states = prompt.unflatten(-1, self.state_shape).permute(1, 2, 0, 3)  # (2 * layers, heads, length, head_dim)
        return states.unsqueeze(1).unflatten(0, (-1, 2)).unbind()


class OFAHead(nn.Linear):
    """The projection to the vocabulary: `(..., d_model)` to `(..., vocab_size)`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if states.device.type == "cpu" and not torch.is_grad_enabled():
            # A few rows times a large matrix: CPU libraries are about three times faster the other way round.
            return (self.weight @ states.flatten(0, -2).T).T.unflatten(0, states.shape[:-1])
        return super().forward(states)


class OFAClassificationHead(nn.Module):
    """`(batch, d_model)` to `(batch, num_labels)`, with one hidden layer (`"mlp"`) or none (`"linear"`)."""

    def __init__(self, config: OFAConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(config.d_model, config.d_model) if config.pooler_classifier == "mlp" else None
        self.out_proj = nn.Linear(config.d_model, config.num_labels)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.dropout(states)
        if self.dense is not None:
            states = self.dropout(torch.tanh(self.dense(states)))
        return self.out_proj(states)


__all__ = [
    "OFAAdapter",
    "OFAAttention",
    "OFAClassificationHead",
    "OFADecoderLayer",
    "OFAEncoderLayer",
    "OFAHead",
    "OFALayer",
    "OFAPromptEncoder",
    "beside",
    "eager_attention_forward",
    "image_distance_buckets",
    "split_heads",
    "token_distance_buckets",
]
