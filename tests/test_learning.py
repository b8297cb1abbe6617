"""
Every task is learned from scratch through the trainers, until what is generated is what was shown in training; and
what docs/learning.md says of fine-tuning on pictures is what its runs have logged.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny import tiny_model
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

from modeling_ofa import (
    DataCollatorForOFA,
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
)
from modeling_ofa.data.readers import load_examples
from modeling_ofa.tasks_ofa import TASKS, Task
from modeling_ofa.training import OFATrainer, OFATrainingArguments


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))  # at the end: it has an evaluate.py

import build_learning_data  # noqa: E402
import finetune  # noqa: E402
from world.scenes import Scene  # noqa: E402


SIDE = 64  # pixels; less is too small for printed text
GRID = 6  # codes a side of a picture
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (240, 210, 40)}
SHAPES = ("square", "circle", "bar")
# Nothing in the model hears.
LEARNED = [name for name, task in TASKS.items() if not task.takes_audio]


# --- what is learned -----------------------------------------------------------------------------------------------
def scene(number: int) -> tuple[Image.Image, list[list[int]], list[str]]:
    """A picture of one to three things side by side, their boxes and names."""
    rng = np.random.default_rng(number)
    width, height = (int(side) for side in rng.integers(60, 100, 2))
    picture = Image.fromarray(rng.integers(90, 140, (height, width, 3), dtype=np.uint8))
    pen, count = ImageDraw.Draw(picture), 1 + number % 3
    boxes, names = [], []
    # No colour comes twice, since captions are decoded without any three tokens twice.
    for i, colour in enumerate(rng.permutation(list(COLOURS)).tolist()[:count]):
        x0, y0 = i * width // count + int(rng.integers(1, 6)), int(rng.integers(2, height // 2))
        x1, y1 = x0 + width // count - int(rng.integers(8, 12)), y0 + int(rng.integers(14, height // 2))
        shape = SHAPES[rng.integers(len(SHAPES))]
        draw = pen.ellipse if shape == "circle" else pen.rectangle
        draw((x0, y0, x1 - 1, y1 - 1), COLOURS[colour])
        boxes.append([x0, y0, x1, y1])
        names.append(f"{colour} {shape}")
    return picture, boxes, names


def codes_of(picture: Image.Image) -> list[int]:
    """What a coarse tokenizer of pictures gives: a colour of 4 x 4 x 4 for each of `GRID` x `GRID` places."""
    levels = np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX)) // 64
    return (levels @ [16, 4, 1]).flatten().tolist()


def row_of(task: Task, number: int) -> dict[str, Any]:
    """A row of data with what the task takes, and an answer of its kind."""
    picture, boxes, names = scene(number)
    row: dict[str, Any] = {"task": task.name, "image": picture if task.takes_image else None}
    if task.takes_text:
        row["text"] = boxes[0] if task.takes_region else names[0] if task.takes_image else " and ".join(names)
    if task.takes_pair:
        row["text_pair"] = f"a {names[-1]}"
    if task.answer == "label":
        answers = task.answers or SHAPES
        return {**row, "target": answers[number % len(answers)]}
    if task.answer in ("box", "boxes"):
        count = 1 if task.answer == "box" else len(boxes)
        return {**row, "boxes": boxes[:count], "labels": names[:count]}
    if task.answer == "codes":
        return {**row, "codes": codes_of(picture)}
    return {**row, "target": " and ".join(names)}


def is_exact(answer: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether an answer is that of the row; a box to the pixel, since bins are a pixel wide."""
    if "boxes" not in row:
        return next(iter(answer.values())) == row.get("target", row.get("codes"))
    return (
        len(answer["boxes"]) == len(row["boxes"])
        and np.allclose(answer["boxes"], row["boxes"], atol=1.0)
        and answer.get("labels", row["labels"]) == row["labels"]
    )


