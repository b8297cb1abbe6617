"""Tests of scripts/prepare_data.py: shards that load everywhere, and runs that survive being killed."""

import base64
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset

from modeling_ofa.data import EXAMPLE_FEATURES, load_examples


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "prepare_data.py"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(number: int) -> bytes:
    pixels, file = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8), io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_captions(path: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    with path.open("w") as file:
        for i in range(count):
            image = "%%%" if i in bad else base64.urlsafe_b64encode(picture(i % 50)).decode()
            file.write(f"{i}\t{i}\tcaption {i}\t\t{image}\n")
    return path


@pytest.fixture
def prepare(capsys):
    """Runs the script in this process; gives its exit status, and what it wrote to stdout and stderr."""
    specification = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(*arguments) -> SimpleNamespace:
        status = script.main([str(argument) for argument in arguments])
        return SimpleNamespace(returncode=status, **capsys.readouterr()._asdict())

    return run


def manifest(out: Path, split: str = "train") -> dict:
    return json.loads((out / "manifest.json").read_text())[split]


def test_shards_load_everywhere_and_hold_the_pictures(tmp_path, prepare):
    source = write_captions(tmp_path / "a.tsv", 450)
    out = tmp_path / "out"
    run = prepare("tsv", source, out, "--task", "caption", "--shard-size", "1MB")
    assert run.returncode == 0, run.err
    assert run.out.splitlines()[-1] == f"{out}: 450 rows in 3 shards, 0 bad rows"
    assert "100%" in run.err  # the progress bar knows the size of the file
    expected = load_examples("tsv", source, task="caption", split="train")
    source.unlink()
    for data in (
        load_examples("parquet", out),
        load_examples("parquet", out, split="train", streaming=True),
        load_dataset("parquet", data_dir=str(out), split="train"),
        load_dataset(str(out), split="train", streaming=True),
    ):
        assert data.features == EXAMPLE_FEATURES
        for one, other in zip(expected, data, strict=True):
            assert np.array_equal(one.pop("image"), other.pop("image")) and one == other
    assert load_examples("parquet", out, streaming=True).num_shards == 3


def test_files_of_pictures_are_put_into_the_shards(tmp_path, prepare):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "photos" / "qa.csv").write_text(
        "file,question,answer,x,y,w,h\n" + "".join(f"{i}.png,what?,yes,1,2,5,5\n" for i in range(3))
    )
    columns = "image=file,text=question,target=answer,boxes=x+y+w+h"
    options = ["--task", "vqa", "--columns", columns, "--box-format", "xywh"]
    run = prepare("folder", tmp_path / "photos" / "qa.csv", tmp_path / "out", *options)
    assert run.returncode == 0, run.err
    (tmp_path / "photos" / "1.png").unlink()
    rows = load_examples("parquet", tmp_path / "out").cast_column("image", datasets.Image(decode=False))
    assert [row["image"] for row in rows] == [{"bytes": picture(i), "path": f"{i}.png"} for i in range(3)]
    assert rows[0]["boxes"] == [[1, 2, 6, 7]]


