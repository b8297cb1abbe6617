"""transformers' own trainers unchanged on raw rows with pictures, `OFATrainer` and the average of the weights."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from safetensors.torch import load_file
from tiny import TOLERANCE, tiny_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import modeling_ofa
from modeling_ofa import DataCollatorForOFA, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.tasks_ofa import TASKS, Task
from modeling_ofa.training import EMACallback, OFALoss, OFATrainer, OFATrainingArguments


SIZE = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def processor() -> OFAProcessor:
    return OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def picture() -> PILImage.Image:
    scenes = Path(modeling_ofa.DEFAULT_CHECKPOINT).parent / "scenes"
    return PILImage.open(scenes / "scene_1.png").convert("RGB").resize((64, 64))


@pytest.fixture(scope="module")
def rows(picture) -> list[dict[str, Any]]:
    """Rows of four tasks, with targets of different lengths, and prompts of different lengths where wanted."""
    return [
        {"task": "vqa", "image": picture, "text": "what is it", "target": "dog", "confidence": 0.5},
        {"task": "visual_grounding", "image": picture, "text": "the dog", "target": [8, 8, 60.5, 64]},
        {"task": "caption", "image": picture, "target": "a dog and a red cup on the table"},
        {"task": "mnli", "text": "a dog sits", "text_pair": "it is a dog", "target": "entailment"},
    ]


def small_model(processor: OFAProcessor, **kwargs: Any) -> OFAForConditionalGeneration:
    tokenizer = processor.tokenizer
    return tiny_model(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **kwargs)


def options(output_dir: Path, **kwargs: Any) -> dict[str, Any]:
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_steps": 1}
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 2}
    return {"output_dir": str(output_dir), **quiet, **sizes, "remove_unused_columns": False, **kwargs}


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def collator(processor: OFAProcessor, decoder_prompt: str = "official", **kwargs: Any) -> DataCollatorForOFA:
    return DataCollatorForOFA(processor, decoder_prompt=decoder_prompt, size=SIZE, **kwargs)


# transformers' trainers, unchanged


@pytest.mark.parametrize(
    "trainer_type, arguments_type",
    [
        (Trainer, TrainingArguments),
        (Seq2SeqTrainer, Seq2SeqTrainingArguments),
        (OFATrainer, OFATrainingArguments),
    ],
)
def test_trainers_learn_from_raw_rows(trainer_type, arguments_type, processor, rows, tmp_path):
    dataset = Dataset.from_list([row for row in rows if row["task"] in ("vqa", "caption")])
    dataset = dataset.cast_column("image", Image())
    trainer = trainer_type(
        small_model(processor),
        arguments_type(**options(tmp_path, max_steps=12, learning_rate=5e-3)),
        data_collator=collator(processor),
        train_dataset=dataset,
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("prompt", ["none", "official", "src"])
def test_decoder_prompts_survive_evaluation_in_the_plain_trainer(prompt, smoothing, processor, rows, tmp_path):
    seen: list[Any] = []
    arguments = options(tmp_path, predict_with_generate=True, label_smoothing_factor=smoothing)
    model = small_model(processor)
    model.generation_config.update(max_new_tokens=4, num_beams=2)
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**arguments),
        data_collator=collator(processor, prompt),
        eval_dataset=rows,
        compute_metrics=lambda prediction: seen.append(prediction) or {"rows": len(prediction.predictions)},
    )
    metrics = trainer.evaluate()
    [found] = seen
    inputs = collator(processor, prompt, with_targets=False)(rows)
    expected = model.generate(**inputs)
    assert metrics["eval_rows"] == 4
    assert np.array_equal(found.predictions[:, : expected.shape[1]], expected.numpy())
    if prompt != "none":
        length = int(inputs["decoder_attention_mask"][3].sum())
        assert length > 3 and found.predictions[3, :length].tolist() == inputs["input_ids"][3, :length].tolist()
    # Labels tell where the answers begin, so that a metric can cut them out.
    starts = (found.label_ids != -100).argmax(axis=1) + 1
    lengths = inputs.get("decoder_attention_mask", torch.ones(4, 1)).sum(dim=1)
    assert starts.tolist() == lengths.tolist()


def test_a_training_batch_is_answered_as_it_is(processor, rows):
    model = small_model(processor)
    for prompt in ("none", "prev_output"):
        alone = collator(processor, prompt, with_targets=False)(rows)
        batch = collator(processor, prompt)(rows)
        ids = model.generate(**alone, max_new_tokens=3)
        assert torch.equal(model.generate(**batch, max_new_tokens=3), ids)
        found = processor.post_process(ids, [row["task"] for row in rows], [(64, 64)] * 4, inputs=batch)
        assert found == processor.post_process(ids, [row["task"] for row in rows], [(64, 64)] * 4, inputs=alone)


@pytest.mark.parametrize("prompt", ["none", "official"])
def test_label_smoothing_of_the_plain_trainer_sees_the_models_own_log_probabilities(prompt, processor, rows, tmp_path):
    model = small_model(processor)
    arguments = TrainingArguments(**options(tmp_path, label_smoothing_factor=0.1))
    trainer = Trainer(model, arguments, data_collator=collator(processor, prompt), eval_dataset=rows)
    batch = collator(processor, prompt)(rows)
    with torch.no_grad():
        log_probs = model(**batch).logits.log_softmax(-1)[batch["labels"] != -100]
    nll = -log_probs.gather(-1, batch["labels"][batch["labels"] != -100][:, None]).mean()
    expected = 0.9 * nll - 0.1 * log_probs.mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def text_rows(number: int) -> list[dict[str, Any]]:
    """Rows whose targets have from 1 to `number` words."""
    return [{"task": "text_infilling", "text": f"a <mask> {i}", "target": "dog " * (i + 1)} for i in range(number)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("own", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(own, smoothing, processor, tmp_path):
    """One step of SGD, whose size tells the gradient, over rows with 2 to 5 labels each."""
    data = [{**row, "confidence": 0.5 + i} for i, row in enumerate(text_rows(4))]
    trained = []
    for rows, steps in ((4, 1), (1, 4), (3, 2)):
        arguments: dict[str, Any] = options(
            tmp_path,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            label_smoothing_factor=smoothing,
        )
        trainer_type, arguments_type = (OFATrainer, OFATrainingArguments) if own else (Trainer, TrainingArguments)
        model = small_model(processor)
        trainer = trainer_type(
            model, arguments_type(**arguments), data_collator=collator(processor, "none"), train_dataset=data
        )
        trainer.train()
        trained.append((losses(trainer)[0], model.state_dict()))
    start = small_model(processor).state_dict()
    for loss, weights in trained[1:]:
        assert loss == pytest.approx(trained[0][0], rel=1e-5)
        for name, weight in weights.items():
            assert torch.allclose(weight, trained[0][1][name], **TOLERANCE), name
    assert not torch.allclose(start["lm_head.weight"], trained[0][1]["lm_head.weight"], **TOLERANCE)


def test_gradient_checkpointing_changes_no_loss(processor, rows, tmp_path):
    found = []
    for checkpoints in (False, True):
        arguments = TrainingArguments(**options(tmp_path, gradient_checkpointing=checkpoints, max_steps=3))
        model = small_model(processor, dropout=0.1)
        trainer = Trainer(model, arguments, data_collator=collator(processor), train_dataset=rows)
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("trainer_type", [Seq2SeqTrainer, OFATrainer])
def test_bfloat16_trains_and_evaluates(trainer_type, processor, rows, tmp_path):
    arguments_type = OFATrainingArguments if trainer_type is OFATrainer else Seq2SeqTrainingArguments
    arguments = arguments_type(
        **options(tmp_path, bf16=True, predict_with_generate=True, generation_max_length=6, learning_rate=1e-3)
    )
    model = small_model(processor)
    trainer = trainer_type(model, arguments, data_collator=collator(processor), train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact = trainer.evaluate()["eval_loss"]
    assert math.isfinite(exact) and math.isfinite(losses(trainer)[-1])


def test_float16_with_scaled_gradients_learns_as_float32(processor, rows, tmp_path):
    """What `fp16=True` does, which accelerate offers on a GPU only."""
    arguments = OFATrainingArguments(**options(tmp_path, label_smoothing_factor=0.1))
    found: dict[bool, list[float]] = {True: [], False: []}
    for half, values in found.items():
        trainer = OFATrainer(small_model(processor), arguments, collator(processor), train_dataset=rows)
        model, scaler = trainer.model.train(), torch.amp.GradScaler("cpu", enabled=half, init_scale=2.0**10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        batch = trainer.data_collator(rows)
        for _ in range(4):
            with torch.autocast("cpu", torch.float16, enabled=half):
                loss = trainer.compute_loss(model, batch)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            values.append(loss.item())
        assert scaler.get_scale() == (2.0**10 if half else 1.0)  # no gradient was infinite
    assert found[True] == pytest.approx(found[False], rel=5e-3) and found[True][-1] < found[True][0]


def test_a_model_in_half_precision_takes_float32_pictures(processor, rows, tmp_path):
    model = small_model(processor).to(torch.bfloat16)
    arguments = OFATrainingArguments(**options(tmp_path, learning_rate=1e-3))
    trainer = OFATrainer(model, arguments, collator(processor), train_dataset=rows)
    assert trainer.get_train_dataloader().collate_fn(rows)["pixel_values"].dtype == torch.float32
    trainer.train()
    assert math.isfinite(losses(trainer)[-1])


def test_a_compiled_model_trains_alike(processor, rows, tmp_path):
    found = []
    for compiled in (False, True):
        # Captures graphs as any back end has it, without generating code for them.
        backend = "eager" if compiled else None
        arguments = options(tmp_path, max_steps=1, torch_compile=compiled, torch_compile_backend=backend)
        trainer = Trainer(
            small_model(processor),
            TrainingArguments(**arguments),
            data_collator=collator(processor),
            train_dataset=rows,
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_text_trains_with_the_librarys_own_collator(processor, tmp_path):
    def tokenize(batch: dict[str, list]) -> Any:
        return processor(task=["text_infilling"] * len(batch["text"]), text=batch["text"], target=batch["target"])

    dataset = Dataset.from_list(text_rows(6)).map(tokenize, batched=True, batch_size=2)
    model = small_model(processor)
    model.generation_config.max_new_tokens = 3
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**options(tmp_path, remove_unused_columns=True, predict_with_generate=True)),
        data_collator=DataCollatorForSeq2Seq(processor.tokenizer, model=model),
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    trainer.train()
    assert trainer.predict(dataset).predictions.shape[0] == 6


def test_what_was_trained_is_saved_with_its_processor_and_a_card(processor, rows, tmp_path):
    trainer = Trainer(
        small_model(processor),
        TrainingArguments(**options(tmp_path)),
        data_collator=collator(processor),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="tiny-ofa", tasks="image-text-to-text")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    batch = collator(AutoProcessor.from_pretrained(tmp_path))(rows)
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, trainer.model(**batch).loss)
    assert "tiny-ofa" in (tmp_path / "README.md").read_text(encoding="utf-8")


# OFATrainer


def test_the_loss_is_the_official_one_with_what_rows_and_tasks_say(processor, rows, tmp_path):
    model = small_model(processor, freeze_resnet=True).train()
    arguments = OFATrainingArguments(
        **options(tmp_path, label_smoothing_factor=0.1, encouraging_log_end=0.75, constrained_loss=True)
    )
    known = OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, answers={"vqa": ["dog", "a cup", "cup"]})
    trainer = OFATrainer(model, arguments, collator(known), train_dataset=rows)
    batch = trainer.data_collator(rows)
    found = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(10))

    plain = collator(known)(rows)
    masks = torch.ones(*plain["labels"].shape, len(known.tokenizer), dtype=torch.bool)
    places = [(plain["labels"][i] != -100).nonzero()[:, 0].tolist() for i in (0, 3)]
    masks[0, places[0]] = False
    first = known.tokenizer([" dog", " a cup", " cup"], add_special_tokens=False)["input_ids"]
    masks[0, places[0][0], [ids[0] for ids in first]] = True
    for step, place in enumerate(places[0][1:], start=1):  # behind the first word of " dog", there is one way
        masks[0, place, [*first[0], 2][step]] = True
    masks[3, places[1]] = False
    labels = [known.tokenizer(f" {one}", add_special_tokens=False)["input_ids"] for one in TASKS["mnli"].answers]
    masks[3, places[1][0], [ids[0] for ids in labels]] = True
    target = plain["labels"][3][places[1]].tolist()
    for step, place in enumerate(places[1][1:], start=1):
        masks[3, place, target[step]] = True
    loss = OFALoss(label_smoothing=0.1, encouraging_log_end=0.75)
    sums = loss(model(**plain).logits, plain["labels"], torch.tensor([0.5, 1, 1, 1]), masks)
    torch.testing.assert_close(found, sums.loss / 10)


def test_an_answer_outside_of_the_closed_list_is_refused(processor, rows, tmp_path):
    known = OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, answers={"vqa": ["cup"]})
    arguments = OFATrainingArguments(**options(tmp_path, constrained_loss=True))
    trainer = OFATrainer(small_model(known), arguments, collator(known), train_dataset=rows)
    with pytest.raises(
        ValueError, match="which the constraint of the loss forbids: is the row's target in the closed"
    ):
        trainer.train()
    trainer = OFATrainer(small_model(known), arguments, collator(processor), train_dataset=rows)
    with pytest.raises(ValueError, match="needs the closed list of task 'vqa': give the processor answers="):
        trainer.train()


def test_rdrop_runs_each_batch_twice_and_evaluation_once(processor, tmp_path):
    data = text_rows(4)
    model = small_model(processor, dropout=0.3)
    arguments = OFATrainingArguments(**options(tmp_path, rdrop_alpha=2.0, drop_worst_ratio=0.2, max_steps=1))
    trainer = OFATrainer(model, arguments, collator(processor, "none"), train_dataset=data, eval_dataset=data)
    shapes = []
    model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape[0]))
    batch = trainer.data_collator(data)
    torch.manual_seed(0)
    found = trainer.compute_loss(model.train(), dict(batch), num_items_in_batch=28)
    torch.manual_seed(0)
    inputs = {name: torch.cat([batch[name]] * 2) for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    labels = torch.cat([batch["labels"]] * 2)
    sums = OFALoss(rdrop_alpha=2.0, drop_worst_ratio=0.2)(model(**inputs).logits, labels, step=0)
    torch.testing.assert_close(found, sums.loss / 28)
    shapes.clear()
    plain = torch.nn.functional.cross_entropy(
        model.eval()(**{name: value[:4] for name, value in inputs.items()}).logits.transpose(1, 2), batch["labels"]
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-5)
    assert shapes == [4, 4]


def test_tokens_that_are_dropped_do_not_count_in_the_mean(processor, tmp_path):
    """Two accumulated batches of 9 and 5 labels, of which 4 and 2 stay."""
    data = text_rows(4)[::-1]
    arguments = OFATrainingArguments(
        **options(
            tmp_path,
            max_steps=1,
            drop_worst_ratio=0.5,
            drop_worst_after=-1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )
    )
    model = small_model(processor)
    trainer = OFATrainer(model, arguments, collator(processor, "none"), train_dataset=data)
    batches = [trainer.data_collator(data[:2]), trainer.data_collator(data[2:])]
    got, number = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert len(got) == 2 and number == sum(int(count * 0.5) for count in counts)


def test_rows_are_decoded_as_their_tasks_are(processor, rows, tmp_path):
    metrics = []
    trainer = OFATrainer(
        small_model(processor),
        OFATrainingArguments(**options(tmp_path, predict_with_generate=True, generation_num_beams=1)),
        collator(processor),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda prediction: metrics.append(prediction) or {"rows": len(prediction.label_ids)},
    )
    result = trainer.evaluate()
    assert result["eval_rows"] == 4 and result["eval_nll_loss"] == pytest.approx(result["eval_loss"], rel=1e-5)
    ids = np.where(metrics[0].predictions < 0, processor.tokenizer.pad_token_id, metrics[0].predictions)
    texts = [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert texts[3] in TASKS["mnli"].answers  # and nothing of the prompt, which is the whole source there
    batch = collator(processor, with_targets=False)(rows)
    wanted = processor.generation_kwargs([row["task"] for row in rows])
    alone = trainer.model.generate(**batch, **{**wanted, "num_beams": 1})
    lengths = batch["decoder_attention_mask"].sum(dim=1)
    for row, own, length in zip(ids, alone, lengths.tolist(), strict=True):
        assert row[length : len(own)].tolist() == own[length:].tolist() and (row[:length] == 1).all()
    # Rows without targets are answered in the same way.
    unlabelled = [{name: value for name, value in row.items() if name != "target"} for row in rows]
    predicted = trainer.predict(unlabelled)
    assert predicted.label_ids is None and np.array_equal(predicted.predictions, metrics[0].predictions)


@pytest.mark.parametrize("adapted", [False, True])
def test_evaluation_leaves_the_models_generation_settings_alone(adapted, processor, rows, tmp_path):
    model: Any = small_model(processor)
    model.generation_config.update(max_new_tokens=7)
    if adapted:
        peft = pytest.importorskip("peft", reason="peft makes the model that is evaluated: pip install peft")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM"))
    before = model.generation_config.to_dict()
    arguments = OFATrainingArguments(**options(tmp_path, predict_with_generate=True))
    trainer = OFATrainer(model, arguments, collator(processor), train_dataset=rows, eval_dataset=rows)
    trainer.evaluate()
    assert model.generation_config.to_dict() == before


def test_the_negative_log_likelihood_is_logged_beside_the_loss(processor, rows, tmp_path):
    data = [{name: value for name, value in row.items() if name != "confidence"} for row in rows]
    arguments = OFATrainingArguments(**options(tmp_path, label_smoothing_factor=0.2, learning_rate=0.0))
    model = small_model(processor, freeze_resnet=True)
    trainer = OFATrainer(model, arguments, collator(processor), train_dataset=data, eval_dataset=data)
    trainer.train()
    nll = model(**collator(processor)(data)).loss.item()
    assert losses(trainer, "nll_loss") == pytest.approx([nll, nll], rel=1e-5)
    assert abs(losses(trainer)[0] - nll) > 1e-3  # smoothing makes a difference
    assert trainer.evaluate()["eval_nll_loss"] == pytest.approx(nll, rel=1e-5)


def test_patches_are_sampled_in_training_alone(processor, rows, tmp_path):
    arguments = OFATrainingArguments(**options(tmp_path, sample_patch_num=5, max_steps=1))
    model = small_model(processor)
    lengths = []
    model.model.encoder.register_forward_hook(
        lambda module, args, output: lengths.append(output.last_hidden_state.shape[1])
    )
    trainer = OFATrainer(model, arguments, collator(processor), train_dataset=rows, eval_dataset=rows)
    trainer.train()
    trainer.evaluate()
    text = collator(processor)(rows)["input_ids"].shape[1]
    assert lengths == [text + 5, text + 16]


def test_a_processor_alone_is_enough(processor, rows, tmp_path):
    small = OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, max_image_size=64)
    small.image_processor.size = SIZE
    arguments = OFATrainingArguments(**options(tmp_path))
    trainer = OFATrainer(small_model(processor), arguments, processing_class=small, train_dataset=rows)
    trainer.train()
    assert len(losses(trainer)) == 2


# The average of the weights


class Weights(TrainerCallback):
    """Keeps the weights after each update, before the average takes their place."""

    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any):
        self.seen.append(model.lm_head.weight.detach().clone())


def averaged(weights: list[torch.Tensor], start: torch.Tensor, decay: float, start_step: int = 0) -> torch.Tensor:
    average = start.clone()
    for step, weight in enumerate(weights, start=1):
        average = weight.clone() if step <= start_step else decay * average + (1 - decay) * weight
    return average


@pytest.mark.parametrize("final", [True, False])
def test_the_average_is_evaluated_saved_and_written_as_the_final_model(final, processor, rows, tmp_path):
    model = small_model(processor, freeze_resnet=True)
    start = model.lm_head.weight.detach().clone()
    watch = Weights()
    arguments = TrainingArguments(
        **options(
            tmp_path, max_steps=4, learning_rate=1e-2, eval_strategy="steps", eval_steps=2, save_strategy="steps"
        ),
        save_steps=2,
    )
    callbacks = [watch, EMACallback(0.5, start_step=1, final_model=final)]
    trainer = Trainer(
        model,
        arguments,
        data_collator=collator(processor),
        train_dataset=rows,
        eval_dataset={"one": rows[:2], "two": rows[2:]},
        callbacks=callbacks,
    )
    trainer.train()
    mean = averaged(watch.seen[:2], start, 0.5, 1)
    saved = OFAForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2", dtype=torch.float32).eval()
    torch.testing.assert_close(saved.lm_head.weight.detach(), mean)
    for name, part in (("one", rows[:2]), ("two", rows[2:])):
        with torch.no_grad():
            loss = saved(**collator(processor)(part)).loss.item()
        assert losses(trainer, f"eval_{name}_loss")[0] == pytest.approx(loss, rel=1e-5)
    files = load_file(tmp_path / "checkpoint-2" / "ema.safetensors")
    torch.testing.assert_close(files["training.model.encoder.embed_tokens.weight"], watch.seen[1])
    wanted = averaged(watch.seen, start, 0.5, 1) if final else watch.seen[-1]
    torch.testing.assert_close(model.lm_head.weight.detach(), wanted)


def test_the_average_of_half_precision_weights_is_kept_in_float32(processor, tmp_path):
    """A decay so near to 1 that bfloat16 could not take a step."""
    arguments = options(tmp_path, max_steps=2, learning_rate=1e-2, save_strategy="steps", save_steps=1, optim="sgd")
    found = []
    for steps, resume in ((2, None), (1, None), (2, str(tmp_path / "checkpoint-1"))):
        ema = EMACallback(0.9999)
        trainer = Trainer(
            small_model(processor).to(torch.bfloat16),
            TrainingArguments(**{**arguments, "max_steps": steps}, lr_scheduler_type="constant"),
            data_collator=collator(processor, "none"),
            train_dataset=text_rows(4),
            callbacks=[ema],
        )
        trainer.train(resume_from_checkpoint=resume)
        found.append(ema.averages["model.encoder.embed_tokens.weight"])
    start = small_model(processor).to(torch.bfloat16).lm_head.weight.float()
    assert found[0].dtype == torch.float32 and 0 < (found[0] - start).abs().max() < 1e-3
    assert torch.equal(found[2], found[0])


def test_resuming_without_an_average_is_refused(processor, tmp_path):
    arguments = options(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)

    def trainer(**others: Any) -> OFATrainer:
        given = OFATrainingArguments(**arguments | others)
        return OFATrainer(small_model(processor), given, collator(processor, "none"), train_dataset=text_rows(4))

    trainer().train()
    resumed = trainer(ema_decay=0.9, max_steps=2)
    with pytest.raises(ValueError, match="Training resumes at step 1, but there is no average of weights at"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# Killed and resumed


def interrupted_trainer(folder: Path, kind: str, **kwargs: Any) -> Trainer:
    """A run with drawn order and dropout; of OFATrainer with drawn patches, two runs of a batch and an average too."""
    processor = OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT)
    pictures = [PILImage.new("RGB", (64, 64), (40 * i, 255 - 30 * i, 90)) for i in range(6)]
    data = [
        {"task": "caption", "image": one, "target": f"a picture of {'very ' * i}plain colour"}
        for i, one in enumerate(pictures)
    ]
    given = options(
        folder, max_steps=6, per_device_train_batch_size=2, learning_rate=1e-3, save_strategy="steps", save_steps=2
    )
    arguments = TrainingArguments(**given)
    if kind == "OFATrainer":
        arguments = OFATrainingArguments(**given, rdrop_alpha=1.0, sample_patch_num=9, ema_decay=0.8)
    trainer_type = OFATrainer if kind == "OFATrainer" else Trainer
    model = small_model(processor, dropout=0.2)
    return trainer_type(model, arguments, data_collator=collator(processor), train_dataset=data, **kwargs)


class Killer(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["Trainer", "OFATrainer"])
def test_a_killed_run_resumes_with_the_same_losses(kind, tmp_path):
    whole = interrupted_trainer(tmp_path / "whole", kind)
    whole.train()
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_trainer import Killer, interrupted_trainer
        interrupted_trainer(Path({str(tmp_path / "killed")!r}), {kind!r}, callbacks=[Killer()]).train()
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    resumed = interrupted_trainer(tmp_path / "killed", kind)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    assert losses(resumed, "nll_loss") == losses(whole, "nll_loss")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    state = json.loads((tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 4


# Bad input, before the first step


def unlabelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "target"} for row in rows]


@pytest.mark.parametrize(
    "trainer_type, message",
    [
        (Trainer, "The model did not return a loss from the inputs"),
        (OFATrainer, "A batch has no labels, only input_ids"),
    ],
)
def test_a_batch_without_labels_is_refused(trainer_type, message, processor, rows, tmp_path):
    arguments_type = OFATrainingArguments if trainer_type is OFATrainer else TrainingArguments
    trainer = trainer_type(
        small_model(processor),
        arguments_type(**options(tmp_path)),
        data_collator=collator(processor),
        train_dataset=unlabelled(rows),
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_labels_outside_of_the_vocabulary_are_refused(processor, rows, tmp_path):
    model = tiny_model(max_position_embeddings=processor.tokenizer.model_max_length)  # 200 tokens
    arguments = options(tmp_path)
    trainer = Trainer(model, TrainingArguments(**arguments), data_collator=collator(processor), train_dataset=rows)
    with pytest.raises(ValueError, match=r"A label is \d+, but the model has 200 tokens: wrong tokenizer\?"):
        trainer.train()
    with pytest.raises(ValueError, match="tokens, but the model knows 200: take both from one checkpoint"):
        OFATrainer(model, OFATrainingArguments(**arguments), collator(processor), train_dataset=rows)


@pytest.mark.parametrize("label", [-5, 200])
def test_a_label_that_is_no_token_is_refused_by_the_model(label):
    model = tiny_model()  # 200 tokens
    with pytest.raises(ValueError, match=f"A label is {label}, but the model has 200 tokens"):
        model(input_ids=torch.tensor([[0, 5, 2]]), labels=torch.tensor([[5, -100, label]]))


def test_rows_without_their_picture_are_refused(processor, rows, tmp_path):
    bad = [{**row, "image": None} if row["task"] == "caption" else row for row in rows]
    trainer = Trainer(
        small_model(processor),
        TrainingArguments(**options(tmp_path)),
        data_collator=collator(processor),
        train_dataset=bad,
    )
    with pytest.raises(ValueError, match="of the batch has no image, but task 'caption' is about one"):
        trainer.train()


def test_float16_weights_are_refused_for_mixed_precision(processor, rows, tmp_path, monkeypatch):
    arguments = OFATrainingArguments(**options(tmp_path))
    monkeypatch.setattr(arguments, "fp16", True)  # which no CPU has
    with pytest.raises(ValueError, match="these are float16: load the model with dtype=torch.float32"):
        OFATrainer(small_model(processor).half(), arguments, collator(processor), train_dataset=rows)


def test_a_checkpoint_of_another_model_is_refused(processor, tmp_path):
    data, arguments = text_rows(4), options(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    saved = OFATrainer(
        small_model(processor), OFATrainingArguments(**arguments), collator(processor, "none"), train_dataset=data
    )
    saved.train()
    other = OFATrainer(
        small_model(processor, decoder_layers=3),
        OFATrainingArguments(**{**arguments, "max_steps": 2}),
        collator(processor, "none"),
        train_dataset=data,
    )
    with pytest.raises(ValueError, match="The checkpoint does not fit the model: it lacks .*decoder.layers.2"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_task_that_has_no_name_is_refused(processor, rows, tmp_path):
    row = {"image": rows[0]["image"], "target": "a dog", "task": Task("a_task_of_my_own", " what is it?")}
    arguments = OFATrainingArguments(**options(tmp_path))
    trainer = OFATrainer(small_model(processor), arguments, collator(processor), train_dataset=[row])
    with pytest.raises(ValueError, match=r"Task 'a_task_of_my_own' has no name for the trainer: register_task"):
        trainer.train()


def test_a_task_of_the_collator_needs_no_name(processor, rows, tmp_path):
    own = Task("a_task_of_my_own", " what is it?", generation={"max_new_tokens": 2, "num_beams": 1})
    data = [{"image": row["image"], "target": "a dog"} for row in rows[:2]]
    arguments = OFATrainingArguments(**options(tmp_path), predict_with_generate=True)
    trainer = OFATrainer(small_model(processor), arguments, collator(processor, task=own), eval_dataset=data)
    predictions = trainer.predict(data).predictions
    assert (predictions[:, 3:] == processor.tokenizer.pad_token_id).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"ema_decay": 1.0}, "The decay of an average is between 0 and 1"),
        ({"sample_patch_num": 0}, "`sample_patch_num` is a number of patches"),
        ({"drop_worst_ratio": 1.5}, "`drop_worst_ratio` is a part of a whole"),
        ({"constraint_range": [9, 7]}, "`constraint_range` is the first token"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        OFATrainingArguments(**options(tmp_path, **wrong))


def test_arguments_and_collators_of_another_kind_are_refused(processor, rows, tmp_path):
    model = small_model(processor)
    with pytest.raises(TypeError, match="OFATrainer takes OFATrainingArguments, not TrainingArguments"):
        OFATrainer(model, TrainingArguments(**options(tmp_path)), collator(processor))
    arguments = OFATrainingArguments(**options(tmp_path, constrained_loss=True))
    with pytest.raises(ValueError, match="`constrained_loss` needs the tasks of rows: use a DataCollatorForOFA"):
        OFATrainer(model, arguments, DataCollatorForSeq2Seq(processor.tokenizer))
