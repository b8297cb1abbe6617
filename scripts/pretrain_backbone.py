"""
Trains the ResNet of OFA before the rest of it: every patch of a picture is to name the object in whose box it lies.

    python scripts/pretrain_backbone.py --config recipes/world_backbone.yaml --output_dir runs/backbone
    python scripts/pretrain.py --config recipes/world_model.yaml --backbone runs/backbone/resnet.safetensors …

The official runs begin with a ResNet that knows ImageNet. Where there is none, pictures with boxes teach one, at a
fraction of what the whole model costs. A run that was stopped goes on when the same command is given again.
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

from modeling_ofa import OFAConfig, OFAImageProcessorPil
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.data.collator import encoded_picture
from modeling_ofa.data.readers import load_examples
from modeling_ofa.training.recipes import last_checkpoint, parse_recipe
from modeling_ofa.vision_ofa import PATCH_SIZE, OFAResNet


logger = logging.getLogger("pretrain_backbone")


@dataclass
class BackboneRecipe:
    """The settings of a recipe beside those of [`TrainingArguments`]."""

    data: str | None = field(default=None, metadata={"help": "Examples of object_detection: load_examples' options"})
    model_config: str = field(default="{}", metadata={"help": "fields of OFAConfig: a mapping"})
    image_size: int = field(default=384, metadata={"help": "side of the pictures"})
    ground_weight: float = field(default=0.2, metadata={"help": "how much a patch outside of all boxes counts"})
    label_smoothing: float = field(default=0.0, metadata={"help": "spread over all names"})
    total_batch_size: int | None = field(default=None, metadata={"help": "pictures a step, of all processes"})


class PatchNamer(nn.Module):
    """
    A ResNet with a linear layer, which is thrown away.

    Args:
        config ([`OFAConfig`]): Of the model that the ResNet is for.
        num_names (`int`): How many names there are.
        ground_weight (`float`): How much patches outside of all boxes count.
        label_smoothing (`float`): What is spread over all names.
    """

    def __init__(self, config: OFAConfig, num_names: int, ground_weight: float, label_smoothing: float):
        super().__init__()
        self.resnet = OFAResNet(config)
        self.head = nn.Linear(self.resnet.num_channels, num_names + 1)
        self.register_buffer("weights", torch.tensor([ground_weight, *[1.0] * num_names]), persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Names patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Pictures.
            labels (`torch.LongTensor` of shape `(batch, patches)`): Places of names, from 1; 0 outside of boxes.
        """
        features = self.resnet(pixel_values.contiguous(memory_format=torch.channels_last))
        logits = self.head(features.flatten(2).transpose(1, 2)).flatten(0, 1)
        loss = nn.functional.cross_entropy(
            logits, labels.flatten(), self.weights, label_smoothing=self.label_smoothing
        )
        return {"loss": loss, "logits": logits}


class PatchCollator:
    """
    Makes pixels, and the name of each patch: that of the smallest box in which its middle lies.

    Args:
        processor ([`OFAImageProcessorPil`]): Makes the pixels.
        names (`Sequence[str]`): All names.
    """

    def __init__(self, processor: OFAImageProcessorPil, names: Sequence[str]):
        self.processor = processor
        self.places = {name: place for place, name in enumerate(names, start=1)}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pictures = [self.processor.fetch_images(encoded_picture(row["image"])) for row in rows]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        height, width = (side // PATCH_SIZE for side in pixels.shape[-2:])
        labels = np.zeros((len(rows), height, width), dtype=np.int64)
        for own, row, picture in zip(labels, rows, pictures, strict=True):
            boxes = np.asarray(row["boxes"], dtype=float).reshape(-1, 4)
            for i in np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable"):
                x0, y0, x1, y1 = boxes[i] * np.tile([width / picture.width, height / picture.height], 2) - 0.5
                inside = (slice(max(0, int(np.ceil(y0))), int(np.floor(y1)) + 1),)
                inside += (slice(max(0, int(np.ceil(x0))), int(np.floor(x1)) + 1),)
                own[inside] = self.places[row["labels"][i]]
        return {"pixel_values": pixels, "labels": torch.from_numpy(labels).flatten(1)}


def run(recipe: BackboneRecipe, args: TrainingArguments) -> None:
    if recipe.data is None:
        raise ValueError("Say with data which Examples of object_detection to train on.")
    options = {"split": "train", **json.loads(recipe.data)}
    with args.main_process_first(desc="reading data"):
        data: Dataset = load_examples(options.pop("format"), options.pop("path"), **options)
    data = data.remove_columns(sorted(set(data.column_names) - {"image", "boxes", "labels"}))
    names = sorted({name for labels in data["labels"] for name in labels or ()})
    if not names:
        raise ValueError("The data has no named boxes: object_detection Examples are needed.")
    set_seed(args.seed)
    args.remove_unused_columns = False
    model = PatchNamer(
        OFAConfig(**json.loads(recipe.model_config)), len(names), recipe.ground_weight, recipe.label_smoothing
    )
    processor = OFAImageProcessorPil(size={"height": recipe.image_size, "width": recipe.image_size})
    logger.info("%d pictures, %d names", len(data), len(names))
    trainer = Trainer(model, args, train_dataset=data, data_collator=PatchCollator(processor, names))
    trainer.train(args.resume_from_checkpoint or last_checkpoint(args.output_dir))
    if args.should_save:
        path = Path(args.output_dir) / "resnet.safetensors"
        save_file({name: value.contiguous() for name, value in model.resnet.state_dict().items()}, path)
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