def test_several_splits_share_a_folder(tmp_path, prepare):
    for split, count in (("train", 5), ("validation", 3), ("testA", 2)):
        source = write_captions(tmp_path / f"{split}.tsv", count)
        assert prepare("tsv", source, tmp_path / "out", "--task", "caption", "--split", split).returncode == 0
    loaded = load_dataset(str(tmp_path / "out"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 3, "testA": 2}
    assert len(load_examples("parquet", tmp_path / "out", split="testA")) == 2
    with pytest.raises(ValueError, match="name one with split="):
        load_examples("parquet", tmp_path / "out")


def test_a_killed_run_goes_on_without_losing_or_doubling_rows(tmp_path, prepare, caplog):
    count = 6000
    source, out = write_captions(tmp_path / "a.tsv", count, bad=(7, 3000)), tmp_path / "out"
    arguments = ["tsv", source, out, "--task", "caption", "--shard-size", "2MB", "--on-bad-row", "skip"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list((out / "data").glob(".train-*.parquet"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = manifest(out)
    assert not kept["complete"] and len(kept["shards"]) >= 3
    with pytest.raises(FileNotFoundError, match="has finished"):  # half of the data does not load
        load_examples("parquet", out)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "data").glob(".train-*.parquet")}
    run = prepare(*arguments)
    assert run.returncode == 0, run.err
    done = manifest(out)
    assert done["complete"] and (done["rows"], done["bad_rows"], sum(done["shards"])) == (count, 2, count - 2)
    assert caplog.messages[-1] == "2 of 6000 rows were bad and skipped"
    ids = [row["id"] for row in load_examples("parquet", out).remove_columns("image")]
    assert ids == [str(i) for i in range(count) if i not in (7, 3000)]
    for i, size in enumerate(kept["shards"]):  # finished shards were kept, and not made again
        shard = out / "data" / f"train-{i:05d}-of-{len(done['shards']):05d}.parquet"
        assert shard.stat().st_mtime_ns == times[f".train-{i:05d}.parquet"] and done["shards"][i] == size
    assert not list((out / "data").glob(".*"))  # nothing is left over
    assert prepare(*arguments).out == run.out  # and once more does nothing


def test_a_run_that_was_stopped_while_naming_the_shards_is_finished(tmp_path, prepare):
    source, out = write_captions(tmp_path / "a.tsv", 450), tmp_path / "out"
    arguments = ["tsv", source, out, "--task", "caption", "--shard-size", "1MB"]
    assert prepare(*arguments).returncode == 0
    (out / "data" / "train-00002-of-00003.parquet").rename(out / "data" / ".train-00002.parquet")
    state = manifest(out)
    (out / "manifest.json").write_text(json.dumps({"train": {**state, "complete": False}}))
    assert prepare(*arguments).returncode == 0 and manifest(out) == state
    assert load_examples("parquet", out)["id"][:] == [str(i) for i in range(450)]


def test_a_shard_that_the_manifest_does_not_know_yet_is_made_again(tmp_path, prepare):
    source, out = write_captions(tmp_path / "a.tsv", 450), tmp_path / "out"
    arguments = ["tsv", source, out, "--task", "caption", "--shard-size", "1MB"]
    assert prepare(*arguments).returncode == 0
    state = manifest(out)
    for i in range(3):
        (out / "data" / f"train-{i:05d}-of-00003.parquet").rename(out / "data" / f".train-{i:05d}.parquet")
    behind = {**state, "rows": 200, "shards": state["shards"][:1], "complete": False}
    (out / "manifest.json").write_text(json.dumps({"train": behind}))
    assert prepare(*arguments).returncode == 0 and manifest(out) == state
    assert load_examples("parquet", out)["id"][:] == [str(i) for i in range(450)]


def test_another_request_for_the_same_folder_is_refused(tmp_path, prepare):
    source, out = write_captions(tmp_path / "a.tsv", 5), tmp_path / "out"
    assert prepare("tsv", source, out, "--task", "caption").returncode == 0
    run = prepare("tsv", source, out, "--task", "caption", "--columns", "1,4,2")
    assert run.returncode == 1 and "holds a split 'train' made of options" in run.err
    write_captions(source, 6)
    run = prepare("tsv", source, out, "--task", "caption")
    assert run.returncode == 1 and "made of files that have changed" in run.err
    assert len(load_examples("parquet", out)) == 5


def test_a_run_that_ends_at_a_bad_row_goes_on_when_it_may_skip_it(tmp_path, prepare):
    source, out = write_captions(tmp_path / "a.tsv", 450, bad=(420,)), tmp_path / "out"
    arguments = ["tsv", source, out, "--task", "caption", "--shard-size", "1MB"]
    run = prepare(*arguments)
    assert run.returncode == 1 and "a.tsv:421: the image is not base64" in run.err
    assert "Traceback" not in run.err and manifest(out)["shards"] == [200, 200]
    run = prepare(*arguments, "--on-bad-row", "skip")
    assert run.returncode == 0 and manifest(out)["shards"] == [200, 200, 49] and manifest(out)["bad_rows"] == 1


def test_mistakes_are_told_in_a_line(tmp_path, prepare):
    for arguments, message in (
        (("tsv", tmp_path / "none.tsv", tmp_path / "out", "--task", "vqa"), "error: No such file"),
        (("tsv", SCRIPT, tmp_path / "out"), "error: Format 'tsv' needs task="),
        (("coco_caption", SCRIPT, tmp_path / "out", "--images", tmp_path), "is not JSON"),
    ):
        run = prepare(*arguments)
        assert run.returncode == 1 and message in run.err and "Traceback" not in run.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--shard-size", "0", "a shard of 0 holds nothing"),
        ("--shard-size", "5xB", "'5xB' is no number of bytes, such as 500MB"),
        ("--shard-size", "-5MB", "a shard of -5MB holds nothing"),
        ("--split", "../test", "'../test' is no name of a split"),
        ("--split", "dev-matched", "'dev-matched' is no name of a split"),  # `datasets` would not find its shards
    ],
)
def test_sizes_and_splits_that_cannot_be_written_are_refused(tmp_path, prepare, capsys, option, value, message):
    source = write_captions(tmp_path / "a.tsv", 3)
    with pytest.raises(SystemExit) as stopped:
        prepare("tsv", source, tmp_path / "out", "--task", "caption", f"{option}={value}")
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_are_read_with_and_without_a_unit(tmp_path, prepare):
    source = write_captions(tmp_path / "a.tsv", 250)
    for number, size in enumerate(("1000000", "1MB", "0.001 GB", "1000kb", "1000000B")):
        out = tmp_path / str(number)
        assert prepare("tsv", source, out, "--task", "caption", "--shard-size", size).returncode == 0
        assert manifest(out)["shards"] == [200, 50]


def test_data_without_a_usable_row_leaves_nothing_behind_that_a_later_run_minds(tmp_path, prepare):
    source, out = write_captions(tmp_path / "a.tsv", 3, bad=(0, 1, 2)), tmp_path / "out"
    arguments = ["tsv", source, out, "--task", "caption", "--on-bad-row", "skip"]
    run = prepare(*arguments)
    assert run.returncode == 1 and "a.tsv has no row of split 'train' that can be used" in run.err
    write_captions(source, 3)
    assert prepare(*arguments).returncode == 0 and manifest(out)["shards"] == [3]


def test_an_interrupted_run_says_how_it_goes_on(tmp_path, prepare, monkeypatch):
    source, out = write_captions(tmp_path / "a.tsv", 450), tmp_path / "out"
    arguments = ["tsv", source, out, "--task", "caption", "--shard-size", "1MB"]

    def interrupt(*_, **__):  # when the second shard is to be noted down beside the first
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", interrupt)
        run = prepare(*arguments)
    assert run.returncode == 130 and "interrupted; the same command goes on" in run.err
    assert "Traceback" not in run.err and manifest(out)["shards"] == [200]
    assert prepare(*arguments).returncode == 0 and manifest(out)["shards"] == [200, 200, 50]
