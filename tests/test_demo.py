"""`ofa demo`: the table of examples, what is printed of each, and the sheet of them all."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import save_checkpoint

from modeling_ofa import DEFAULT_CHECKPOINT, OFAProcessor, cli
from modeling_ofa.cli import demo, examples
from modeling_ofa.cli.predictor import Answerer, known_tasks
from modeling_ofa.cli.request import find_task


BOX = [10.0, 20.0, 50.0, 60.0]
ROWS = [
    {"task": "caption", "image": "grey.png"},
    {"task": "vqa", "image": "grey.png", "text": "how many?"},
    {"task": "visual_grounding", "image": "grey.png", "text": "a mug"},
    {"task": "object_detection", "image": "grey.png"},
    {"task": "image_classification", "image": "grey.png", "answers": ["cat", "dog"]},
    {"task": "mnli", "text": "a man sleeps", "text_pair": "nobody is awake"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of its own in the place of the package's."""
    Image.new("RGB", (100, 80), (127, 127, 127)).save(tmp_path / "grey.png")
    monkeypatch.setattr(examples, "FOLDER", tmp_path)

    def write(rows):
        (tmp_path / examples.TABLE).write_text(json.dumps(rows), encoding="utf-8")
        return [*map(str, ("demo", "--output", tmp_path / "out", "--device", "cpu"))]

    return write


@pytest.fixture
def stub(monkeypatch):
    """Answers of every kind, in the place of a model's."""

    def answer(self, row, top_k=1):
        kind = find_task(row["task"]).answer
        assert (row["image"] is not None) == find_task(row["task"]).takes_image
        if kind in ("box", "boxes"):
            found = {"boxes": [BOX], "scores": [0.5]}
            return found if kind == "box" else {**found, "labels": ["cup"]}
        return {"label" if kind == "label" else "text": f"{row['task']} answer of {self.answers}", "score": 0.75}

    monkeypatch.setattr(Answerer, "answer", answer)


def test_every_example_is_one_that_its_task_takes():
    processor = OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    rows = examples.read_examples()
    for row in rows:
        task = find_task(row["task"])
        assert set(row) <= {"task", "image", "text", "text_pair", "answers"}
        assert ("image" in row) == task.takes_image and ("text" in row) == task.takes_text
        assert "text_pair" in row or not task.needs_pair
        assert "answers" in row or task.answer != "label" or processor.closed_list(task) is not None
        image = Image.open(row["image"]) if "image" in row else None
        processor(image, task=task, **{name: row[name] for name in ("text", "text_pair") if name in row})
    pictures = [row.get("image") for row in rows]
    changes = [one for one, before in zip(pictures, [object(), *pictures], strict=False) if one != before]
    assert len(changes) == len(set(pictures)), "rows about one picture stand together"


def test_every_task_of_the_embedded_checkpoint_has_an_example_and_no_picture_lies_idle():
    known = known_tasks(str(DEFAULT_CHECKPOINT))
    assert known and set(known) <= {row["task"] for row in examples.read_examples()}
    used = {Path(row["image"]).name for row in examples.read_examples(known) if "image" in row}
    assert used == {path.name for path in examples.FOLDER.glob("*.png")}


