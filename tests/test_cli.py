"""The `ofa` command: what it prints, what it writes, and how it refuses."""

import errno
import json
import shutil

import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor, OFATokenizer, cli
from modeling_ofa.cli import demo, pictures, predictor


BOX = [10.0, 20.0, 50.0, 60.0]


class StubPredictor:
    """Answers at once, and remembers what it was asked."""

    boxes = [BOX]

    def __init__(self, model, device=None, dtype="auto"):
        self.asked = type(self).asked = []

    def answer(self, task, picture, text=None):
        self.asked.append((task, picture.size, text))
        return {"boxes": self.boxes} if task == "visual_grounding" else {"text": f"{task} answer"}


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The command with a stub in the model's place."""
    monkeypatch.setattr(predictor, "Predictor", StubPredictor)
    monkeypatch.setattr(cli, "default_checkpoint", lambda: str(tmp_path))
    return StubPredictor


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


def test_help_of_every_command_shows_an_example_and_the_shared_options(capsys):
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as exit_info:
            cli.main([command.name, "--help"])
        assert exit_info.value.code == 0
        out = capsys.readouterr().out
        assert f"ofa {command.name} holiday.jpg" in out
        for option in ("--model", "--device", "--dtype", "--json"):
            assert option in out


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command.summary.split()[0] in out
    assert "ofa demo" in out


def test_caption_of_one_picture_prints_the_caption_alone(stub, picture, capsys):
    assert cli.main(["caption", str(picture)]) == 0
    assert capsys.readouterr().out == "caption answer\n"
    assert stub.asked == [("caption", (100, 80), None)]


def test_caption_of_several_pictures_names_each(stub, picture, tmp_path, capsys):
    other = tmp_path / "other.png"
    shutil.copy(picture, other)
    assert cli.main(["caption", str(picture), str(other)]) == 0
    assert capsys.readouterr().out == f"{picture}: caption answer\n{other}: caption answer\n"


def test_vqa_asks_the_question_of_the_picture(stub, picture, capsys):
    assert cli.main(["vqa", str(picture), "what is it?"]) == 0
    assert capsys.readouterr().out == "vqa answer\n"
    assert stub.asked == [("vqa", (100, 80), "what is it?")]


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
    monkeypatch.setattr(stub, "boxes", [])
    assert cli.main(["ground", str(picture), "a mug", "--output", str(tmp_path / "boxes.png")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "no box for 'a mug'" in err
    assert not (tmp_path / "boxes.png").exists()


def test_boxes_outside_the_picture_and_turned_ones_are_drawn():
    drawn = pictures.draw_boxes(Image.new("RGB", (100, 80)), [[50, 60, 10, 20], [-40, -40, 400, 400]], ["a", "b"])
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
    assert "the question is empty" in refused(capsys, "vqa", picture, " ")


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


@pytest.fixture
def scenes(monkeypatch, tmp_path, picture):
    """Two scenes in the place of those that come with the package."""
    rows = [{"file": picture.name, "questions": ["how many?", "what colour?"], "phrase": "a mug"}] * 2
    (tmp_path / "index.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(demo, "SCENES", tmp_path)
    return rows


def test_demo_prints_every_answer_and_writes_one_sheet(stub, scenes, tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.count("caption answer") == 2 and out.count("how many? -> vqa answer") == 2
    assert out.count("a mug -> 10.0 20.0 50.0 60.0") == 2
    sheet = tmp_path / "out" / "demo.png"
    assert out.rstrip().endswith(str(sheet))
    assert Image.open(sheet).width == demo.MARGIN + 2 * (demo.CELL + demo.MARGIN)


def test_demo_as_json_is_one_object_a_scene(stub, scenes, tmp_path, capsys):
    assert cli.main(["demo", "--json", "--output", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["visual_grounding"] for row in rows] == [{"text": "a mug", "boxes": [BOX]}] * 2
    assert rows[0]["vqa"][1] == {"text": "what colour?", "answer": "vqa answer"}


def test_demo_refuses_an_output_that_is_a_file(stub, scenes, picture, capsys):
    assert "no folder can be made" in refused(capsys, "demo", "--output", picture)


def test_demo_without_its_scenes_says_so(stub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "SCENES", tmp_path / "none")
    assert "demo scenes are missing" in refused(capsys, "demo", "--output", tmp_path / "out")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a random model so small that it answers at once, with a vocabulary of single bytes."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    tokenizer = OFATokenizer(
        {word: index for index, word in enumerate(words)}, [], num_codes=0, num_bins=10, model_max_length=64
    )
    processor = OFAProcessor(OFAImageProcessor(size={"height": 32, "width": 32}), tokenizer, max_image_size=32)
    processor.save_pretrained(folder)
    config = OFAConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        resnet_depths=[1, 1, 1],
        resnet_embedding_size=8,
        image_bucket_size=4,
    )
    torch.manual_seed(0)
    OFAForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_answers_as_its_model_and_processor_do(checkpoint, picture, capsys):
    assert cli.main(["vqa", str(picture), "what is it?", "--model", str(checkpoint), "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    processor = OFAProcessor.from_pretrained(checkpoint)
    model = OFAForConditionalGeneration.from_pretrained(checkpoint, dtype="float32").eval()
    inputs = processor(task="vqa", images=Image.open(picture), text="what is it?", return_tensors="pt")
    ids = model.generate(**inputs, **processor.generation_kwargs("vqa"))
    assert [{"text": answer}] == processor.post_process(ids, task="vqa")


def test_a_question_longer_than_the_positions_is_refused(checkpoint, picture, capsys):
    line = refused(capsys, "vqa", picture, "why " * 40, "--model", checkpoint, "--device", "cpu")
    assert "positions" in line and "64" in line


def test_a_checkpoint_with_damaged_weights_is_refused(checkpoint, picture, tmp_path, capsys):
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load the checkpoint {damaged}" in refused(capsys, "caption", picture, "--model", damaged)


def test_the_embedded_checkpoint_does_the_main_job(tmp_path, capsys):
    """Captions, answers and boxes for the package's own scenes are there and within the pictures."""
    assert cli.main(["demo", "--json", "--device", "cpu", "--output", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(demo.read_scenes(demo.SCENES)) >= 2
    for row in rows:
        width, height = Image.open(row["image"]).size
        assert row["caption"] and all(asked["answer"] for asked in row["vqa"])
        for x0, y0, x1, y1 in row["visual_grounding"]["boxes"]:
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert any(row["visual_grounding"]["boxes"] for row in rows)
    assert (tmp_path / "demo.png").is_file()
