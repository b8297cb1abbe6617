"""
Pre-trains OFA on the eight tasks of the official code, from scratch or from a checkpoint on.

    python scripts/pretrain.py --config recipes/pretrain_base.yaml --processor OFA-Sys/ofa-base --output_dir runs/base
    accelerate launch --num_processes 8 scripts/pretrain.py --config recipes/pretrain_base.yaml --learning_rate 2e-4 …

A run that was stopped goes on from its last checkpoint when the same command is given again. docs/pretrain.md says
what the data looks like, and what a recipe may hold.
"""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
import torch
from transformers import TrainingArguments, set_seed
from transformers.modeling_utils import load_state_dict

from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.data.official import find_files
from modeling_ofa.data.readers import load_examples
from modeling_ofa.modeling_ofa import OFAEncoder
from modeling_ofa.training.freezing import freeze
from modeling_ofa.training.pretraining import Negatives, PretrainingMixture, PretrainingRows, PretrainingTrainer
from modeling_ofa.training.recipes import is_over, last_checkpoint, parse_recipe, refuse_unknown


logger = logging.getLogger("pretrain")

_PIECE = 64 << 20  # bytes of a TSV file that a stream reads from their beginning when a run goes on
_KINDS = {"image_text": "vision_language", "text": "text_infilling", "image": "image_infilling"}
_KINDS["detection"] = "object_detection"


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class PretrainingRecipe:
    """The settings of a recipe beside those of [`TrainingArguments`]."""

    size: str | None = _setting(None, "from scratch: tiny, medium, base, large or huge")
    checkpoint: str | None = _setting(None, "or from these weights on: a folder or Hub id")
    backbone: str | None = _setting(
        None, "from scratch, but with a ResNet: a file of torchvision's names, or of scripts/pretrain_backbone.py"
    )
    processor: str | None = _setting(None, "folder or Hub id of tokenizer and processor (default: the checkpoint's)")
    model_config: str | None = _setting(None, "fields of OFAConfig: a mapping, or JSON on the command line")
    attn_implementation: str | None = _setting(None, "eager, sdpa, …: eager is the fastest to train with on CPUs")
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "parts that are not trained: resnet, embeddings, …"}
    )
    freeze_encoder_layers: int = _setting(0, "so many first layers of the encoder are not trained either")
    image_text: str | None = _setting(
        None, "captions, questions and phrases: a file, several, or load_examples' options"
    )
    text: str | None = _setting(None, "texts, likewise")
    image: str | None = _setting(None, "pictures with the codes of their middle, likewise")
    detection: str | None = _setting(None, "pictures with their objects, likewise")
    negatives: str | None = _setting(None, "folder with all_captions.txt, object.txt and type2ans.json")
    on_bad_row: Literal["raise", "skip"] = _setting("raise", "what to do with damaged rows: raise or skip")
    image_size: int = _setting(384, "side of pictures with texts")
    matching: float = _setting(1.0, "part of captions and questions that is also asked to be matched; officially all")
    augment: bool = _setting(True, "cut, enlarge and mirror pictures as officially")
    sample_patch_num: int = _setting(196, "patches drawn from each of these; 0 takes all")
    total_batch_size: int | None = _setting(None, "image-text Examples a step, of all processes")
    num_streams: int = _setting(64, "parts of the data that are read in turn; a multiple of processes times workers")
    shuffle_buffer: int = _setting(8192, "rows of each source that are shuffled at a time, by all processes together")