def test_demo_prints_what_is_asked_and_answered_and_writes_one_sheet(stub, table, checkpoint, tmp_path, capsys):
    assert cli.main([*table(ROWS), "--model", str(checkpoint)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("6 tasks, asked of")
    for line in (
        "grey.png",
        "caption -> caption answer of None 0.7500",
        "vqa how many? -> vqa answer of None 0.7500",
        "visual_grounding a mug -> 10.0 20.0 50.0 60.0 0.5000",
        "object_detection -> 10.0 20.0 50.0 60.0 cup 0.5000",
        "image_classification cat or dog? -> image_classification answer of ['cat', 'dog'] 0.7500",
        "without a picture",
        "mnli a man sleeps | nobody is awake -> mnli answer of None 0.7500",
    ):
        assert line in lines
    sheet = tmp_path / "out" / "demo.png"
    assert lines[-1].endswith(str(sheet))
    drawn = Image.open(sheet)
    # one cell for the picture, one for what was detected in it, one for texts
    assert drawn.width == demo.MARGIN + 3 * (demo.CELL + demo.MARGIN)
    scale = demo.CELL / 100
    for cell in (0, 1):
        left = demo.MARGIN + cell * (demo.CELL + demo.MARGIN)
        edge = drawn.getpixel((round(left + 50 * scale), round(demo.MARGIN + 40 * scale)))
        assert edge != (127, 127, 127)  # the right side of the box
        assert drawn.getpixel((round(left + 30 * scale), round(demo.MARGIN + 50 * scale))) == (127, 127, 127)


def test_demo_as_json_is_one_object_an_example(stub, table, checkpoint, tmp_path, capsys):
    assert cli.main([*table(ROWS), "--json", "--model", str(checkpoint)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["task"] for record in records] == [row["task"] for row in ROWS]
    assert records[1] == {
        "task": "vqa",
        "image": str(tmp_path / "grey.png"),
        "text": "how many?",
        "answer": "vqa answer of None",
        "score": 0.75,
    }
    assert records[2]["boxes"] == [BOX] and records[3]["labels"] == ["cup"]


def test_demo_shows_only_what_the_checkpoint_is_for(stub, table, checkpoint, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for path in checkpoint.iterdir():
        (model / path.name).symlink_to(path)
    (model / "README.md").write_text("---\ntags:\n- ofa\n- mnli\n- caption\n---\n# A model\n", encoding="utf-8")
    assert cli.main([*table(ROWS), "--json", "--model", str(model)]) == 0
    assert [json.loads(line)["task"] for line in capsys.readouterr().out.splitlines()] == ["caption", "mnli"]
    assert cli.main([*table(ROWS[1:3]), "--model", str(model)]) == 2
    assert f"no example of what {model} is for" in capsys.readouterr().err


def test_a_list_of_answers_is_chosen_from_and_a_picture_without_a_box_is_drawn(table, checkpoint, tmp_path, capsys):
    assert cli.main([*table(ROWS), "--json", "--model", str(checkpoint)]) == 0  # a random model
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[4]["label"] in ("cat", "dog") and records[5]["label"] in ("yes", "maybe", "no")
    assert (tmp_path / "out" / "demo.png").is_file()


def test_demo_refuses_an_output_that_is_a_file(table, checkpoint, tmp_path, capsys):
    words = table(ROWS)
    words[words.index("--output") + 1] = str(tmp_path / "grey.png")
    assert cli.main([*words, "--model", str(checkpoint)]) == 2
    assert "no folder can be made" in capsys.readouterr().err


def test_demo_without_its_examples_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(examples, "FOLDER", tmp_path / "none")
    assert cli.main(["demo", "--output", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "examples are missing" in capsys.readouterr().err


def test_demo_shows_examples_of_yours(stub, checkpoint, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "mine" / "a.png")
    mine = tmp_path / "mine" / "rows.json"
    command = ["demo", "--examples", str(mine), "--model", str(checkpoint), "--device", "cpu"]
    command += ["--output", str(tmp_path / "out")]
    mine.write_text(json.dumps([{"task": "vqa", "image": "a.png", "text": "what?"}]), encoding="utf-8")
    assert cli.main(command) == 0
    assert "what? -> vqa answer of None" in capsys.readouterr().out and (tmp_path / "out" / "demo.png").is_file()
    for content, message in (
        ("[", "rows.json is no table of examples"),
        ('{"task": "vqa"}', "must be a list of rows such as"),
        ('[{"image": "a.png"}]', "must be a list of rows such as"),
        ('[{"task": "vqa", "image": "a.png"}]', "vqa"),
        ('[{"task": "caption", "image": "b.png"}]', "b.png"),
        ('[{"task": "capton", "image": "a.png"}]', "capton"),
        ("[]", "no example"),
    ):
        mine.write_text(content, encoding="utf-8")
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err, content
    assert cli.main([*command, "--examples", "nowhere.json"]) == 2
    assert "nowhere.json is no table of examples: [Errno 2]" in capsys.readouterr().err


def test_tasks_of_a_checkpoint_are_those_that_its_folder_names(tmp_path):
    assert known_tasks(str(tmp_path)) == []
    (tmp_path / "README.md").write_text("no metadata", encoding="utf-8")
    assert known_tasks(str(tmp_path)) == []
    (tmp_path / "recipe.json").write_text(json.dumps({"train_data": '{"task": "ocr"}'}), encoding="utf-8")
    assert known_tasks(str(tmp_path)) == ["ocr"]
    (tmp_path / "README.md").write_text("---\ntags: [vqa, ofa, caption]\n---\n", encoding="utf-8")
    assert known_tasks(str(tmp_path)) == ["caption", "vqa", "ocr"]
    for damaged in ("---\ntags: [vqa\n---\n", "---\n- vqa\n---\n"):
        (tmp_path / "README.md").write_text(damaged, encoding="utf-8")
        assert known_tasks(str(tmp_path)) == ["ocr"]


def test_the_embedded_checkpoint_answers_every_example_of_its_tasks(tmp_path, capsys):
    assert cli.main(["demo", "--json", "--device", "cpu", "--output", str(tmp_path)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["task"] for record in records} == set(known_tasks(str(DEFAULT_CHECKPOINT)))
    for record in records:
        if find_task(record["task"]).answer not in ("box", "boxes"):
            assert record.get("answer", record.get("label")) and 0 <= record["score"] <= 1
            continue
        width, height = Image.open(record["image"]).size
        for x0, y0, x1, y1 in record["boxes"]:
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert (tmp_path / "demo.png").is_file()
