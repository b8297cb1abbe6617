"""Evaluation: answers by one path for every task, on any number of processes, stopped and gone on with."""

import base64
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from tiny import save_checkpoint, tiny_model
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from modeling_ofa import (
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
)
from modeling_ofa.evaluation.loop import evaluate
from modeling_ofa.evaluation.predictor import Predictor, read_answers
from modeling_ofa.evaluation.results import draw, score, submission
from modeling_ofa.tasks_ofa import TASKS


ROOT = Path(__file__).parents[1]
SCENES = ROOT / "modeling_ofa" / "assets" / "scenes"


def load_script():
    """Imports `scripts/evaluate.py` by a name of its own: the library `evaluate` has the other."""
    sys.path.append(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "scripts" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def pictures() -> list[bytes]:
    return [(SCENES / f"scene_{i}.png").read_bytes() for i in (1, 2, 3)]


def image(i: int) -> str:
    return base64.urlsafe_b64encode(pictures()[i]).decode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with a random model that can speak of boxes and draw."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([task.instruction for task in TASKS.values()], trainer)
    words = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in words["merges"]]
    tokenizer = OFATokenizer(words["vocab"], merges, num_codes=64, num_bins=100)
    pixels = OFAImageProcessorPil(size={"height": 64, "width": 64})
    folder = tmp_path_factory.mktemp("checkpoint")
    OFAProcessor(pixels, tokenizer, max_image_size=96, num_beams=2).save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "code_image_size": 256}
    tiny_model(image_bucket_size=32, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """`datasets` and the processes that tests start keep what they prepare in a folder of the tests."""
    import datasets

    folder = str(tmp_path_factory.mktemp("cache"))
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, Path(folder)
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR, which takes seconds to start, has its tests elsewhere."""
    monkeypatch.setattr("modeling_ofa.evaluation.captions.java_package", lambda: None)


@pytest.fixture(scope="module")
def load(checkpoint):
    """Gives a predictor of the random model."""
    model = OFAForConditionalGeneration.from_pretrained(checkpoint).eval()
    return partial(Predictor, model, OFAProcessor.from_pretrained(checkpoint))


def run(*arguments: object) -> int:
    return script.main([str(argument) for argument in arguments])


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- every task ----------------------------------------------------------------------------------------------------

SENTENCES = ("the dog sleeps", "a dog is asleep")
# By task the lines of a TSV file, and what else the command is given.
DATA: dict[str, tuple[list[list], list[str]]] = {
    "caption": ([[f"c{i}", 17 + i, "a dog&&the dog", "", image(i)] for i in range(3)], ["--columns", "1,4,2"]),
    "vqa": ([[i, 9, "what is it?", "0.6|!+dog&&1.0|!+cat", "car&&dog", image(i)] for i in range(3)], []),
    "visual_grounding": ([[i, 9, "the dog", "5,6.5,70,80", image(i)] for i in range(3)], []),
    "grounded_caption": ([[i, 9, "a dog&&the dog", "5,6.5,70,80", image(i)] for i in range(3)], []),
    "visual_entailment": (
        [[i, 9, image(i), "a dog", "it sleeps", label] for i, label in enumerate(("entailment", "neutral"))],
        [],
    ),
    "image_classification": ([[image(0), 1, "dog"], [image(1), 2, "cat"]], ["--answers", "ANSWERS"]),
    "object_detection": ([[0, image(0), "5,5,60,70,1,dog&&0,0,20,20,2,car"], [1, image(1), "1,1,30,40,2,car"]], []),
    "image_generation": ([["a", " ".join(str(i % 64) for i in range(1024)), "a dog"]], []),
    "image_infilling": ([[i, image(i), " ".join(["7"] * 256)] for i in range(2)], []),
    "text_infilling": ([["a", "a dog sleeps"], ["b", "it is late"]], []),
    "summarization": ([["the dog slept all day", "dog sleeps"], ["a car was found", "car found"]], []),
    "cola": ([["x", SENTENCES[0], 1], ["x", "dog the", 0]], []),
    "mnli": ([[*SENTENCES, 1], [*SENTENCES, 0], [*SENTENCES, 2]], []),
    "mrpc": ([[*SENTENCES, 1], [*SENTENCES, 0]], []),
    "qnli": ([[0, *SENTENCES, "entailment"], [1, *SENTENCES, "not_entailment"]], []),
    "qqp": ([[0, 1, 2, *SENTENCES, 1], [1, 2, 3, *SENTENCES, 0]], []),
    "rte": ([[0, *SENTENCES, "entailment"], [1, *SENTENCES, "not_entailment"]], []),
    "sst2": ([[SENTENCES[0], 1], [SENTENCES[1], 0]], []),
    "ocr": ([[i, image(i), "dog"] for i in range(2)], []),
    # No official file: a table with a header.
    "image_text_matching": (
        [["file_name", "text", "target"], ["scene_1.png", "a dog", "yes"], ["scene_2.png", "a cat", "no"]],
        ["--format", "folder", "--images", str(SCENES)],
    ),
}


def test_all_tasks_are_tested_that_the_model_can_do():
    assert set(DATA) == {name for name, task in TASKS.items() if not task.takes_audio}


@pytest.mark.parametrize("task", DATA)
def test_every_task_runs_from_raw_data_to_a_metric(task, checkpoint, tmp_path, capsys):
    lines, options = DATA[task]
    data = tmp_path / "data.tsv"
    data.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    answers = tmp_path / "answers.txt"
    answers.write_text("dog\ncat\nfire engine\n")
    options = [str(answers) if option == "ANSWERS" else option for option in options]
    out = tmp_path / "out"
    assert run("--task", task, "--model", checkpoint, "--data", data, "--output", out, *options) == 0

    examples = len(lines) - ("folder" in options)
    found, predictions = read(out / "metrics.json"), read(out / "predictions.json")
    assert list(found) == [task]
    assert (found[task]["examples"], found[task]["scored"], found[task]["unreadable"]) == (examples, examples, 0)
    assert found[task]["headline"] in found[task]["scores"]
    assert {name: float(value) for name, value in found[task]["scores"].items()} == found[task]["scores"]
    assert [row["task"] for row in predictions] == [task] * examples
    assert len({row["id"] for row in predictions}) == examples
    assert found[task]["headline"] in capsys.readouterr().out


def test_speech_is_refused_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "metadata.jsonl").write_text('{"text": "x", "target": "y"}\n')
    assert run("--task", "speech_recognition", "--format", "folder", "--data", tmp_path) == 2
    assert "recorded speech" in capsys.readouterr().err


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A table of eleven rows of four tasks, one of which is sampled and slow."""
    rows = [
        row
        for i in range(3)
        for row in (
            {"task": "vqa", "text": "what is it?", "references": ["dog", "dog", "cat"]},
            {"task": "visual_grounding", "text": "the dog " * (i + 1), "boxes": [[5, 6, 70, 80]]},
            {"task": "cola", "text": "dog the", "target": "no"},
            {"task": "image_infilling", "codes": [7] * 256},
        )
    ][:11]
    for i, row in enumerate(rows):
        row.update({"id": str(i)} if row["task"] == "cola" else {"id": str(i), "file_name": f"scene_{i % 3 + 1}.png"})
    table = tmp_path_factory.mktemp("mixed") / "metadata.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def mixed_arguments(checkpoint: Path, table: Path, out: Path) -> list[str]:
    words = ["--format", "folder", "--data", table, "--images", SCENES, "--model", checkpoint, "--batch-size", "2"]
    return [str(word) for word in [*words, "--with-scores", "--output", out]]


@pytest.fixture(scope="module")
def alone(checkpoint, mixed, tmp_path_factory) -> Path:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone")
    assert run(*mixed_arguments(checkpoint, mixed, out)) == 0
    return out


def launch(arguments: list[str], cache: str) -> subprocess.Popen:
    """Starts two processes."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            script.__file__,
            *arguments,
        ],
        env={**os.environ, **threads, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same(one: Path, other: Path) -> None:
    for name in ("predictions.json", "metrics.json", "submission_vqa.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def batches(out: Path) -> list[bytes]:
    return [line for path in sorted((out / "parts").glob("*")) for line in path.read_bytes().splitlines()]


def test_two_processes_write_the_same_bytes_as_one(checkpoint, mixed, alone, cache, tmp_path):
    process = launch(mixed_arguments(checkpoint, mixed, tmp_path), cache)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert_same(alone, tmp_path)
    assert sorted(len(path.read_bytes().splitlines()) for path in (tmp_path / "parts").glob("*")) == [3, 3]
    assert [row["id"] for row in read(tmp_path / "predictions.json")] == [str(i) for i in range(11)]


def test_a_run_that_was_killed_goes_on_with_another_number_of_processes(checkpoint, mixed, alone, cache, tmp_path):
    import psutil

    process = launch(mixed_arguments(checkpoint, mixed, tmp_path), cache)
    deadline = time.monotonic() + 300
    while not (tmp_path / "parts").is_dir() or not batches(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGKILL)
    process.communicate()

    finished = batches(tmp_path)
    assert 0 < len(finished) < 6 and not (tmp_path / "predictions.json").exists()
    with open(tmp_path / "parts" / "00000.jsonl", "ab") as file:
        file.write(b'{"batch": 5, "answers": [{"te')  # the beginning of a line that was being written
    assert run(*mixed_arguments(checkpoint, mixed, tmp_path)) == 0
    assert_same(alone, tmp_path)
    assert set(finished) < set(batches(tmp_path))


# --- the loop ------------------------------------------------------------------------------------------------------


def rows_of(task: str, count: int, **columns) -> list[dict]:
    return [{"id": str(i), "task": task, **columns} for i in range(count)]


@pytest.fixture
def quickly():
    return partial(evaluate, accelerator=Accelerator(cpu=True))


def test_batches_that_are_finished_are_not_answered_again(load, quickly, tmp_path):
    answered = []

    class Counting(Predictor):
        def __call__(self, rows, top_k=1):
            answered.extend(row["id"] for row in rows)
            return super().__call__(rows, top_k)

    predictor = Counting(load().model, load().processor)
    rows = rows_of("cola", 5, text="a dog", target="yes")
    first = quickly(predictor, rows, tmp_path, batch_size=2)
    part = tmp_path / "parts" / "00000.jsonl"
    written = part.read_bytes()
    part.write_bytes(written[:-20])  # cut off in the last batch, of one Example
    assert quickly(predictor, rows, tmp_path, batch_size=2) == first
    assert answered == ["0", "1", "2", "3", "4", "4"]
    assert read(tmp_path / "metrics.json") == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 3}, "batch_size 2 and not 3"),
        ({"seed": 1}, "seed 0 and not 1"),
        ({"strategy": "generate"}, "strategy 'auto' and not 'generate'"),
        ({"answers": ["cat"]}, "other answers"),
        ({"text": "another dog?"}, "other data"),
        ({"weight": 2.0}, "other model"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(change, named, load, quickly, tmp_path):
    rows = rows_of("vqa", 3, text="a dog?", image=pictures()[0])
    quickly(load(answers=["dog", "cat"]), rows, tmp_path, batch_size=2)
    before = (tmp_path / "predictions.json").read_bytes()
    predictor = load(answers=change.get("answers", ["dog", "cat"]), strategy=change.get("strategy", "auto"))
    if "weight" in change:
        predictor.model = tiny_model(vocab_size=predictor.model.config.vocab_size, seed=1)
    with pytest.raises(ValueError, match=named):
        quickly(
            predictor,
            [{**row, "text": change.get("text", row["text"])} for row in rows],
            tmp_path,
            batch_size=change.get("batch_size", 2),
            seed=change.get("seed", 0),
        )
    assert (tmp_path / "predictions.json").read_bytes() == before


def test_a_batch_that_two_runs_have_written_is_refused(load, quickly, tmp_path):
    rows = rows_of("cola", 2, text="a dog")
    quickly(load(), rows, tmp_path)
    (tmp_path / "parts" / "00001.jsonl").write_bytes((tmp_path / "parts" / "00000.jsonl").read_bytes())
    with pytest.raises(ValueError, match="Batch 0 is twice"):
        quickly(load(), rows, tmp_path)


def test_data_that_does_not_say_what_is_right_gives_predictions_alone(load, quickly, tmp_path):
    found = quickly(load(), rows_of("cola", 3, text="a dog"), tmp_path)
    assert found["cola"] == {
        "metric": "glue_cola",
        "headline": "matthews_correlation",
        "examples": 3,
        "scored": 0,
        "unreadable": 0,
        "scores": None,
    }
    assert len(read(tmp_path / "predictions.json")) == 3


def test_a_picture_that_cannot_be_read_stops_or_is_counted(load, quickly, tmp_path):
    whole = pictures()[0]
    rows = [
        {"id": str(i), "task": "image_text_matching", "text": "a dog", "image": content, "target": "yes"}
        for i, content in enumerate((whole, whole[: len(whole) // 2], whole))
    ]
    with pytest.raises(ValueError, match="Example 1: .*truncated"):
        quickly(load(), rows, tmp_path / "stops", batch_size=2)
    found = quickly(load(), rows, tmp_path / "stops", batch_size=2, on_bad_row="skip")["image_text_matching"]
    assert (found["examples"], found["scored"], found["unreadable"]) == (3, 2, 1)
    predictions = read(tmp_path / "stops" / "predictions.json")
    assert ["error" in row for row in predictions] == [False, True, False]


def test_a_target_that_cannot_be_chosen_is_told_before_anything_is_answered(load, quickly, tmp_path):
    rows = rows_of("image_classification", 2, image=pictures()[0], target="horse")
    with pytest.raises(ValueError, match="Example 0 has the target 'horse', which is not among the 2 answers"):
        quickly(load(answers=["dog", "cat"]), rows, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "rows", "named"),
    [
        ({}, [], "no Examples"),
        ({"batch_size": 0}, rows_of("cola", 1, text="x"), "batch_size is at least 1"),
        ({"metric": "bleurt"}, rows_of("cola", 1, text="x"), "Unknown metric 'bleurt'"),
        ({"metric": "grounding_accuracy"}, rows_of("cola", 1, text="x"), "compares box, but task 'cola' answers wi"),
        ({"metric_options": {"spaces": True}}, rows_of("cola", 1, text="x"), "'glue_cola' cannot take the options"),
        ({}, [{"id": "0", "text": "x"}], "names no task"),
        ({}, rows_of("image_classification", 1, image=pictures()[0]), "closed list"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(options, rows, named, load, quickly, tmp_path):
    with pytest.raises(ValueError, match=named):
        quickly(load(), rows, tmp_path, **options)


def test_pictures_of_answers_are_drawn(load, quickly, tmp_path):
    rows = [
        {"id": "a", "task": "visual_grounding", "text": "the dog", "image": pictures()[0]},
        {"id": "b", "task": "cola", "text": "a dog"},
        {"id": "c", "task": "image_classification", "image": pictures()[1]},
        {"id": "d", "task": "image_classification", "image": pictures()[2]},
    ]
    quickly(load(answers=["dog", "cat"]), rows, tmp_path, pictures=3)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["000000.png", "000002.png"]
    picture = Image.open(io.BytesIO(pictures()[0]))
    plain = draw(picture, {"text": "the dog"}, {"boxes": [], "scores": []})
    boxed = draw(picture, {"text": "the dog"}, {"boxes": [[10, 20, 50, 60]], "scores": [None]})
    said = draw(picture, {"text": "what?"}, {"text": "a dog", "score": 0.5})
    assert plain.size == boxed.size and plain.tobytes() != boxed.tobytes()
    assert said.height > plain.height > picture.height  # one more line of text; small pictures are enlarged


# --- scores and submissions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "row", "answer", "headline"),
    [
        ("vqa", {"references": ["dog", "cat"], "answer_scores": [0.6, 1.0]}, {"text": "dog"}, ("vqa_soft_score", 0.6)),
        ("vqa", {"references": ["dog"] * 2 + ["cat"] * 8}, {"text": "the dog"}, ("vqa_accuracy", 0.6)),
        # of the one person who answered, the official accuracy would leave nobody
        ("vqa", {"references": ["dog"], "target": "dog"}, {"text": "dog"}, ("label_accuracy", 1.0)),
        ("vqa", {"target": "dog"}, {"text": "dog"}, ("label_accuracy", 1.0)),
        ("caption", {"target": "a dog on a beach"}, {"text": "a dog on a beach."}, ("coco_caption", 0.0)),
        ("visual_grounding", {"boxes": [[0, 0, 10, 10]]}, {"boxes": [[0, 0, 10, 9]]}, ("grounding_accuracy", 1.0)),
        ("visual_grounding", {"boxes": [[0, 0, 10, 10]]}, {"boxes": []}, ("grounding_accuracy", 0.0)),
        ("visual_entailment", {"target": "neutral"}, {"label": "maybe"}, ("label_accuracy", 1.0)),
        ("ocr", {"target": "Ａ ＢC"}, {"text": "abc"}, ("edit_distance", 1.0)),
        (
            "object_detection",
            {"boxes": [[0, 0, 10, 10]], "labels": ["dog"]},
            {"boxes": [[0, 0, 10, 10]], "labels": ["dog"], "scores": [None]},
            ("detection_map", 1.0),
        ),
        ("image_infilling", {"codes": [1, 2, 3, 4]}, {"codes": [1, 2, 3, 5]}, ("token_accuracy", 0.75)),
    ],
)
def test_scores_are_those_of_the_metric_that_fits_the_data(task, row, answer, headline):
    found = score(TASKS[task], [row, {}], [answer, answer])
    assert (found["metric"], found["scores"][found["headline"]]) == (headline[0], pytest.approx(headline[1]))
    assert (found["examples"], found["scored"]) == (2, 1)


def test_boxes_in_pictures_without_objects_are_wrong():
    box = {"boxes": [[0, 0, 10, 10]], "labels": ["dog"]}
    rows = [{"boxes": [], "labels": []}, box]
    found = score(TASKS["object_detection"], rows, [{**box, "scores": [0.9]}, {**box, "scores": [0.8]}])
    assert found["scored"] == 2 and found["scores"]["map"] == pytest.approx(0.5)


def test_metrics_take_options():
    row, said = {"references": ["a # ."]}, {"text": "A 1 ."}
    raw = score(TASKS["summarization"], [row], [said], "rouge", {"gigaword": False})["scores"]
    rewritten = score(TASKS["summarization"], [row], [said])["scores"]
    assert raw["rouge1"] == pytest.approx(2 / 3) and rewritten["rouge1"] == 1.0


def test_submissions_have_the_forms_of_the_public_servers():
    rows = [{"id": "42"}, {"id": "x_7"}, {"id": "9"}]
    said = [{"text": "a dog, asleep."}, {"text": "cat"}, {"error": "truncated"}]
    assert submission(TASKS["caption"], rows, said) == [
        {"image_id": 42, "caption": "a dog asleep"},
        {"image_id": "x_7", "caption": "cat"},
    ]
    assert submission(TASKS["vqa"], rows[:2], said[:2])[0] == {"question_id": 42, "answer": "a dog, asleep."}
    boxes = {"boxes": [[1, 2, 4, 8.126], [0, 0, 1, 1]], "labels": ["dog", "unicorn"], "scores": [0.5, None]}
    detected = submission(TASKS["object_detection"], rows[:1], [boxes], {"dog": 18})
    assert detected == [{"image_id": 42, "category_id": 18, "bbox": [1, 2, 3, 6.13], "score": 0.5}]
    assert submission(TASKS["object_detection"], rows[:1], [boxes]) is None
    assert submission(TASKS["cola"], rows[:1], [{"label": "yes"}]) is None


# --- the predictor -------------------------------------------------------------------------------------------------


def test_rows_get_the_answers_that_they_get_alone(load):
    picture = pictures()[0]
    rows = [
        {"task": "caption", "image": picture},
        {"task": "image_text_matching", "image": picture, "text": "a dog"},
        {"task": "vqa", "image": Image.open(io.BytesIO(picture)), "text": "what is this?"},
        {"task": "visual_grounding", "image": str(SCENES / "scene_2.png"), "text": "the dog"},
        {"task": "summarization", "text": "the dog slept " * 3},
        {"task": "text_infilling", "text": "the <mask> slept"},
        {"task": "grounded_caption", "image": {"bytes": picture, "path": None}, "text": "1,2,50,60"},
    ]
    for options in (
        {},
        {"strategy": "generate", "answers": {"vqa": ["dog", "a cat"]}},
        {"decoder_prompt": "official"},
    ):
        predictor = load(with_scores=True, **options)
        for together, row in zip(predictor(rows), rows, strict=True):
            [alone] = predictor([row])
            assert together.keys() == alone.keys()
            for name, value in together.items():
                assert value == (pytest.approx(alone[name], rel=1e-4) if "score" in name else alone[name])


def test_the_best_of_a_list_is_that_with_the_highest_probability(load):
    row = {"task": "vqa", "image": pictures()[0], "text": "what is this?"}
    answers = ["dog", "a cat", "fire engine"]
    chosen, searched = load(answers=answers), load(answers=answers, strategy="generate", with_scores=True)
    inputs = chosen.collator([row])
    trie = chosen.processor.answer_trie(answers)
    probabilities = chosen.model.score_candidates(inputs, trie).exp()[0]
    [answer] = chosen([row], top_k=3)
    assert answer["text"] == answers[int(probabilities.argmax())]
    assert answer["score"] == pytest.approx(float(probabilities.max()))
    assert [name for name, _ in answer["ranking"]] == [answers[i] for i in probabilities.argsort(descending=True)]
    assert searched([row])[0]["text"] in answers
    assert load()([row])[0]["text"] not in answers  # free


def test_what_is_generated_has_scores_if_asked_for(load):
    rows = [
        {"task": "caption", "image": pictures()[0]},
        {"task": "visual_grounding", "image": pictures()[0], "text": "the dog"},
        {"task": "image_infilling", "image": pictures()[0]},
    ]
    torch.manual_seed(0)
    caption, box, codes = load(with_scores=True)(rows)
    assert 0 < caption["score"] < 1 and 0 < codes["score"] < 1
    assert len(box["boxes"]) == len(box["scores"]) and all(0 < value < 1 for value in box["scores"])
    caption, box, codes = load()(rows)
    assert "score" not in caption and set(box["scores"]) <= {None}


def test_answers_follow_prompts_of_any_length(load):
    texts = ["what?", "what is this thing on the table?", "who?"]
    rows = [{"task": "vqa", "image": pictures()[i], "text": text} for i, text in enumerate(texts)]
    predictor = load(decoder_prompt="prev_output")
    for row, answer in zip(rows, predictor(rows), strict=True):
        inputs = predictor.collator([row])
        assert inputs["decoder_input_ids"].shape[1] > 1
        ids = predictor.model.generate(**inputs, **predictor.processor.generation_kwargs("vqa"))
        picture = predictor.read(row)["image"]
        sizes = [(picture.height, picture.width)]
        assert [answer] == predictor.processor.post_process(ids, "vqa", image_sizes=sizes, inputs=inputs)


def test_a_predictor_refuses_what_would_mislead(load):
    with pytest.raises(ValueError, match="strategy is one of"):
        load(strategy="guess")
    with pytest.raises(ValueError, match="give answers="):
        load()([{"task": "image_classification", "image": pictures()[0]}])
    with pytest.raises(TypeError, match="A picture is"):
        load()([{"task": "caption", "image": torch.zeros(3, 8, 8)}])
    predictor = load()
    predictor.model.train()
    try:
        with pytest.raises(ValueError, match=r"call `model\.eval\(\)`"):
            predictor([{"task": "cola", "text": "a dog"}])
    finally:
        predictor.model.eval()


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("answers.txt", "dog\n\n cat \ndog\n"),
        ("answers.json", '["dog", "cat", "dog"]'),
        ("ans2label.json", '{"cat": 1, "dog": 0}'),
        ("label2ans.json", '{"1": "cat", "0": "dog"}'),
    ],
)
def test_lists_of_answers_are_read_in_every_form(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert read_answers(tmp_path / name) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.pkl", b"\x80\x04\x95.", "is a pickle"),
        ("a.json", b"[1, 2]", "no list of answers"),
        ("a.json", b"{dog", "no list of answers"),
        ("a.json", b'{"dog": 0, "cat": "1"}', "no list of answers"),
        ("a.txt", b"\xff\xfe", "no list of answers"),
        ("a.txt", b"\n \n", "holds no answer"),
    ],
)
def test_other_files_are_no_lists_of_answers(name, content, named, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read_answers(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--task dance --data {data}", "Unknown task 'dance'"),
        ("--task caption --data {folder}/none.tsv", "No such file"),
        ("--data {data}", "needs task="),
        ("--task caption --data {data}", "5 columns should be"),
        ("--task image_classification --data {data} --model {bare}", "--answers FILE"),
        ("--task image_classification --data {data} --answers {folder}/none.txt", "none.txt"),
        ("--task image_classification --data {data} --model {folder}", "no config.json"),
        ("--task cola --data {data} --images x", "No such file or folder"),
        ("--format coco_detection --data {folder}/none.json --images {folder}", "No such file or folder"),
    ],
)
def test_bad_input_is_told_in_a_line_before_a_model_is_loaded(words, named, tmp_path, capsys, monkeypatch):
    bare = save_checkpoint(tmp_path / "bare")  # its processor has no list of answers
    monkeypatch.setattr(OFAForConditionalGeneration, "from_pretrained", None)
    data = tmp_path / "data.tsv"
    data.write_text(f"{image(0)}\t1\tdog\n")
    capsys.readouterr()
    assert run(*words.format(data=data, folder=tmp_path, bare=bare).split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("evaluate.py: error: ") and named in last


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--limit", "0", "0 is no whole number from 1 on"),
        ("--batch-size", "-1", "-1 is no whole number from 1 on"),
        ("--metric-options", "{no", "{no is not JSON"),
        ("--metric-options", "[1]", "[1] is no object"),
    ],
)
def test_options_that_mean_nothing_are_refused(option, value, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--task", "cola", "--data", "x", f"{option}={value}")
    assert stopped.value.code == 2 and named in capsys.readouterr().err


def test_a_file_in_the_place_of_the_output_is_refused(load, quickly, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file; the output is a folder"):
        quickly(load(), rows_of("cola", 1, text="x"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_interrupted_evaluation_says_how_it_goes_on(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run", interrupt)
    assert run("--task", "cola", "--data", "x") == 130
    assert capsys.readouterr().err.startswith("evaluate.py: interrupted; the same command goes on")


def test_rows_with_numbers_for_ids_or_without_any_are_evaluated(load, quickly, tmp_path):
    rows = [{"id": 5, "task": "vqa", "text": "a dog?", "image": pictures()[0]}] * 2
    quickly(load(answers=["dog", "cat"]), rows, tmp_path / "numbers")
    assert [row["question_id"] for row in read(tmp_path / "numbers" / "submission_vqa.json")] == [5, 5]
    data = Dataset.from_list([{"task": "cola", "text": "a dog", "target": "yes"}] * 2)
    quickly(load(), data, tmp_path / "none")
    assert [row["id"] for row in read(tmp_path / "none" / "predictions.json")] == ["0", "1"]


def test_a_limit_and_a_default_folder(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "data.tsv").write_text("x\ta dog\t1\nx\tdog a\t0\nx\tthe dog\t1\n")
    monkeypatch.chdir(tmp_path)
    assert run("--task", "cola", "--data", "data.tsv", "--model", checkpoint, "--limit", 2) == 0
    assert read(tmp_path / "evaluation" / "cola" / "metrics.json")["cola"]["examples"] == 2


def test_detections_get_the_numbers_of_their_categories(checkpoint, tmp_path):
    name = "scene_1.png"
    annotation = {"image_id": 3, "category_id": 18, "bbox": [5, 5, 40, 50]}
    instances = {
        "images": [{"id": 3, "file_name": name}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [annotation],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    out = tmp_path / "out"
    words = ["--format", "coco_detection", "--data", tmp_path / "instances.json", "--images", SCENES]
    assert run(*words, "--model", checkpoint, "--output", out) == 0
    assert isinstance(read(out / "submission_object_detection.json"), list)
    assert read(out / "metrics.json")["object_detection"]["scored"] == 1
