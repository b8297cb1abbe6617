"""
Fine-tunes OFA on any task by a recipe, evaluates it, and saves it with its processor.

    python scripts/finetune.py --config recipes/tiny_example.yaml
    accelerate launch --num_processes 8 scripts/finetune.py --config recipes/caption_stage1_base.yaml \\
        --model_name_or_path FOLDER --train_data.path mine.tsv --learning_rate 2e-5

A run that was stopped goes on from its last checkpoint when the same command is given again. docs/recipes.md lists the
recipes and says what they may hold.
"""

import argparse
import dataclasses
import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

from modeling_ofa import DEFAULT_CHECKPOINT, DataCollatorForOFA, OFAConfig, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.cli.predictor import check_model
from modeling_ofa.data.readers import load_examples
from modeling_ofa.data.transforms import TrainingTransform, training_transform
from modeling_ofa.evaluation import CiderD, Predictor, read_answers
from modeling_ofa.evaluation.loop import evaluate
from modeling_ofa.processing_ofa import DECODER_PROMPTS
from modeling_ofa.tasks_ofa import get_task
from modeling_ofa.training import OFATrainer, OFATrainingArguments
from modeling_ofa.training.finetuning import (
    FinetuningCollator,
    TaskMetrics,
    check_answers,
    check_pictures,
    undecoded,
)
from modeling_ofa.training.freezing import PARTS, freeze, trained_parameters
from modeling_ofa.training.recipes import last_checkpoint, parse_recipe, read_yaml, refuse_unknown
from modeling_ofa.training.self_critical import CiderReward, SelfCriticalTrainer, SelfCriticalTrainingArguments
from modeling_ofa.vision_ofa import PATCH_SIZE


logger = logging.getLogger("finetune")

NOTE = "recipe.json"  # in the output folder: what the run there is about


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


def _names(help: str) -> Any:
    return field(default_factory=list, metadata={"help": help})


