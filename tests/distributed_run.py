"""
What each process of test_distributed.py runs: a few steps of several trainers, with the same rows in each step on any
number of processes.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from PIL import Image
from tiny import tiny_config
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Seq2SeqTrainer, TrainingArguments, set_seed

from modeling_ofa import DEFAULT_CHECKPOINT, DataCollatorForOFA, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.training import OFATrainer, OFATrainingArguments, ShardingTrainer


ROOT = Path(__file__).parents[1]
STEPS, SAVED, BATCH = 4, 2, 8


def rows() -> list[dict[str, Any]]:
    """Captions, questions and boxes in turn, each about a picture, and every fourth time a text about none."""
    found: list[dict[str, Any]] = []
    for i in range(0, 16, 4):
        image = Image.effect_noise((64, 48), 60 + i).convert("RGB")
        found.append({"task": "caption", "image": image, "target": f"{i} grey dots" + " and one more" * (i // 4)})
        found.append({"task": "vqa", "image": image, "text": "what colour?", "target": "grey" if i % 8 else "white"})
        found.append({"task": "visual_grounding", "image": image, "text": "a dot", "target": [i, 2.0, 40.0 + i, 30.0]})
        found.append({"task": "sst2", "text": f"film {i}", "target": "positive"})
    return found


def divide(arguments: TrainingArguments) -> None:
    """All that accelerate does for FSDP runs on CPUs too, but it looks for the wish only where there are GPUs."""
    if arguments.device.type == "cpu" and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState().distributed_type = DistributedType.MULTI_GPU


def build(
    folder: str | Path, kind: type[Seq2SeqTrainer] = OFATrainer, encoder_layerdrop: float = 0.0, **options: Any
) -> Seq2SeqTrainer:
    """
    Gives a trainer that takes `BATCH` rows a step on all processes together. Dropout is off, since each process draws
    its own; the statistics of batch norms are frozen, since each process would count those of its own rows. Adam's
    epsilon is large: where a gradient is nothing but rounding, Adam would make steps of it.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    arguments = OFATrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=BATCH // 2 // processes,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )
    divide(arguments)
    processor = OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    processor.image_processor.size = {"height": 64, "width": 64}
    set_seed(0)
    fields = {"freeze_resnet": True, "encoder_layerdrop": encoder_layerdrop, "max_position_embeddings": 128}
    model = OFAForConditionalGeneration(tiny_config(vocab_size=len(processor.tokenizer), **fields))
    collator = DataCollatorForOFA(processor)
    data = {"train_dataset": rows(), "eval_dataset": rows()[:8]}
    return kind(model, arguments, data_collator=collator, processing_class=processor, **data)


def build_full(folder: str | Path) -> OFATrainer:
    """Gives a trainer with an average of the weights, which is evaluated, and saved, in the middle of training."""
    looks = {"eval_strategy": "steps", "eval_steps": SAVED, "save_strategy": "steps", "save_steps": SAVED}
    return build(folder, ema_decay=0.5, predict_with_generate=True, per_device_eval_batch_size=4, **looks)


def curve(trainer: Seq2SeqTrainer) -> list[list[float]]:
    """Loss and norm of the gradient of each step, and the loss of each evaluation."""
    kinds = [("loss", "grad_norm"), ("eval_loss", "eval_nll_loss")]
    history = trainer.state.log_history
    return [[entry[name] for name in kind] for entry in history for kind in kinds if kind[0] in entry]


def answers(trainer: Seq2SeqTrainer) -> tuple[float, list[str]]:
    """Loss of the data, and what is generated for each row."""
    output = trainer.predict(trainer.eval_dataset)
    ids = output.predictions.clip(min=1)  # -100 is padding
    return output.metrics["test_loss"], trainer.processing_class.tokenizer.batch_decode(ids, skip_special_tokens=True)


def shards(model: torch.nn.Module) -> dict[str, Any]:
    """What of a model is divided, and how."""
    pieces = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}
    return {
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "whole": [name for name, _ in model.named_parameters() if name not in pieces],
        "numbers": sum(weight.numel() for weight in pieces.values()),
        "own_numbers": sum(weight.to_local().numel() for weight in pieces.values()),
    }


def finetune(folder: str | Path) -> Seq2SeqTrainer:
    """Runs scripts/finetune.py with the recipe that needs no data, as a stream: two steps of twelve rows."""
    spec = importlib.util.spec_from_file_location("finetune_script", ROOT / "scripts" / "finetune.py")
    assert spec is not None and spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = f"--config {ROOT}/recipes/tiny_example.yaml --output_dir {folder} --max_steps 2 --logging_steps 1"
    words += " --per_device_train_batch_size 3 --freeze resnet batch_norm --adam_epsilon 1e-3 --use_cpu true"
    words += " --train_data.streaming true"
    recipe, arguments = script.parse(words.split())
    divide(arguments)
    trainer = script.build(recipe, arguments)
    script.run(trainer, recipe, script.going_on(recipe, arguments))
    return trainer


def refusals(trainer: ShardingTrainer) -> list[str]:
    """What FSDP cannot do is said before processes wait for each other for ever."""
    said = []
    codes = torch.tensor([trainer.is_world_process_zero()])
    whole = {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
    for wrong in (
        lambda: build("unused", ShardingTrainer, encoder_layerdrop=0.1),
        lambda: trainer._prepare_inputs({"input_ids": torch.ones(1, 1), "code_masks": codes}),
        lambda: build("unused", ShardingTrainer, **whole),
    ):
        try:
            wrong()
        except ValueError as error:
            said.append(str(error))
    return said


def main(folder: Path, start: str | None = None) -> None:
    torch.set_num_threads(1)
    trainer = build_full(folder)
    trainer.train(start)
    found: dict[str, Any] = {"kind": trainer.accelerator.distributed_type.value, **shards(trainer.model)}
    found["curve"] = curve(trainer)
    if start is None:
        found["answers"] = answers(trainer)
        trainer.save_model(str(folder / "model"))
        is_fsdp = trainer.is_fsdp_enabled
        if is_fsdp:
            resumed = build_full(folder / "resumed")
            resumed.train(str(folder / f"checkpoint-{SAVED}"))
            found["resumed"], found["refused"] = curve(resumed), refusals(trainer)
        plain = build(folder / "plain", ShardingTrainer if is_fsdp else Seq2SeqTrainer)
        plain.train()
        found["plain"] = curve(plain)
        found["finetune"] = curve(finetune(folder / "finetune"))
    if trainer.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
