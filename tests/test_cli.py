"""The `ofa` command: what it prints, what it writes, and how it refuses."""

import errno
import io
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from tiny import save_checkpoint

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor, cli
from modeling_ofa.cli import run
from modeling_ofa.cli.commands import COMMANDS
from modeling_ofa.drawing import draw_boxes
from modeling_ofa.tasks_ofa import TASKS


BOX = [10.0, 20.0, 50.0, 60.0]
BOXES = {"boxes": [[10.04, 20.0, 50.0, 60.0]], "scores": [0.5]}
# Of the tasks that read pictures and text.
READABLE = [row for row in TASKS.values() if not row.takes_audio]


class StubAnswerer:
    """Answers at once, and remembers what it was asked."""

    boxes = BOXES

    def __init__(self, checkpoint, device=None, dtype="auto", answers=None, with_scores=False):
        self.asked = type(self).asked = []
        type(self).answers = answers

    def answer(self, row, top_k=1):
        picture = row.get("image")
        self.asked.append({**row, "image": picture and picture.size})
        kind = TASKS[row["task"]].answer
        if kind in ("box", "boxes"):
            return {**self.boxes, "labels": ["mug"] * len(self.boxes["boxes"])} if kind == "boxes" else self.boxes
        if kind == "codes":
            return {"codes": [5, 0], "score": 0.25}
        answer = {"label" if kind == "label" else "text": f"{row['task']} answer", "score": 0.75}
        return answer if top_k == 1 else {**answer, "ranking": [("yes", 0.75), ("no", 0.25)][:top_k]}


@pytest.fixture
def stub(monkeypatch):
    """The command with a stub in the model's place."""
    monkeypatch.setattr(run, "Answerer", StubAnswerer)
    return StubAnswerer