def load_source(spec: str, kind: str, recipe: PretrainingRecipe) -> datasets.IterableDataset:
    """Loads the Examples that a setting names: a path, a JSON list of paths, or JSON options of `load_examples`."""
    options = json.loads(spec) if spec.startswith(("[", "{")) else spec
    if not isinstance(options, dict):
        options = {"path": options}
    if "path" not in options:
        raise ValueError(f"The options of a source need a path, but there are only {', '.join(options)}.")
    options = {"format": "tsv", "split": "train", "on_bad_row": recipe.on_bad_row, **options}
    if options["format"] == "tsv":
        size = max(map(os.path.getsize, find_files(options["path"])))
        pieces = recipe.num_streams * max(1, size // (recipe.num_streams * _PIECE))
        options = {"task": _KINDS[kind], "num_shards": pieces, **options}
    return load_examples(options.pop("format"), options.pop("path"), streaming=True, **options)


def load_model(recipe: PretrainingRecipe, processor: OFAProcessor) -> OFAForConditionalGeneration:
    """Makes the model anew, or loads it; its weights are float32 in any case."""
    fields = json.loads(recipe.model_config or "{}")
    refuse_unknown(fields, [one.name for one in dataclasses.fields(OFAConfig)], "model_config: ")
    if recipe.size is None:
        return _load(OFAForConditionalGeneration, recipe.checkpoint, dtype=torch.float32, **fields)
    config = OFAConfig.from_size(recipe.size, **{"vocab_size": len(processor.tokenizer), **fields})
    model = OFAForConditionalGeneration(config)
    if recipe.backbone is not None:
        load_backbone(model.model.encoder, recipe.backbone)
    return model


def load_backbone(encoder: OFAEncoder, path: str) -> None:
    """
    Loads the weights of a classifier, without its last stage: officially one that knows ImageNet. Those of
    scripts/pretrain_backbone.py come with the projection of pictures and the embeddings of tokens.
    """
    if not os.path.isfile(path):
        raise ValueError(f"backbone: there is no file {path}.")
    weights, own = load_state_dict(path), dict(encoder.embed_images.state_dict())
    for name in ("image_proj", "embed_tokens"):
        if f"{name}.weight" in weights:
            own |= getattr(encoder, name).state_dict(prefix=f"{name}.")
    wrong = [
        name for name, one in own.items() if one.ndim and (name not in weights or weights[name].shape != one.shape)
    ]
    if wrong:
        raise ValueError(
            f"backbone: {path} has no {wrong[0]} of shape {tuple(own[wrong[0]].shape)} ({len(wrong)} weights do not "
            "fit): it is no ResNet, or one of another model."
        )
    with torch.no_grad():
        for name, one in own.items():
            if name in weights:  # the numbers of batches that old files lack change nothing
                one.copy_(weights[name])


def _load(cls: Any, name: str | None, **options: Any) -> Any:
    try:
        return cls.from_pretrained(name, **options)
    except Exception as error:  # whatever is wrong in a user's folder, or on the way to the Hub
        raise CommandError(f"cannot load {name}: {first_line(error)}") from error


def run(recipe: PretrainingRecipe, args: TrainingArguments) -> None:
    if (recipe.size is None) == (recipe.checkpoint is None):
        raise ValueError("Say either a size, to start from scratch, or a checkpoint.")
    if recipe.backbone is not None and recipe.checkpoint is not None:
        raise ValueError("A checkpoint has a ResNet: backbone is for runs from scratch.")
    if recipe.image_text is None or recipe.negatives is None:
        raise ValueError("Pre-training needs image_text and negatives.")
    if is_over(args.output_dir, args.max_steps):
        logger.info("%s: all %d steps are taken", args.output_dir, args.max_steps)
        return
    source = recipe.processor or recipe.checkpoint
    if source is None:
        raise ValueError("Say with processor whose tokenizer the model shall have, such as OFA-Sys/ofa-base.")
    negatives = Negatives.load(recipe.negatives)
    processor = _load(OFAProcessor, source)
    processor.image_processor.size = {"height": recipe.image_size, "width": recipe.image_size}
    set_seed(args.seed)
    model = load_model(recipe, processor)
    trained = freeze(model, recipe.freeze, encoder_layers=recipe.freeze_encoder_layers)
    if recipe.attn_implementation is not None:
        model.set_attn_implementation(recipe.attn_implementation)

    found = {name: getattr(recipe, name) for name in _KINDS}
    with args.main_process_first(desc="reading data"):  # the others find what is prepared in the cache
        data = {name: load_source(spec, name, recipe) for name, spec in found.items() if spec is not None}
    mixture = PretrainingMixture(
        PretrainingRows(
            processor, negatives, recipe.image_size, model.config.code_image_size, recipe.augment, recipe.matching
        ),
        **data,
        num_streams=recipe.num_streams,
        shuffle_buffer=recipe.shuffle_buffer,
        seed=7 if args.data_seed is None else args.data_seed,
        on_bad_row=recipe.on_bad_row,
    )
    trainer = PretrainingTrainer(model, args, mixture, sample_patch_num=recipe.sample_patch_num or None)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    logger.info("%s; %d image-text Examples a step", trained, rows)
    checkpoint = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
    trainer.train(checkpoint)
    trainer.save_model()
    trainer.save_state()  # with the log


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    try:
        recipe, args = parse_recipe([PretrainingRecipe, TrainingArguments], arguments, __doc__)
        logger.setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
        run(recipe, args)
    except (CommandError, ValueError, OSError, ImportError) as error:
        message = str(error).strip().split("\n")
        # A worker of the loader puts its traceback in front of what is wrong.
        print(f"pretrain.py: error: {message[-1 if message[0].startswith('Caught') else 0]}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