# --- who learns it -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def processor() -> OFAProcessor:
    """
    A processor whose words are those of the instructions and scenes. It decodes without beams: as officially, a search
    ends when so many answers have ended, and for a model that is sure of one answer all others are noise, which may
    end first.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    instructions = [text for task in TASKS.values() for text in (task.instruction, task.pair_instruction) if text]
    words = [f" {word}" for word in (*COLOURS, *SHAPES, "and")]
    tokenizer.train_from_iterator(instructions + 9 * words, trainer)
    known = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in known["merges"]]
    return OFAProcessor(
        OFAImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        OFATokenizer(known["vocab"], merges, num_codes=64, num_bins=100, model_max_length=GRID**2),
        max_image_size=SIDE,
        num_beams=1,
        decoder_prompt="official",
        answers={"image_classification": list(SHAPES)},
    )


def new_model(processor: OFAProcessor) -> OFAForConditionalGeneration:
    return tiny_model(vocab_size=len(processor.tokenizer), code_image_size=8 * GRID)


def collator(processor: OFAProcessor) -> DataCollatorForOFA:
    return DataCollatorForOFA(processor, size={"height": SIDE, "width": SIDE})


def options(folder: Path, **kwargs: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 8,
        "adam_beta2": 0.98,
        "per_device_eval_batch_size": 64,
        "predict_with_generate": True,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **kwargs,
    }


def share_of_exact(trainer: Seq2SeqTrainer, processor: OFAProcessor, rows: list[dict[str, Any]]) -> float:
    """How many of the rows, all of one task, the trainer's model answers exactly."""
    task = TASKS[rows[0]["task"]]
    # OFATrainer would know it without being told.
    own = {} if isinstance(trainer, OFATrainer) else processor.generation_kwargs(task)
    ids = trainer.predict(rows, **own).predictions
    sizes = [row["image"].size[::-1] for row in rows] if task.answer in ("box", "boxes") else None
    # The plain trainer's predictions begin with the decoder's prompt.
    inputs = None if isinstance(trainer, OFATrainer) else collator(processor)(rows)
    padded = np.where(ids < 0, processor.tokenizer.pad_token_id, ids)
    answers = processor.post_process(padded, task, image_sizes=sizes, size=SIDE, inputs=inputs)
    return float(np.mean([is_exact(answer, row) for answer, row in zip(answers, rows, strict=True)]))


def test_one_model_learns_every_task_from_scratch_at_once(processor, tmp_path):
    rows = {name: [row_of(TASKS[name], 4 * i + j) for j in range(4)] for i, name in enumerate(LEARNED)}
    arguments = options(tmp_path, max_steps=220, learning_rate=6e-3, per_device_train_batch_size=27)
    set_seed(0)
    trainer = OFATrainer(
        new_model(processor),
        OFATrainingArguments(**arguments),
        collator(processor),
        train_dataset=[row for own in rows.values() for row in own],
    )
    trainer.train()
    shares = {name: share_of_exact(trainer, processor, own) for name, own in rows.items()}
    assert {name: share for name, share in shares.items() if share <= 0.95} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_the_plain_trainer_teaches_each_task_alone(name, processor, tmp_path):
    numbers = {tuple(scene(i)[2]): i for i in range(60)}.values()  # else the same text would have two answers
    rows = [row_of(TASKS[name], number) for number in list(numbers)[:24]]
    arguments = options(tmp_path, max_steps=400, learning_rate=5e-3, per_device_train_batch_size=12)
    set_seed(0)
    trainer = Seq2SeqTrainer(
        new_model(processor),
        Seq2SeqTrainingArguments(**arguments),
        data_collator=collator(processor),
        train_dataset=rows,
    )
    before = share_of_exact(trainer, processor, rows)
    trainer.train()
    assert before < 0.7 and share_of_exact(trainer, processor, rows) > 0.95


# --- pictures, recipes and curves of docs/learning.md --------------------------------------------------------------
def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_garments_become_rows_of_a_closed_list(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (2, 5, 28, 28)), rng.integers(0, 10, (2, 5))
    for part, own_pixels, own_labels in zip(("train", "t10k"), pixels, labels, strict=True):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", own_pixels)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", own_labels)
    out = tmp_path / "out"
    words = f"build_learning_data fashion-mnist --source {tmp_path} --output {out} --train 4 --held-out 3"
    monkeypatch.setattr(sys, "argv", words.split())
    build_learning_data.main()
    assert f"{out / 'val'}: 3 pictures" in capsys.readouterr().out
    answers = (out / "answers.txt").read_text().splitlines()
    assert len(answers) == 10
    for split, number, own_pixels, own_labels in zip(("train", "val"), (4, 3), pixels, labels, strict=True):
        rows = load_examples("folder", out, task="image_classification", split=split)
        assert [row["target"] for row in rows] == [answers[label] for label in own_labels[:number]]
        assert np.array_equal(np.asarray(rows[1]["image"]), own_pixels[1])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(SystemExit, match="t10k-labels-idx1-ubyte.gz does not exist: install dataset-fashion-mnist"):
        build_learning_data.main()


