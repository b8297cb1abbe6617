"""
Trains the ResNet of OFA before the rest of it: every patch of a picture is to name the object in whose box it lies,
and to tell where the box ends.

    python scripts/pretrain_backbone.py --config recipes/world_backbone.yaml --output_dir runs/backbone
    python scripts/pretrain.py --config recipes/world_model.yaml --backbone runs/backbone/backbone.safetensors …
    python scripts/pretrain_backbone.py --config recipes/world_middles.yaml --output_dir runs/middles

The official runs begin with a ResNet that knows ImageNet. Where there is none, pictures with boxes teach one, at a
fraction of what the whole model costs. Patches are named by the model's own projection of pictures and embeddings of
tokens, which are kept: the model then begins with patches that look to it like the words for what they show. With
`checkpoint` the ResNet of a model goes on, by its projection and embeddings as they are, and all of it is written.

A run that was stopped goes on when the same command is given again.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAImageProcessorPil, OFAProcessor, OFATokenizer
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.data.collator import encoded_picture
from modeling_ofa.data.readers import load_examples
from modeling_ofa.training.recipes import is_over, last_checkpoint, parse_recipe
from modeling_ofa.vision_ofa import PATCH_SIZE, OFAResNet


logger = logging.getLogger("pretrain_backbone")


@dataclass
class BackboneRecipe:
    """The settings of a recipe beside those of [`TrainingArguments`]."""

    data: str | None = field(default=None, metadata={"help": "Examples of object_detection: load_examples' options"})
    processor: str | None = field(default=None, metadata={"help": "folder or Hub id of the model's processor"})
    checkpoint: str | None = field(default=None, metadata={"help": "an OFA whose ResNet goes on: it alone is trained"})
    model_config: str = field(default="{}", metadata={"help": "fields of OFAConfig, without checkpoint: a mapping"})
    image_size: int = field(default=384, metadata={"help": "side of the pictures"})
    ground_weight: float = field(default=0.2, metadata={"help": "how much a patch outside of all boxes counts"})
    sides_weight: float = field(default=5.0, metadata={"help": "how much the sides of boxes count"})
    middles_weight: float = field(default=0.0, metadata={"help": "how much the middles of boxes count"})
    label_smoothing: float = field(default=0.0, metadata={"help": "spread over all names"})
    total_batch_size: int | None = field(default=None, metadata={"help": "pictures a step, of all processes"})


class PatchNamer(nn.Module):
    """
    What OFA makes of a picture before its first layer, with linear layers for the sides and the middles of boxes that
    are thrown away.

    A patch is named by the first token of a name, as the decoder is to begin it: by the product of the token's
    embedding and the patch's, normalized.

    Args:
        config ([`OFAConfig`]): Of the model that this is for.
        name_ids (`Sequence[int]`): The tokens that name patches; the first is that of patches outside of all boxes.
        ground_weight (`float`): How much these patches count.
        sides_weight (`float`): How much the mean error of the sides counts, in parts of the picture's.
        middles_weight (`float`): How much the mean squared error of the middles counts.
        label_smoothing (`float`): What is spread over all names.
    """

    def __init__(
        self,
        config: OFAConfig,
        name_ids: Sequence[int],
        ground_weight: float,
        sides_weight: float,
        middles_weight: float,
        label_smoothing: float,
    ):
        super().__init__()
        self.embed_images = OFAResNet(config)
        self.image_proj = nn.Linear(self.embed_images.num_channels, config.d_model)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embed_tokens.weight, std=config.d_model**-0.5)
        self.sides = nn.Linear(config.d_model, 4)
        self.middles = nn.Linear(self.embed_images.num_channels, 1) if middles_weight else None
        self.name_ids: torch.Tensor
        self.weights: torch.Tensor
        self.register_buffer("name_ids", torch.tensor(name_ids), persistent=False)
        self.register_buffer("weights", torch.tensor([ground_weight] + [1.0] * (len(name_ids) - 1)), persistent=False)
        self.sides_weight, self.middles_weight, self.label_smoothing = sides_weight, middles_weight, label_smoothing

    def go_on_with(self, model: OFAForConditionalGeneration) -> None:
        """Takes the ResNet of a model, and its projection and embeddings, which stay as they are."""
        encoder = model.get_encoder()
        for name in ("embed_images", "image_proj", "embed_tokens"):
            getattr(self, name).load_state_dict(getattr(encoder, name).state_dict())
        for module in (self.image_proj, self.embed_tokens):
            module.requires_grad_(False)
        for module in filter(None, (self.sides, self.middles)):  # these learn first
            nn.init.zeros_(module.weight)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, sides: torch.Tensor, middles: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        Names patches and bounds what they show.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Pictures.
            labels (`torch.LongTensor` of shape `(batch, patches)`): Places in `name_ids`; 0 outside of boxes.
            sides (`torch.FloatTensor` of shape `(batch, patches, 4)`):
                How far the left, top, right and bottom of the box are from the middle of the patch, in parts of the
                picture's sides.
            middles (`torch.FloatTensor` of shape `(batch, patches)`):
                How many middles of boxes are in the patch; one between patches counts for each in part.
        """
        features = self.embed_images(pixel_values.contiguous(memory_format=torch.channels_last))
        features = features.flatten(2).transpose(1, 2)
        patches = self.image_proj(features)
        patches = nn.functional.layer_norm(patches, patches.shape[-1:])
        logits = patches @ self.embed_tokens(self.name_ids).T
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), self.weights, label_smoothing=self.label_smoothing
        )
        inside = labels > 0
        errors = (self.sides(patches[inside]) - sides[inside]).abs()
        loss = loss + self.sides_weight * errors.sum() / max(1, errors.numel())
        if self.middles is not None:
            loss = loss + self.middles_weight * nn.functional.mse_loss(self.middles(features)[..., 0], middles)
        return {"loss": loss, "logits": logits}

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """The ResNet's under torchvision's names, and those of `image_proj` and `embed_tokens`."""
        kept = self.embed_images.state_dict()
        for name in ("image_proj", "embed_tokens"):
            kept |= getattr(self, name).state_dict(prefix=f"{name}.")
        return {name: value.contiguous() for name, value in kept.items()}


