"""OFA's configuration: every architecture option of the published checkpoints, and the published sizes."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# Stages kept of each ResNet. OFA's "18" and "34" use bottleneck blocks too, so 34 and 50 are the same network.
RESNET_DEPTHS = {
    "resnet18": [2, 2, 2],
    "resnet34": [3, 4, 6],
    "resnet50": [3, 4, 6],
    "resnet101": [3, 4, 23],
    "resnet152": [3, 8, 36],
}
VIT = "ViT-B/16"

# d_model, feed-forward, heads, encoder layers, decoder layers, image backbone (paper, table 1)
_SIZES = {
    "tiny": (256, 1024, 4, 4, 4, "resnet50"),
    "medium": (512, 2048, 8, 4, 4, "resnet101"),
    "base": (768, 3072, 12, 6, 6, "resnet101"),
    "large": (1024, 4096, 16, 12, 12, "resnet152"),
    "huge": (1280, 5120, 16, 24, 12, "resnet152"),
}


@strict
class OFAConfig(PreTrainedConfig):
    r"""
    Configuration of an OFA model ([paper](https://huggingface.co/papers/2202.03052)). The defaults are those of the
    published base checkpoint; [`OFAConfig.from_size`] gives the other sizes.

    Args:
        vocab_size (`int`, defaults to 59457):
            Words (50,265), image codes (8,192) and locations (1,000) in one vocabulary.
        max_position_embeddings (`int`, defaults to 1024):
            Longest text, in tokens, of encoder and decoder.
        scale_attn, scale_fc, scale_heads, scale_resids (`bool`):
            NormFormer's additions: LayerNorm after each attention, LayerNorm inside the feed-forward network, one
            learned factor per attention head, one learned factor per residual channel. `normformer=True`, as older
            configurations write it, switches on the first three.
        attn_scale_factor (`float`, defaults to 2.0):
            Content and position logits are both divided by `sqrt(head_dim * attn_scale_factor)`.
        entangle_position_embedding, disable_entangle (`bool`):
            Whether position embeddings are also added to the content: in the encoder when the first is true, in the
            decoder when the second is false (the official code reads two different switches).
        token_bucket_size (`int`, defaults to 256), image_bucket_size (`int`, defaults to 42):
            Buckets of the relative bias between tokens; patches per side of the largest image.
        code_image_size (`int`, defaults to 128):
            Side in pixels of the pictures whose codes the decoder writes, eight pixels a code.
        interpolate_position (`bool`, defaults to `False`), orig_patch_image_size (`int`, defaults to 256):
            Whether images larger than the second interpolate its position embeddings.
        resnet_type (`str`, defaults to `"resnet101"`):
            `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"`, `"resnet152"` or `"ViT-B/16"`.
        resnet_depths (`list[int]`, *optional*), resnet_embedding_size (`int`, defaults to 64):
            Blocks of the three stages, if other than `resnet_type` says, and channels of the stem; sixteen times as
            many channels come out of the third stage.
        freeze_resnet (`bool`, defaults to `False`):
            Batch norms of the ResNet are constants, neither trained nor updated.
        type_vocab_size (`int`, defaults to 2):
            Token types: text, image; a third one for the second image of two.
        adapter_dim (`int`, *optional*):
            Width of the bottleneck adapter after each feed-forward network; none without it.
        encoder_prompt_length, decoder_prompt_length (`int`, *optional*):
            Number of trained prefix keys and values in front of every self-attention; none without it.
        encoder_prompt_projection_dim, decoder_prompt_projection_dim (`int`, *optional*):
            Hidden width of the network that computes the prefixes, where they are not stored outright.
        pooler_classifier (`str`, defaults to `"mlp"`):
            Classification head of [`OFAForSequenceClassification`]: `"mlp"` or `"linear"`.

    The other arguments mean what they mean in [`BartConfig`].

    Example:

    ```python
    >>> from modeling_ofa import OFAConfig, OFAForConditionalGeneration

    >>> config = OFAConfig.from_size("tiny")
    >>> model = OFAForConditionalGeneration(config)
    ```
    """

    model_type = "ofa"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: int = 59457
    max_position_embeddings: int = 1024
    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 12
    decoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    decoder_ffn_dim: int = 3072
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    activation_function: str = "gelu"
    init_std: float = 0.02
    encoder_layerdrop: float | int = 0.0
    decoder_layerdrop: float | int = 0.0
    encoder_drop_path_rate: float | int = 0.0
    decoder_drop_path_rate: float | int = 0.0
    encoder_normalize_before: bool = True
    decoder_normalize_before: bool = True
    layernorm_embedding: bool = True
    patch_layernorm_embedding: bool = True
    code_layernorm_embedding: bool = True
    add_type_embedding: bool = True
    type_vocab_size: int = 2
    scale_attn: bool = True
    scale_fc: bool = True
    scale_heads: bool = True
    scale_resids: bool = False
    attn_scale_factor: float | int = 2.0
    entangle_position_embedding: bool = False
    disable_entangle: bool = True
    token_bucket_size: int = 256
    image_bucket_size: int = 42
    code_image_size: int = 128
    interpolate_position: bool = False
    orig_patch_image_size: int = 256
    resnet_type: str = "resnet101"
    resnet_depths: list[int] | None = None
    resnet_embedding_size: int = 64
    resnet_drop_path_rate: float | int = 0.0
    freeze_resnet: bool = False
    adapter_dim: int | None = None
    encoder_prompt_length: int | None = None
    decoder_prompt_length: int | None = None
    encoder_prompt_projection_dim: int | None = None
    decoder_prompt_projection_dim: int | None = None
    pooler_classifier: str = "mlp"
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 0
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any):
        # What the Hub's `OFA-Sys/*` configurations say in one word.
        normformer = kwargs.pop("normformer", None)
        if normformer is not None:
            self.scale_attn = self.scale_fc = self.scale_heads = normformer
        if pipelines := kwargs.pop("custom_pipelines", None):
            from transformers.pipelines import PIPELINE_REGISTRY  # which few configurations need

            # Where the package has registered its pipelines, nobody has to trust the code of a repository for them.
            known = PIPELINE_REGISTRY.supported_tasks
            if others := {name: one for name, one in pipelines.items() if name not in known}:
                kwargs["custom_pipelines"] = others
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict`: refuses what no OFA model can be built from."""
        if self.resnet_type != VIT and self.resnet_depths is None and self.resnet_type not in RESNET_DEPTHS:
            raise ValueError(f"`resnet_type` must be one of {[*RESNET_DEPTHS, VIT]}, got {self.resnet_type!r}.")
        if self.resnet_depths is not None and len(self.resnet_depths) != 3:
            raise ValueError(f"`resnet_depths` must name the blocks of three stages, got {self.resnet_depths}.")
        if self.pooler_classifier not in ("mlp", "linear"):
            raise ValueError(f'`pooler_classifier` must be "mlp" or "linear", got {self.pooler_classifier!r}.')

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> "OFAConfig":
        """
        The configuration of a published size.

        Args:
            size (`str`): `"tiny"`, `"medium"`, `"base"`, `"large"` or `"huge"`.
            kwargs: Any field of [`OFAConfig`], in place of the size's own.

        Raises:
            ValueError: No such size.
        """
        if size not in _SIZES:
            raise ValueError(f"Unknown OFA size {size!r}: the published sizes are {', '.join(_SIZES)}.")
        d_model, ffn_dim, heads, encoder_layers, decoder_layers, resnet_type = _SIZES[size]
        fields = {
            "d_model": d_model,
            "encoder_ffn_dim": ffn_dim,
            "decoder_ffn_dim": ffn_dim,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "resnet_type": resnet_type,
        }
        return cls(**{**fields, **kwargs})


__all__ = ["OFAConfig"]