def test_training_scenes_and_held_out_ones_are_of_different_seeds(tmp_path):
    class World:
        def compose(self, rng, designs, size):
            pixels = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
            boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9]])
            return Scene(pixels, ["dog", "cup"], boxes, np.zeros((size, size), np.int8))

    build_learning_data.write_scenes(tmp_path, World(), "twemoji", {"train": 3, "val": 2})
    written = {path.read_bytes() for path in tmp_path.glob("*/*.png")}
    assert len(written) == 5
    line = json.loads((tmp_path / "val" / "metadata.jsonl").read_text().splitlines()[0])
    assert line == {"file_name": "00000.png", "target": "a dog and a cup"}


# By run its recipes, and the held-out score.
RUNS = {
    "scenes_plain": (["scenes"], "eval_cider"),
    "scenes_lora": (["scenes", "lora"], "eval_cider"),
    "scenes_self_critical": (["scenes", "self_critical"], "eval_cider"),
    "fashion_mnist_plain": (["fashion_mnist"], "eval_accuracy"),
    "fashion_mnist_lora": (["fashion_mnist", "lora"], "eval_accuracy"),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_recorded_curves_are_those_of_the_recipes_and_of_the_documentation(run):
    names, score = RUNS[run]
    files = [argument for name in names for argument in ("--config", f"{ROOT}/recipes/learning/{name}.yaml")]
    recipe, args = finetune.parse([*files, "--use_cpu", "true"])
    assert (recipe.peft is not None, recipe.reward is not None) == ("lora" in names, "self_critical" in names)
    log = json.loads((ROOT / "docs" / "curves" / f"{run}.json").read_text(encoding="utf-8"))
    steps, scores = zip(*[(entry["step"], entry[score]) for entry in log if score in entry], strict=True)
    assert steps == tuple(range(0, args.max_steps + 1, args.eval_steps))
    trained = [entry["step"] for entry in log if "loss" in entry]
    assert trained == list(range(args.logging_steps, args.max_steps + 1, args.logging_steps))
    assert scores[-1] > scores[0]
    documentation = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
    [line] = [line for line in documentation.splitlines() if line.startswith(f"| `{run}`")]
    form = "CIDEr-D {:.2f} → {:.2f}" if score == "eval_cider" else "accuracy {:.1%} → {:.1%}"
    assert form.format(scores[0], scores[-1]).replace("%", " %") in line


def test_logs_of_runs_are_kept_and_drawn_again_without_them(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="it draws the curves: pip install matplotlib")
    import plot_curves

    entry = {"loss": 1.23456, "reward": 2.0, "eval_loss": 3.0, "eval_cider": 4.0, "eval_accuracy": 0.5, "epoch": 1.0}
    logs, picture = tmp_path / "logs", tmp_path / "images" / "curves.png"
    for run in RUNS:
        (tmp_path / run).mkdir()
        history = [{**entry, "step": step} for step in (0, 5)] + [{"step": 5, "train_runtime": 9.0}]
        (tmp_path / run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    command = ["plot_curves", "--logs", str(logs), "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path)])
    plot_curves.main()
    kept = json.loads((logs / "scenes_lora.json").read_text())
    assert {path.stem for path in logs.iterdir()} == set(RUNS) and len(kept) == 2
    assert kept[1]["loss"] == 1.2346 and "epoch" not in kept[1]

    picture.unlink()
    monkeypatch.setattr(sys, "argv", command)
    plot_curves.main()
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 100
    (tmp_path / "scenes_lora" / "trainer_state.json").unlink()
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path)])
    with pytest.raises(SystemExit, match="trainer_state.json does not exist: .* trains scenes_lora"):
        plot_curves.main()
