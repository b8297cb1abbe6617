"""OFA's image backbones: the first three stages of a ResNet (V1.5), and the ViT variant of the official code."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_ofa import RESNET_DEPTHS, VIT, OFAConfig


PATCH_SIZE = 16  # pixels per patch side, in every backbone


class OFADropPath(nn.Module):
    """
    Stochastic depth ([Huang et al. 2016](https://huggingface.co/papers/1603.09382)): in training, drops the residual
    branch of a whole sample with probability `rate` and rescales the others.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return hidden_states
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        keep = torch.rand(shape, device=hidden_states.device) >= self.rate
        return hidden_states * keep.to(hidden_states.dtype) / (1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Drop path grows linearly from 0 in the first of `depth` layers to `rate` in the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class OFAFrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and affine parameters are constants (buffers)."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(
            hidden_states, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class OFABatchNorm2d(nn.BatchNorm2d):
    """
    Batch normalization that is frozen together with its weight: where `weight.requires_grad` is off, it uses and keeps
    its running statistics in training too. What trains some weights only, such as LoRA, would else change the
    statistics of a model that it means to leave alone, and save nothing of that.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad:
            return super().forward(hidden_states)
        return nn.functional.batch_norm(
            hidden_states, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class OFAResNetBottleneck(nn.Module):
    """Bottleneck block V1.5: the stride is in the 3×3 convolution."""

    expansion = 4

    def __init__(
        self, config: OFAConfig, in_channels: int, channels: int, stride: int = 1, drop_path_rate: float = 0.0
    ):
        super().__init__()
        norm = OFAFrozenBatchNorm2d if config.freeze_resnet else OFABatchNorm2d
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = OFADropPath(drop_path_rate)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), norm(out_channels)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = self.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.bn3(self.conv3(hidden_states))
        return self.relu(residual + self.drop_path(hidden_states))


class OFAResNet(nn.Module):
    """
    Stem and three stages of a ResNet: pixels of shape `(batch, 3, height, width)` to features of shape
    `(batch, 16 * resnet_embedding_size, ceil(height / 16), ceil(width / 16))`.
    """

    def __init__(self, config: OFAConfig):
        super().__init__()
        norm = OFAFrozenBatchNorm2d if config.freeze_resnet else OFABatchNorm2d
        stem = config.resnet_embedding_size
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        depths = config.resnet_depths or RESNET_DEPTHS[config.resnet_type]
        in_channels = stem
        for stage, depth in enumerate(depths):
            channels = stem * 2**stage
            rates = drop_path_rates(config.resnet_drop_path_rate, depth)
            rates[0] = 0.0  # the official code never drops a stage's first block
            blocks = []
            for i, rate in enumerate(rates):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(OFAResNetBottleneck(config, in_channels, channels, stride, rate))
                in_channels = channels * OFAResNetBottleneck.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_channels = in_channels

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and self.bn1.weight.requires_grad):
            # The faster layout, on CPUs and on tensor cores. Training keeps the official one: gradients of batch
            # statistics depend on the order of sums, by up to 0.6 % of their norm in the recorded step.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        hidden_states = self.maxpool(self.relu(self.bn1(self.conv1(pixel_values))))
        return self.layer3(self.layer2(self.layer1(hidden_states)))


class OFAViTBlock(nn.Module):
    """Pre-norm transformer block with CLIP's activation and parameter names."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, 4 * width),
                "gelu": ACT2FN["quick_gelu"],
                "c_proj": nn.Linear(4 * width, width),
            }
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(hidden_states)
        hidden_states = hidden_states + self.attn(normed, normed, normed, need_weights=False)[0]
        inner = self.mlp["gelu"](self.mlp["c_fc"](self.ln_2(hidden_states)))
        return hidden_states + self.mlp["c_proj"](inner)


class OFAViTEncoder(nn.Module):
    """A stack of [`OFAViTBlock`]s, under the official parameter names."""

    def __init__(self, width: int, depth: int, num_heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList([OFAViTBlock(width, num_heads) for _ in range(depth)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            hidden_states = block(hidden_states)
        return hidden_states


class OFAVisionTransformer(nn.Module):
    """
    The official `ViT-B/16` variant: nine layers of width 768 without a class token. Pixels of shape
    `(batch, 3, height, width)` to features of shape `(batch, 768, height // 16, width // 16)`.
    """

    image_size = 224  # of pre-training; position embeddings are interpolated for others

    def __init__(self, config: OFAConfig):
        super().__init__()
        width, depth, num_heads = 768, 9, 12
        self.num_channels = width
        self.grid = self.image_size // PATCH_SIZE
        self.conv1 = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE, bias=False)
        # Row 0 belonged to the class token and is not used.
        self.positional_embedding = nn.Parameter(torch.empty(self.grid**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = OFAViTEncoder(width, depth, num_heads)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.conv1(pixel_values)  # (batch, channels, rows, columns)
        batch_size, channels, rows, columns = features.shape
        positions = self.positional_embedding[1:]
        if (rows, columns) != (self.grid, self.grid):
            positions = positions.reshape(1, self.grid, self.grid, channels).permute(0, 3, 1, 2)
            positions = nn.functional.interpolate(positions, size=(rows, columns), mode="bilinear")
            positions = positions.flatten(2).transpose(1, 2)
        hidden_states = self.transformer(self.ln_pre(features.flatten(2).transpose(1, 2) + positions))
        return hidden_states.transpose(1, 2).reshape(batch_size, channels, rows, columns)


def build_image_backbone(config: OFAConfig) -> OFAResNet | OFAVisionTransformer:
    """The backbone that `config.resnet_type` names."""
    return OFAVisionTransformer(config) if config.resnet_type == VIT else OFAResNet(config)


__all__ = [
    "OFABatchNorm2d",
    "OFADropPath",
    "OFAFrozenBatchNorm2d",
    "OFAResNet",
    "OFAVisionTransformer",
    "build_image_backbone",
]