class PatchCollator:
    """
    Makes pixels, and of each patch the name and the sides of the smallest box in which its middle lies.

    Args:
        processor ([`OFAImageProcessorPil`]): Makes the pixels.
        places (`Mapping[str, int]`): What stands for a name.
    """

    def __init__(self, processor: OFAImageProcessorPil, places: Mapping[str, int]):
        self.processor, self.places = processor, places

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pictures = [self.processor.fetch_images(encoded_picture(row["image"])) for row in rows]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        height, width = (side // PATCH_SIZE for side in pixels.shape[-2:])
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        labels = np.zeros((len(rows), height, width), dtype=np.int64)
        sides = np.zeros((len(rows), height, width, 4), dtype=np.float32)
        middles = np.zeros((len(rows), height, width), dtype=np.float32)
        for i, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
            boxes = np.asarray(row["boxes"], dtype=float).reshape(-1, 4) / np.tile(picture.size, 2)
            for place in np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable"):
                x0, y0, x1, y1 = boxes[place]
                distances = np.stack([x - x0, y - y0, x1 - x, y1 - y], axis=-1)
                inside = (distances >= 0).all(axis=-1)
                labels[i, inside] = self.places[row["labels"][place]]
                sides[i, inside] = distances[inside]
            middles[i] = middles_of(boxes, height, width)
        patches = {
            name: torch.from_numpy(one) for name, one in (("labels", labels), ("sides", sides), ("middles", middles))
        }
        return {"pixel_values": pixels, **{name: value.flatten(1, 2) for name, value in patches.items()}}


def middles_of(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    Gives how many middles of boxes, of shape `(boxes, 4)` in parts of the picture's sides, are in each patch:
    `(height, width)`. The middle of a box is shared by the four patches around it, the nearest has most of it.
    """
    places = (boxes[:, :2] + boxes[:, 2:]) / 2 * (width, height) - 0.5  # counted from the middles of patches
    x, y = places.clip(0, (width - 1, height - 1)).T[..., None]
    return (1 - abs(y - np.arange(height))).clip(0).T @ (1 - abs(x - np.arange(width))).clip(0)


def name_tokens(names: Sequence[str], tokenizer: OFATokenizer) -> tuple[list[int], dict[str, int]]:
    """
    Gives the tokens that name patches, and the place among them of each name.

    The first is that of unknown words, which no text needs, for patches outside of all boxes. Names that begin with
    the same token have the same place.
    """
    first = {name: tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in names}
    ids = [tokenizer.unk_token_id, *dict.fromkeys(first.values())]
    return ids, {name: ids.index(token) for name, token in first.items()}


def run(recipe: BackboneRecipe, args: TrainingArguments) -> None:
    if recipe.data is None:
        raise ValueError("Say with data which Examples of object_detection to train on.")
    if recipe.processor is None:
        raise ValueError("Say with processor whose tokens shall name patches: that of the model which this is for.")
    if recipe.checkpoint and json.loads(recipe.model_config):
        raise ValueError("Leave out model_config, which is of a new model, or checkpoint, which has its own.")
    if is_over(args.output_dir, args.max_steps):
        logger.info("%s: all %d steps are taken", args.output_dir, args.max_steps)
        return
    tokenizer = OFATokenizer.from_pretrained(recipe.processor)
    options = {"split": "train", **json.loads(recipe.data)}
    with args.main_process_first(desc="reading data"):
        data: Dataset = load_examples(options.pop("format"), options.pop("path"), **options)
    data = data.remove_columns(sorted(set(data.column_names) - {"image", "boxes", "labels"}))
    names = sorted({name for labels in data["labels"] for name in labels or ()})
    if not names:
        raise ValueError("The data has no named boxes: object_detection Examples are needed.")
    set_seed(args.seed)
    args.remove_unused_columns = False
    ids, places = name_tokens(names, tokenizer)
    known = recipe.checkpoint and OFAForConditionalGeneration.from_pretrained(recipe.checkpoint, dtype=torch.float32)
    config = known.config if known else OFAConfig(**{"vocab_size": len(tokenizer), **json.loads(recipe.model_config)})
    weights = (recipe.ground_weight, recipe.sides_weight, recipe.middles_weight)
    model = PatchNamer(config, ids, *weights, recipe.label_smoothing)
    if known:
        model.go_on_with(known)
    processor = OFAImageProcessorPil(size={"height": recipe.image_size, "width": recipe.image_size})
    logger.info("%d pictures, %d names", len(data), len(names))
    trainer = Trainer(model, args, train_dataset=data, data_collator=PatchCollator(processor, places))
    trainer.train(args.resume_from_checkpoint or last_checkpoint(args.output_dir))
    if args.should_save:
        path = Path(args.output_dir)
        if known:
            known.get_encoder().embed_images.load_state_dict(model.embed_images.state_dict())
            known.save_pretrained(path)
            OFAProcessor.from_pretrained(recipe.checkpoint).save_pretrained(path)
        else:
            path /= "backbone.safetensors"
            save_file(model.kept_weights(), path)
        trainer.save_state()
        print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    try:
        recipe, args = parse_recipe([BackboneRecipe, TrainingArguments], arguments, __doc__)
        logger.setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
        run(recipe, args)
    except (CommandError, ValueError, TypeError, OSError, ImportError) as error:
        print(f"pretrain_backbone.py: error: {first_line(error)}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
