"""The collator: raw rows and Examples of any tasks to batches that the model and `Trainer` take."""

import pickle
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from transformers import Trainer, TrainingArguments

import modeling_ofa
from modeling_ofa import DataCollatorForOFA, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.data.collator import target_of
from modeling_ofa.tasks import TASKS, get_task


@pytest.fixture(scope="module")
def processor() -> OFAProcessor:
    return OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def picture() -> PILImage.Image:
    scenes = Path(modeling_ofa.DEFAULT_CHECKPOINT).parent / "scenes"
    return PILImage.open(next(scenes.glob("*.png")))


def mixed_rows(picture: PILImage.Image) -> list[dict]:
    return [
        {"task": "caption", "image": picture, "target": "a dog and a cup"},
        {"task": "visual_grounding", "image": picture, "text": "the dog", "target": [8, 8, 60.5, 64]},
        {"task": "vqa", "image": picture, "text": "what is it", "objects": ["dog", "cup"], "target": "dog"},
        {
            "task": "object_detection",
            "image": picture,
            "target": [{"box": [0, 0, 9, 9], "label": "dog"}, {"box": [9, 9, 20, 30], "label": "cup"}],
        },
        {"task": "mnli", "text": "a dog sits", "text_pair": "it is a dog", "target": "entailment"},
        {"task": "visual_entailment", "image": picture, "text": "a dog", "text_pair": "a cup", "target": "no"},
    ]


def test_a_mixed_batch_holds_what_each_row_gives_alone(processor, picture):
    rows = mixed_rows(picture)
    together = DataCollatorForOFA(processor)(rows)
    assert together["pixel_values"].dtype == torch.float32 and len(together["labels"]) == len(rows)
    for i, row in enumerate(rows):
        alone = DataCollatorForOFA(processor)([row])
        for name, value in alone.items():
            found = together[name][i : i + 1]
            if name in ("input_ids", "attention_mask", "labels", "decoder_input_ids"):
                found = found[:, : value.shape[1]]
            assert torch.equal(found, value), name
        assert together["attention_mask"][i].sum() == alone["input_ids"].shape[1]
    assert together["patch_masks"].tolist() == [True, True, True, True, False, True]


def test_the_columns_of_an_example_are_targets_too():
    example = {"target": None, "boxes": [[1, 2, 3, 4]], "labels": ["dog"], "codes": [5, 6]}
    assert target_of(example, get_task("visual_grounding")) == [1, 2, 3, 4]
    assert target_of(example, get_task("object_detection")) == {"boxes": [[1, 2, 3, 4]], "labels": ["dog"]}
    assert target_of(example, get_task("image_generation")) == [5, 6]
    assert target_of({**example, "target": "yes"}, get_task("visual_entailment")) == "yes"
    assert target_of(example, get_task("caption")) is None


def test_evaluation_wants_no_labels_and_prompts_alone(processor, picture):
    rows = [row for row in mixed_rows(picture) if row["task"] == "vqa"] * 2
    batch = DataCollatorForOFA(processor, decoder_prompt="official", with_targets=False)(rows)
    assert "labels" not in batch
    source = batch["input_ids"]
    assert torch.equal(batch["decoder_input_ids"], source[:, :-1]) and source[0, -1] == 2
    unlabelled = [{key: value for key, value in row.items() if key != "target"} for row in rows]
    assert "labels" not in DataCollatorForOFA(processor)(unlabelled)


def test_pictures_that_datasets_left_undecoded_are_read(processor, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    dataset = Dataset.from_list([{"task": "caption", "image": picture, "target": "a dog", "objects": ["dog"]}])
    undecoded = dataset.cast_column("image", Image(decode=False))
    decoded = DataCollatorForOFA(processor)([dataset.cast_column("image", Image())[0]])
    path = {"bytes": None, "path": str(tmp_path / "picture.png")}
    for row in (undecoded[0], {**undecoded[0], "image": path}):
        assert isinstance(row["image"], dict)
        assert torch.equal(DataCollatorForOFA(processor)([row])["pixel_values"], decoded["pixel_values"])


def test_workers_that_are_spawned_get_the_collator(processor, picture):
    rows = [row for row in mixed_rows(picture) if row["task"] != "mnli"]
    copied = pickle.loads(pickle.dumps(DataCollatorForOFA(processor, task=TASKS["caption"], size=64)))
    batch = DataCollatorForOFA(processor, size=64)(rows)
    assert all(torch.equal(copied(rows)[name], value) for name, value in batch.items())


def test_rows_without_a_task_are_of_the_collators_own(processor, picture):
    batch = DataCollatorForOFA(processor, task="caption", size=64)([{"image": picture, "target": "a dog"}])
    assert batch["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": None}, "Row 0 names no task: give the rows a column 'task', or the collator task="),
        ({"image": None}, "Row 0 of the batch has no image, but task 'caption' is about one"),
        ({"target": None}, "Row 0 of the batch has no target for task 'caption', but others have one"),
        ({"task": "captions"}, "Unknown task 'captions'"),
        ({"text": "a dog"}, r"Task 'caption' \(row 0\) takes no text"),
        ({"target": 3}, "A target is a text here, not 3"),
    ],
)
def test_bad_rows_are_refused_by_number(processor, picture, change, message):
    rows = mixed_rows(picture)[:2]
    with pytest.raises(ValueError, match=message):
        DataCollatorForOFA(processor)([{**rows[0], **change}, rows[1]])


def test_trainer_learns_from_raw_rows_of_several_tasks(processor, picture, tmp_path):
    rows = [
        {"task": row["task"], "image": picture, "text": row.get("text"), "target": target}
        for row, target in zip(mixed_rows(picture), ["a dog", None, "dog"], strict=False)
        if target
    ]
    dataset = Dataset.from_list(rows * 4).cast_column("image", Image())
    model = OFAForConditionalGeneration.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, dtype=torch.float32)
    arguments = TrainingArguments(
        tmp_path,
        remove_unused_columns=False,
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=3e-4,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=dataset, data_collator=DataCollatorForOFA(processor))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