@dataclass
class FinetuningRecipe:
    """The settings of a recipe beside the trainer's arguments. Mappings are JSON on the command line."""

    model_name_or_path: str = _setting(DEFAULT_CHECKPOINT, "folder or Hub id of an OFA checkpoint")
    model_config: str | None = _setting(None, "fields of OFAConfig in place of the checkpoint's: a mapping")
    data: str | None = _setting(None, "options of load_examples for training and evaluation: a mapping")
    train_data: str | None = _setting(None, "those for training alone, such as path")
    eval_data: str | None = _setting(None, "those for evaluation alone; without them nothing is evaluated")
    answers: str | None = _setting(None, "closed lists: a mapping of tasks to files, a line an answer or JSON")
    image_size: int | None = _setting(None, "side of the pictures (default: the checkpoint's)")
    decoder_prompt: str | None = _setting(None, "in place of the checkpoint's", choices=DECODER_PROMPTS)
    augment: bool = _setting(False, "change pictures in training as the official code does for the task")
    target_noise: float = _setting(0.0, "how likely the decoder reads a random word for one of the target")
    freeze: list[str] = _names("parts that are not trained: embeddings, resnet, batch_norm, …")
    train_only: list[str] = _names("parts that alone are trained: prefix, adapters, official_bias, …")
    freeze_encoder_layers: int = _setting(0, "so many first layers are not trained")
    freeze_decoder_layers: int = _setting(0, "likewise")
    peft: str | None = _setting(None, "peft_type (LORA) and what its configuration takes: a mapping")
    reward: str | None = _setting(None, "self-critical training with this reward", choices=["cider"])
    cider_frequencies: str | None = _setting(None, "what CiderD.save wrote (default: counted in the training data)")
    total_batch_size: int | None = _setting(None, "rows a step, of all processes")

    def mapping(self, name: str) -> dict[str, Any]:
        """Reads a setting that is a mapping."""
        try:
            value = json.loads(getattr(self, name) or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{name} is a mapping, such as {{key: value}}, and not {getattr(self, name)}.")
        return value

    @property
    def picture_options(self) -> dict[str, Any]:
        """What the processor is called with."""
        return {} if self.image_size is None else {"size": {"height": self.image_size, "width": self.image_size}}


def parse(arguments: Sequence[str] | None) -> tuple[FinetuningRecipe, Seq2SeqTrainingArguments]:
    """Reads recipe and command line. Whether there is a reward says what other settings there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--reward")
    known, _ = parser.parse_known_args(arguments)
    rewards = [known.reward, *(read_yaml(file).get("reward") for file in known.config)]
    kind = SelfCriticalTrainingArguments if any(rewards) else OFATrainingArguments
    return parse_recipe([FinetuningRecipe, kind], arguments, __doc__)


def load_data(recipe: FinetuningRecipe, own: str, **defaults: Any) -> Any:
    """Loads the Examples of training or of evaluation."""
    options = {**defaults, **recipe.mapping("data"), **recipe.mapping(own)}
    for name in ("format", "path"):
        if options.get(name) is None:
            raise ValueError(f"The data has no {name}: give it under data, train_data or eval_data.")
    return load_examples(options.pop("format"), options.pop("path"), **options)


def load_part(cls: Any, name: str, **options: Any) -> Any:
    """Loads a part of a checkpoint."""
    try:
        return cls.from_pretrained(name, **options)
    except Exception as error:  # whatever is wrong in a user's folder, or on the way to the Hub
        raise CommandError(f"cannot load the checkpoint {name}: {first_line(error)}") from error


def load_processor(recipe: FinetuningRecipe) -> OFAProcessor:
    """Loads the processor, with the settings that belong to what is trained; they are saved with it."""
    processor = load_part(OFAProcessor, recipe.model_name_or_path)
    processor.decoder_prompt = recipe.decoder_prompt or processor.decoder_prompt
    processor.image_processor.size = recipe.picture_options.get("size", processor.image_processor.size)
    lists = {get_task(task).name: read_answers(file) for task, file in recipe.mapping("answers").items()}
    processor.answers = {**(processor.answers or {}), **lists} or None
    return processor


def load_model(recipe: FinetuningRecipe, processor: OFAProcessor) -> Any:
    """Loads the model in float32, refuses one that does not fit, and says what of it is trained."""
    name, changed = recipe.model_name_or_path, recipe.mapping("model_config")
    refuse_unknown(changed, [one.name for one in dataclasses.fields(OFAConfig)], "model_config: ")
    options = {"dtype": torch.float32, "output_loading_info": True, **changed}
    model, found = load_part(OFAForConditionalGeneration, name, **options)
    is_new = re.compile(f"{PARTS['prefix']}|{PARTS['adapters']}")
    if missing := [weight for weight in found["missing_keys"] if not is_new.search(weight)]:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the model, such as {min(missing)}: its files are of different "
            "models, or model_config changes what cannot be changed."
        )
    if len(processor.tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer of {name} has {len(processor.tokenizer):,} tokens, but its model has "
            f"{model.config.vocab_size:,}: they are of different models."
        )
    layers = {"encoder_layers": recipe.freeze_encoder_layers, "decoder_layers": recipe.freeze_decoder_layers}
    freeze(model, recipe.freeze, train_only=recipe.train_only, **layers)
    if recipe.peft is not None:
        import peft

        settings = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", **recipe.mapping("peft")}
        kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(settings["peft_type"])
        if kind is None:
            known = ", ".join(str(one.value) for one in peft.PEFT_TYPE_TO_CONFIG_MAPPING)
            raise ValueError(f"peft has no method {settings['peft_type']!r}; its methods are {known}.")
        refuse_unknown(settings, [one.name for one in dataclasses.fields(kind)], "peft: ")
        model = peft.get_peft_model(model, peft.get_peft_config(settings))
    logger.info("%s", trained_parameters(model))
    return model


def load_transform(recipe: FinetuningRecipe, task: str, processor: OFAProcessor) -> TrainingTransform | None:
    """Gives what changes the pictures of training."""
    if not recipe.augment:
        return None
    mean = get_task(task).image_mean or processor.image_processor.image_mean
    red, green, blue = (round(255 * channel) for channel in mean)
    return training_transform(task, processor.image_processor.size["height"], fill=(red, green, blue))


def load_reward(recipe: FinetuningRecipe, train: Any) -> CiderReward:
    """Reads the document frequencies of CIDEr-D, or counts them in the training data."""
    if recipe.cider_frequencies is not None:
        return CiderReward(CiderD.load(recipe.cider_frequencies))
    if isinstance(train, datasets.IterableDataset):
        raise ValueError("A stream would have to be read twice: give cider_frequencies, a file of CiderD.save.")
    return CiderReward.from_references(train["references"])


def build(recipe: FinetuningRecipe, args: Seq2SeqTrainingArguments) -> Seq2SeqTrainer:
    """
    Loads everything and gives the trainer.

    Raises:
        CommandError, ValueError, TypeError, OSError, ImportError: Something is missing, or does not fit the rest.
    """
    check_model(recipe.model_name_or_path)
    if recipe.image_size is not None and recipe.image_size < PATCH_SIZE:
        raise ValueError(
            f"image_size is {recipe.image_size}, but a patch of a picture has {PATCH_SIZE} pixels a side."
        )
    set_seed(args.seed)
    processor = load_processor(recipe)
    with args.main_process_first(desc="reading data"):  # the others find it in the cache
        train = load_data(recipe, "train_data", split="train")
        val = None if recipe.eval_data is None else load_data(recipe, "eval_data")
    if isinstance(val, datasets.IterableDataset):
        raise ValueError("Evaluation needs its data as a whole, and no stream: --eval_data.streaming false")
    if isinstance(train, datasets.Dataset):
        check_answers(train, processor, in_loss=getattr(args, "constrained_loss", False))
    if val is not None:
        val = undecoded(val)
        check_answers(val, processor)
    task = next(iter(train))["task"]
    reward = None if recipe.reward is None else load_reward(recipe, train)
    transform = load_transform(recipe, task, processor)
    collator = FinetuningCollator(processor, transform, recipe.target_noise, **recipe.picture_options)
    train = collator.training_rows(train)
    model = load_model(recipe, processor)
    for data in (train, val):
        if data is not None:
            kept = getattr(args, "sample_patch_num", None) if data is train else None
            check_pictures(collator([next(iter(data))]), model.config, kept)
    if isinstance(train, datasets.IterableDataset):
        train = train.shuffle(seed=args.seed)

    options: dict[str, Any] = {"data_collator": collator, "processing_class": processor}
    options |= {"train_dataset": train, "eval_dataset": val}
    metrics = None
    if val is not None and args.predict_with_generate:
        options["compute_metrics"] = metrics = TaskMetrics(processor, val, **recipe.picture_options)
    if args.load_best_model_at_end and args.metric_for_best_model is not None:
        known = ["loss", "nll_loss", *(metrics.names() if metrics is not None else [])]
        if args.metric_for_best_model.removeprefix("eval_") not in known:
            raise ValueError(
                f"metric_for_best_model is {args.metric_for_best_model}, but evaluation gives {', '.join(known)}."
            )
    if reward is None:
        return OFATrainer(model, args, **options)
    return SelfCriticalTrainer(model, args, reward=reward, **options)


def going_on(recipe: FinetuningRecipe, args: Seq2SeqTrainingArguments) -> str | None:
    """
    Gives the checkpoint from which the run goes on, and leaves a note of what it is about.

    Raises:
        ValueError: The folder holds a run about something else.
    """
    checkpoint = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    note, settings = Path(args.output_dir) / NOTE, dataclasses.asdict(recipe) | {"total_batch_size": None}
    if checkpoint is not None and note.is_file():
        there = json.loads(note.read_text(encoding="utf-8"))
        if other := [name for name in settings if there.get(name) != settings[name]]:
            raise ValueError(
                f"{args.output_dir} holds a run with another {', '.join(other)}: choose another output_dir, or delete "
                "this one."
            )
    if args.should_save:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return checkpoint


def evaluate_at_end(trainer: Seq2SeqTrainer, recipe: FinetuningRecipe) -> None:
    """Answers all of `eval_data` as scripts/evaluate.py does, and prints the scores."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model).eval()
    folder = Path(args.output_dir) / "evaluation"
    if args.should_save and folder.exists():
        shutil.rmtree(folder)  # what earlier weights of this run answered
    trainer.accelerator.wait_for_everyone()
    # Trained prompts are read by `generate`, and not where candidates are scored.
    has_prompts = any(one.is_prompt_learning for one in getattr(model, "peft_config", {}).values())
    predictor = Predictor(model, trainer.processing_class, strategy="generate" if has_prompts else "auto")
    predictor.collator = DataCollatorForOFA(trainer.processing_class, with_targets=False, **recipe.picture_options)
    metrics = evaluate(
        predictor,
        trainer.eval_dataset,
        folder,
        batch_size=args.per_device_eval_batch_size,
        accelerator=trainer.accelerator,
    )
    for task, found in (metrics or {}).items():
        scores = [f"{name} {value:.4f}" for name, value in (found["scores"] or {}).items()]
        print(f"{task}: {found['scored']} of {found['examples']} scored: {', '.join(scores)}")
    if metrics is not None:
        print(f"{folder}: predictions and metrics")


def run(trainer: Seq2SeqTrainer, recipe: FinetuningRecipe, checkpoint: str | None) -> None:
    """Trains, saves and evaluates."""
    args = trainer.args
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
    trainer.train(checkpoint)
    trainer.save_model()
    trainer.save_state()  # with all that was logged
    if args.should_save:
        print(f"{args.output_dir}: {'adapter' if recipe.peft else 'model'} and processor")
    if trainer.eval_dataset is None or not args.predict_with_generate:
        return
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        logger.info("The weights are in pieces: scripts/evaluate.py --model %s evaluates them.", args.output_dir)
    else:
        evaluate_at_end(trainer, recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    try:
        try:
            recipe, args = parse(arguments)
            logger.setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
            trainer, checkpoint = build(recipe, args), going_on(recipe, args)
        except (CommandError, ValueError, TypeError, OSError, ImportError) as error:
            print(f"finetune.py: error: {first_line(error)}", file=sys.stderr)
            return 2
        try:
            run(trainer, recipe, checkpoint)
        except (ValueError, OSError) as error:  # a damaged picture, a full disk
            message = str(error).strip().split("\n")
            # A worker of the loader puts its traceback in front of what is wrong.
            line = message[-1 if message[0].startswith("Caught") else 0]
            print(f"\nfinetune.py: error: {line}", file=sys.stderr)  # below the progress bar
            return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
