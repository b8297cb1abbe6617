"""A model small enough to be built anew in every test, and inputs for it."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers.pre_tokenizers import ByteLevel

from modeling_ofa import (
    OFAConfig,
    OFAForConditionalGeneration,
    OFAImageProcessor,
    OFAPreTrainedModel,
    OFAProcessor,
    OFATokenizer,
)


Model = TypeVar("Model", bound=OFAPreTrainedModel)

# Ids 0 to 3 are <s>, <pad>, </s> and <unk>; the rest stand for words.
VOCAB_SIZE = 200


def tiny_config(**kwargs: Any) -> OFAConfig:
    """Two layers of width 32 over a ResNet of three blocks; images of up to 128 x 128 pixels, 64 positions."""
    fields = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 64,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "dropout": 0.0,
        "resnet_depths": [1, 1, 1],
        "resnet_embedding_size": 8,
        "image_bucket_size": 8,
        "token_bucket_size": 8,
        "code_image_size": 32,
    }
    return OFAConfig(**{**fields, **kwargs})


@torch.no_grad()
def randomize(model: Model, seed: int = 0) -> Model:
    """
    Gives every weight a size that matters. As initialized, with biases of 0, factors of 1 and everything else near 0,
    a model gives nearly the same whatever its positions and masks say, and tests would see little.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("running_var"):
            noise = noise.abs() + 0.5
        elif "rel_pos_table" in name:
            noise = noise * 0.5
        elif "embed" in name and "norm" not in name and parameter.ndim == 2:
            noise = noise * 0.5
        elif parameter.ndim == 4:
            noise = noise * (2 / parameter[0].numel()) ** 0.5
        elif parameter.ndim > 1:
            noise = noise * parameter.shape[-1] ** -0.5
        elif name.endswith("bias") or name.endswith("running_mean"):
            noise = noise * 0.1
        elif "layernorm_embedding" in name:
            noise = 0.3 + noise * 0.1  # else the last token's own embedding decides the next
        else:
            noise = 1.0 + noise * 0.1
        parameter.copy_(noise)
    return model


def tiny_model(cls: type[Model] = OFAForConditionalGeneration, seed: int = 0, **kwargs: Any) -> Model:
    """A `cls` over [`tiny_config`] with weights that matter, ready for inference."""
    attn_implementation = kwargs.pop("attn_implementation", None)
    config = tiny_config(**kwargs)
    config._attn_implementation = attn_implementation
    return randomize(cls(config), seed).eval()


def save_checkpoint(folder: Path) -> Path:
    """Writes a random model so small that it answers at once, with a vocabulary of bytes, and gives its folder."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    tokenizer = OFATokenizer(
        {word: index for index, word in enumerate(words)}, [], num_codes=0, num_bins=10, model_max_length=300
    )
    processor = OFAProcessor(OFAImageProcessor(size={"height": 64, "width": 64}), tokenizer, max_image_size=64)
    processor.save_pretrained(folder)
    config = OFAConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=300,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        resnet_depths=[1, 1, 1],
        resnet_embedding_size=8,
        image_bucket_size=4,
    )
    torch.manual_seed(0)
    OFAForConditionalGeneration(config).save_pretrained(folder)
    return folder


def token_ids(lengths: list[int], width: int | None = None, seed: int = 0) -> torch.LongTensor:
    """Rows `<s> … </s>` of these lengths, padded on the right: `(len(lengths), max(lengths) or width)`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.ones(len(lengths), width or max(lengths), dtype=torch.long)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(4, VOCAB_SIZE, (length,), generator=generator)
        row[0], row[length - 1] = 0, 2
    return ids


def images(batch_size: int, height: int = 64, width: int = 48, seed: int = 0) -> torch.FloatTensor:
    """Noise of shape `(batch_size, 3, height, width)`."""
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(seed))


# Sums in another order differ by this much at float32, on values of size 10.
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}

SOURCE = token_ids([9, 6, 4])
TARGET = token_ids([7, 5, 3], seed=1)
HAS_IMAGE = torch.tensor([True, False, True])


def batch(**kwargs: Any) -> dict[str, Any]:
    """Three padded rows of text, all with an image."""
    return {"input_ids": SOURCE, "pixel_values": images(3), "decoder_input_ids": TARGET, **kwargs}


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    """Targets of ids: no loss for padding."""
    return ids.masked_fill(ids == 1, -100)


TRAINED = {
    "input_ids": SOURCE,
    "pixel_values": images(3),
    "patch_masks": HAS_IMAGE,
    "labels": labels_of(TARGET),
    "code_masks": torch.tensor([True, False, False]),
}


def gradients(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one step, and the gradient of each parameter that has one."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