@pytest.fixture
def stdin(monkeypatch):
    """Puts a text on stdin."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def picture(tmp_path):
    """A grey picture file, 100 pixels wide and 80 high."""
    path = tmp_path / "grey.png"
    Image.new("RGB", (100, 80), (127, 127, 127)).save(path)
    return path


def refused(capsys, *words) -> str:
    """Runs the command, checks that it refuses in one line and prints nothing, and gives the line."""
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ofa: error: ") and err.count("\n") == 1
    return err


def words_for(row, picture) -> list[str]:
    """What `ofa run` needs for a task, but for its name."""
    words = [str(picture)] if row.takes_image else []
    if row.takes_text:
        words.append("10,10,50,60" if row.takes_region else "a mug")
    if row.needs_pair:
        words.append("a bell")
    return words + (["--answers", "cat,dog"] if row.answer == "label" and not row.answers else [])


def test_help_of_every_command_shows_an_example_and_the_shared_options(capsys):
    for name in [*(command.name for command in COMMANDS), "run"]:
        with pytest.raises(SystemExit) as exit_info:
            cli.main([name, "--help"])
        assert exit_info.value.code == 0
        out = capsys.readouterr().out
        assert f"ofa {name} " in out.split("example")[1]
        for option in ("--model", "--device", "--dtype", "--json", "--scores"):
            assert option in out


def test_the_example_of_every_command_is_one_that_it_takes(stub, picture, stdin, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("holiday.jpg", "sign.jpg", "*.jpg"):
        shutil.copy(picture, name)
    for command in COMMANDS:
        stdin("a long article\n")
        example = command.example.removesuffix(" < article.txt").split('"')
        words = [word for i, part in enumerate(example) for word in ([part] if i % 2 else part.split())]
        assert cli.main([command.name, *words]) == 0, capsys.readouterr().err
        assert stub.asked[0]["task"] == command.task
        assert capsys.readouterr().out


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert command.summary.split()[0] in out
    assert "ofa demo" in out


def test_the_command_needs_nothing_but_the_base_install():
    hidden = ("accelerate", "datasets", "evaluate", "gradio", "opencc", "peft")
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    code = f"{hide}; from modeling_ofa import cli; sys.exit(cli.main(['tasks']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_without_gradio_says_what_to_install(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "modeling_ofa.app", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'modeling-ofa[app]'" in refused(capsys, "app")
    assert "did you mean vqa" in refused(capsys, "app", "--tasks", "vqaa")


def test_caption_of_one_picture_prints_the_caption_alone(stub, picture, capsys):
    assert cli.main(["caption", str(picture)]) == 0
    assert capsys.readouterr().out == "caption answer\n"
    assert stub.asked == [{"task": "caption", "image": (100, 80)}]


def test_caption_of_several_pictures_names_each(stub, picture, tmp_path, capsys):
    other = tmp_path / "other.png"
    shutil.copy(picture, other)
    assert cli.main(["caption", str(picture), "--json", str(other)]) == 0
    assert [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()] == [str(picture), str(other)]
    assert cli.main(["caption", str(picture), str(other)]) == 0
    assert capsys.readouterr().out == f"{picture}: caption answer\n{other}: caption answer\n"


def test_vqa_asks_the_question_of_the_picture(stub, picture, capsys):
    assert cli.main(["vqa", str(picture), "what is it?", "--objects", "cup, plate", "--answers", "a,b c, a,"]) == 0
    assert capsys.readouterr().out == "vqa answer\n"
    asked = {"task": "vqa", "image": (100, 80), "text": "what is it?", "objects": ["cup", "plate"]}
    assert stub.asked == [asked] and stub.answers == ["a", "b c"]


def test_entail_puts_hypothesis_and_premise_in_their_places(stub, picture):
    assert cli.main(["entail", str(picture), "a mug", "--premise", "a red mug"]) == 0
    assert (stub.asked[0]["text"], stub.asked[0]["text_pair"]) == ("a mug", "a red mug")


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_run_asks_any_task_of_what_its_row_takes(stub, row, picture, capsys):
    assert cli.main(["run", row.name, *words_for(row, picture), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    [asked] = stub.asked
    assert (asked["image"] == (100, 80)) == row.takes_image == ("image" in record)
    assert ("text" in asked) == row.takes_text and ("text_pair" in asked) == row.needs_pair
    assert {"text": "answer", "label": "label", "box": "boxes", "boxes": "boxes", "codes": "codes"}[
        row.answer
    ] in record
    assert record["task"] == row.name and "score" not in record and "scores" not in record


def test_run_takes_inputs_as_options_or_in_their_order_or_both(stub, picture, stdin):
    image, asked = str(picture), {"task": "visual_entailment", "image": (100, 80), "text": "a", "text_pair": "b"}
    for words in (
        [image, "a", "b"],
        ["--image", image, "a", "b"],
        [image, "--text", "a", "--scores", "b"],
        ["--text-pair", "b", image, "a"],
        ["--text-pair", "b", "--image", image, "--text", "-"],
    ):
        stdin("a\n")
        assert cli.main(["run", "visual_entailment", *words]) == 0
        assert stub.asked == [asked]
    assert cli.main(["run", "ocr", "--image", image, "--image", image, image]) == 0
    assert len(stub.asked) == 3


def test_a_text_comes_from_stdin_whole(stub, stdin):
    stdin("first line\nsecond line\n")
    assert cli.main(["summarize", "-"]) == 0
    assert stub.asked[0]["text"] == "first line\nsecond line"


def test_bytes_on_stdin_that_are_no_text_are_refused(stub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert "what stdin gave is no text in utf-8" in refused(capsys, "summarize", "-")


def test_answers_come_from_a_file_one_a_line(stub, picture, tmp_path):
    (tmp_path / "answers.txt").write_text("a cat\n\nsalt, pepper\n", encoding="utf-8")
    assert cli.main(["classify", str(picture), "--answers", str(tmp_path / "answers.txt")]) == 0
    assert stub.answers == ["a cat", "salt, pepper"]


def test_scores_and_rankings_are_printed_on_demand(stub, picture, capsys):
    image = str(picture)
    for words, lines in (
        (["caption", image], "caption answer\n"),
        (["caption", image, "--scores"], "caption answer  0.7500\n"),
        (["ground", image, "a mug", "--scores"], "10.0 20.0 50.0 60.0  0.5000\n"),
        (["detect", image], "10.0 20.0 50.0 60.0  mug\n"),
        (["detect", image, "--scores"], "10.0 20.0 50.0 60.0  mug  0.5000\n"),
        (["run", "image_infilling", image, "--scores"], "5 0  0.2500\n"),
        (["match", image, "a mug", "--top-k", "1"], "image_text_matching answer  0.7500\n"),
        (["match", image, "a mug", "--top-k", "2"], "yes  0.7500\nno  0.2500\n"),
    ):
        assert cli.main(words) == 0
        assert capsys.readouterr().out == lines
    assert cli.main(["match", image, "a mug", "--top-k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": image,
        "task": "image_text_matching",
        "text": "a mug",
        "label": "image_text_matching answer",
        "score": 0.75,
        "ranking": [["yes", 0.75], ["no", 0.25]],
    }


def test_tasks_lists_every_task_with_what_it_takes_and_answers(capsys):
    assert cli.main(["tasks"]) == 0
    table = capsys.readouterr().out.splitlines()
    for row in TASKS.values():
        [line] = [line for line in table[: len(TASKS) + 1] if line.startswith(f"{row.name} ")]
        assert (" IMAGE" in line) == row.takes_image and (", ".join(row.answers) or " ") in line
    assert cli.main(["tasks", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["task"] for record in records] == list(TASKS)
    assert {record["command"] for record in records} - {None} == {command.name for command in COMMANDS}
    entailment = next(record for record in records if record["task"] == "visual_entailment")
    assert entailment["text"] == "the hypothesis" and entailment["text_pair_required"] is False


def test_json_is_one_object_a_line(stub, picture, capsys):
    assert cli.main(["caption", "--json", str(picture), str(picture)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"image": str(picture), "task": "caption", "answer": "caption answer"}] * 2


def test_ground_prints_the_box_and_draws_it(stub, picture, tmp_path, capsys):
    output = tmp_path / "boxes.png"
    assert cli.main(["ground", str(picture), "a mug", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"10.0 20.0 50.0 60.0\ndrawn in {output}\n"
    drawn = Image.open(output)
    assert drawn.size == (100, 80)
    assert drawn.getpixel((50, 40)) != (127, 127, 127)  # on the right side of the box
    assert drawn.getpixel((30, 40)) == drawn.getpixel((90, 40)) == (127, 127, 127)  # inside and outside
    assert Image.open(picture).getpixel((50, 40)) == (127, 127, 127)


def test_ground_as_json_gives_boxes_and_the_file(stub, picture, tmp_path, capsys):
    output = tmp_path / "boxes.jpg"
    assert cli.main(["ground", str(picture), "a mug", "--json", "--output", str(output)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": str(picture),
        "task": "visual_grounding",
        "text": "a mug",
        "boxes": [BOX],
        "output": str(output),
    }


def test_ground_without_a_box_says_so_and_writes_nothing(stub, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stub, "boxes", {"boxes": [], "scores": []})
    assert cli.main(["ground", str(picture), "a mug", "--output", str(tmp_path / "boxes.png")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "no box for 'a mug'" in err
    assert not (tmp_path / "boxes.png").exists()


def test_boxes_outside_the_picture_and_turned_ones_are_drawn():
    drawn = draw_boxes(Image.new("RGB", (100, 80)), [[50, 60, 10, 20], [-40, -40, 400, 400]], ["a", "b"])
    assert drawn.size == (100, 80)
    assert drawn.getpixel((50, 40)) != (0, 0, 0)


@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_a_file_that_is_no_picture_is_refused(stub, tmp_path, capsys, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    assert f"{path} is not a picture" in refused(capsys, "caption", path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp"])
def test_a_truncated_picture_is_refused(stub, tmp_path, capsys, suffix):
    path = tmp_path / f"cut{suffix}"
    Image.effect_noise((200, 200), 60).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:4000])
    line = refused(capsys, "caption", path)
    assert str(path) in line and ("truncated" in line or "not a picture" in line)


def test_a_decompression_bomb_is_refused(stub, picture, capsys, monkeypatch):
    for limit in (7999, 3000):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert f"more than the {limit:,}" in refused(capsys, "caption", picture)


def test_a_missing_picture_and_a_folder_are_refused(stub, tmp_path, capsys):
    assert f"no such picture: {tmp_path / 'none.png'}" in refused(capsys, "caption", tmp_path / "none.png")
    assert "is a folder" in refused(capsys, "caption", tmp_path)


def test_a_missing_second_picture_is_refused_before_the_first_is_answered(stub, picture, tmp_path, capsys):
    assert "none.png" in refused(capsys, "caption", picture, tmp_path / "none.png")


def test_an_empty_question_is_refused(stub, picture, capsys):
    assert "the text is empty; it is to be the question" in refused(capsys, "vqa", picture, " ")


def test_an_unusable_output_is_refused_before_any_work(stub, picture, tmp_path, capsys):
    words = ("ground", picture, "a mug", "--output")
    stub.asked = None
    assert "does not exist" in refused(capsys, *words, tmp_path / "none" / "boxes.png")
    assert "no picture format ends in '.txt'" in refused(capsys, *words, tmp_path / "boxes.txt")
    assert "is a folder" in refused(capsys, *words, tmp_path)
    assert stub.asked is None


def test_a_full_disk_leaves_the_old_output_and_no_temporary_file(stub, picture, tmp_path, capsys, monkeypatch):
    output = tmp_path / "boxes.png"
    output.write_bytes(b"old")

    def save(self, file, format=None, **kwargs):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    assert f"cannot write {output}: No space left" in refused(capsys, "ground", picture, "a mug", "--output", output)
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.png", "grey.png"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["run", "visual_groundin", "IMAGE", "a"], "did you mean visual_grounding"),
        (["run", "sumarize", "a"], "did you mean summarization"),
        (["run", "qwertz"], "unknown task 'qwertz'; see `ofa tasks`"),
        (["run", "speech_recognition", "speech.wav"], "recorded speech"),
        (["run", "vqa"], "needs a picture: ofa run vqa IMAGE TEXT"),
        (["run", "vqa", "IMAGE"], "needs the question: ofa run vqa IMAGE TEXT"),
        (["run", "mnli", "a"], "needs the hypothesis: ofa run mnli TEXT TEXT_PAIR"),
        (["run", "caption", "IMAGE", "--text", "a"], "takes no --text: ofa run caption IMAGE ..."),
        (["run", "cola", "a", "--image", "IMAGE"], "takes no --image"),
        (["run", "cola", "a", "--text-pair", "b"], "takes no --text-pair"),
        (["run", "cola", "a", "b"], "has no use for 'b'"),
        (["run", "cola", "a", "--objects", "b"], "takes no --objects"),
        (["run", "cola", "a", "--answers", "b,c"], "chooses from yes, no"),
        (["run", "object_detection", "IMAGE", "--answers", "b,c"], "does not answer in words"),
        (["classify", "IMAGE"], "--answers FILE"),
        (["classify", "IMAGE", "--answers", "none.txt"], "there is no such file"),
        (["classify", "IMAGE", "--answers", ","], "holds no answer"),
        (["classify", "IMAGE", "--answers", "IMAGE"], "is no list of answers"),
        (["vqa", "IMAGE", "a", "--top-k", "2"], "--top-k ranks a closed list of answers; give --answers"),
        (["detect", "IMAGE", "--top-k", "2"], "task 'object_detection' has none"),
        (["match", "IMAGE", "a", "--top-k", "0"], "1 is the least"),
        (["run", "caption", "IMAGE", "--output", "boxes.png"], "answers with none"),
        (["detect", "IMAGE", "IMAGE", "--output", "boxes.png"], "one at a time"),
        (["region", "IMAGE", "1,2,3"], "four numbers x0,y0,x1,y1 in pixels"),
        (["region", "IMAGE", "1,2,3,inf"], "four numbers"),
        (["region", "IMAGE", "a b c d"], "four numbers"),
        (["summarize", "-"], "the text that stdin gave is empty; it is to be the article"),
        (["run", "mnli", "-", "-"], "only one may be -"),
        (["run", "caption", "IMAGE", "--quickly"], "unrecognized arguments: --quickly"),
        (["vqa", "IMAGE", "a", "b"], "unrecognized arguments: b"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_the_task_is_refused_before_a_model_is_loaded(stub, picture, stdin, capsys, words, said):
    stub.asked = None
    stdin("")
    assert said in refused(capsys, *(picture if word == "IMAGE" else word for word in words))
    assert stub.asked is None


def test_unknown_words_are_refused_with_where_to_read_more(stub, picture, capsys):
    assert "see ofa --help" in refused(capsys, "paint", picture)
    assert "see ofa caption --help" in refused(capsys, "caption", picture, "--dtype", "float8")
    assert "see ofa vqa --help" in refused(capsys, "vqa", picture)


def test_a_model_that_is_no_ofa_folder_is_refused(picture, tmp_path, capsys):
    checkpoint = tmp_path / "ofa.pt"
    checkpoint.write_bytes(b"")
    assert f"python -m convert fairseq {checkpoint}" in refused(capsys, "caption", picture, "--model", checkpoint)
    assert "no such folder" in refused(capsys, "caption", picture, "--model", tmp_path / "none")
    folder = tmp_path / "model"
    folder.mkdir()
    assert "has no config.json" in refused(capsys, "caption", picture, "--model", folder)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "is an adapter of peft: merge it" in refused(capsys, "caption", picture, "--model", folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert "not a valid JSON" in refused(capsys, "caption", picture, "--model", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert "'bert', not 'ofa'" in refused(capsys, "caption", picture, "--model", folder)


def test_a_folder_with_a_configuration_alone_is_refused(picture, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "ofa"}', encoding="utf-8")
    line = refused(capsys, "caption", picture, "--model", tmp_path, "--device", "cpu")
    assert f"cannot load the checkpoint {tmp_path}" in line


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_cannot_be_used_is_refused(picture, tmp_path, capsys, device):
    (tmp_path / "config.json").write_text('{"model_type": "ofa"}', encoding="utf-8")
    line = refused(capsys, "caption", picture, "--model", tmp_path, "--device", device)
    assert f"--device {device}" in line and "cpu always can" in line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a random model so small that it answers at once, with a vocabulary of single bytes."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_a_checkpoint_answers_as_its_model_and_processor_do(checkpoint, picture, capsys):
    assert cli.main(["vqa", str(picture), "what is it?", "--model", str(checkpoint), "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    processor = OFAProcessor.from_pretrained(checkpoint)
    model = OFAForConditionalGeneration.from_pretrained(checkpoint, dtype="float32").eval()
    inputs = processor(task="vqa", images=Image.open(picture), text="what is it?", return_tensors="pt")
    ids = model.generate(**inputs, **processor.generation_kwargs("vqa"))
    assert [{"text": answer}] == processor.post_process(ids, task="vqa")


def test_the_ranking_of_a_closed_list_is_that_of_its_probabilities(checkpoint, picture, capsys):
    words = ["classify", str(picture), "--answers", "cat,dog,cats", "--model", str(checkpoint), "--device", "cpu"]
    assert cli.main([*words, "--json", "--top-k", "5"]) == 0
    record = json.loads(capsys.readouterr().out)
    processor = OFAProcessor.from_pretrained(checkpoint)
    model = OFAForConditionalGeneration.from_pretrained(checkpoint, dtype="float32").eval()
    inputs = processor(task="image_classification", images=Image.open(picture), return_tensors="pt")
    trie = processor.answer_trie(["cat", "dog", "cats"], "image_classification")
    expected = dict(zip(["cat", "dog", "cats"], model.score_candidates(inputs, trie)[0].exp().tolist(), strict=True))
    assert dict(record["ranking"]) == pytest.approx(expected)
    assert [score for _, score in record["ranking"]] == sorted(expected.values(), reverse=True)
    assert record["label"] == record["ranking"][0][0]
    assert cli.main([*words, "--json", "--scores"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert (best["label"], best["score"]) == (record["label"], pytest.approx(record["score"]))


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_every_task_runs_with_a_checkpoint(checkpoint, row, picture, capsys):
    words = ["run", row.name, *words_for(row, picture), "--model", str(checkpoint), "--device", "cpu", "--json"]
    status = cli.main([*words, "--scores"])
    out, err = capsys.readouterr()
    if row.answer == "codes":
        assert status == 2 and "no <code_i> tokens" in err  # as most checkpoints have none that fine-tuning left
        return
    record = json.loads(out)
    assert status == int(record.get("boxes") == [])
    if row.answer in ("box", "boxes"):
        assert len(record["scores"]) == len(record["boxes"])
    else:
        assert 0 <= record["score"] <= 1
    if row.answers:
        assert record["label"] in row.answers


def test_a_text_is_cut_to_the_words_of_its_recipe(checkpoint, capsys):
    words = ["run", "summarization", "--model", str(checkpoint), "--device", "cpu"]
    assert "positions" in refused(capsys, *words, "a " * 400)  # 400 of the 512 words that are allowed
    assert cli.main([*words, "a " * 60]) == 0


def test_a_region_outside_of_the_picture_is_refused_before_the_model_is_loaded(checkpoint, picture, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "without_weights")
    (folder / "model.safetensors").unlink()
    line = refused(capsys, "region", picture, "200,10,300,50", "--model", folder, "--device", "cpu")
    assert "not a region of its picture of 100 × 80 pixels" in line


def test_a_question_longer_than_the_positions_is_refused(checkpoint, picture, capsys):
    line = refused(capsys, "vqa", picture, "why" * 100, "--model", checkpoint, "--device", "cpu")
    assert "positions" in line and "300" in line


def test_a_checkpoint_with_damaged_weights_is_refused(checkpoint, picture, tmp_path, capsys):
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load the checkpoint {damaged}" in refused(capsys, "caption", picture, "--model", damaged)
