"""
Turns data of any format into Parquet shards, once; training then streams them from disk or from the Hub.

    python scripts/prepare_data.py tsv vqa_train.tsv out --task vqa --split train
    python scripts/prepare_data.py vqa_v2 questions.json out --annotations annotations.json --images coco --split train
    python scripts/prepare_data.py folder photos.csv out --task vqa --columns image=file,text=question,target=answer

The shards hold the pictures as they were encoded, and load with `load_examples("parquet", "out")` or
`datasets.load_dataset("out")`. A run that was stopped goes on where it was when it is started again; until it has
finished there is nothing to load. docs/data.md has the table of formats.
"""

import argparse
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from modeling_ofa.data.lines import write_whole
from modeling_ofa.data.readers import EXAMPLE_FEATURES, FORMATS, Checker, Source, find_source


BATCH = 100  # rows that are in memory at a time, and in one row group
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1, "": 1}
# An option of the command line for each that some reader has.
OPTIONS = {
    "images": "folder of the pictures",
    "columns": 'which columns to read: 0,4,2,3 for TSV; image=file,text=question,target=answer for "folder" and "hub"',
    "annotations": "the annotations of VQAv2",
    "answer-list": "the answers of VQAv2 to keep for training",
    "instances": "instances.json of RefCOCO, if it is not beside the references",
    "class-names": "what the folders of ImageNet mean",
    "targets": "the headlines of Gigaword, if they are not beside the articles",
    "box-format": "xyxy or xywh",
    "name": "configuration of a data set on the Hub",
    "revision": "revision of a data set on the Hub",
}
FLAGS = {
    "per-image": "one row for each picture of COCO, with all its captions",
    "human-answers": "the answers of VQAv2 as people gave them",
}


def parse_size(text: str) -> int:
    """Reads a number of bytes such as `500MB`."""
    unit = next(unit for unit in UNITS if text.upper().endswith(unit))
    try:
        size = int(float(text[: len(text) - len(unit)]) * UNITS[unit])
    except (OverflowError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 500MB") from error
    if size < 1:
        raise argparse.ArgumentTypeError(f"a shard of {text} holds nothing")
    return size


def parse_split(text: str) -> str:
    """Reads the name of a split, which becomes a part of files' names, by which `datasets` finds it."""
    if re.fullmatch(r"\w+(\.\w+)*", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a split: letters, digits and underscores make one")
    return text


def parse_columns(text: str) -> str | dict[str, Any]:
    """Reads `0,4,2` as it is, and `image=file,boxes=x+y+w+h` as a mapping."""
    if "=" not in text:
        return text
    pairs = [pair.partition("=")[::2] for pair in text.split(",")]
    return {
        name: value.split("+") if "+" in value else int(value) if value.isdigit() else value for name, value in pairs
    }


class Preparation:
    """
    Parquet shards of one split that are being written, and the manifest that says how far they are.

    Args:
        folder (`Path`): Where `manifest.json` and the folder `data` lie.
        split (`str`): The split.
        request (`Mapping[str, Any]`): What was asked for; another one is refused while the folder holds this split.

    Raises:
        `ValueError`: if the folder holds this split, made of something else.
    """

    def __init__(self, folder: Path, split: str, request: Mapping[str, Any]):
        self.folder, self.split = folder, split
        self.manifest = folder / "manifest.json"
        request = json.loads(json.dumps(request))
        self.state = self._read().get(split) or {**request, "rows": 0, "bad_rows": 0, "shards": [], "complete": False}
        if differing := [key for key in request if self.state[key] != request[key]]:
            before, now = self.state[differing[0]], request[differing[0]]
            what = (
                f"{differing[0]} {before!r}, and not {now!r}" if differing[0] != "files" else "files that have changed"
            )
            raise ValueError(
                f"{folder} holds a split {split!r} made of {what}. Choose another folder, or delete this one."
            )

    def _read(self) -> dict[str, Any]:
        return json.loads(self.manifest.read_text(encoding="utf-8")) if self.manifest.exists() else {}

    def _save(self) -> None:
        write_whole(self.manifest, json.dumps({**self._read(), self.split: self.state}, indent=2, ensure_ascii=False))

    def _shard(self, number: int) -> Path:
        # `load_dataset` does not look at hidden files, so that nobody trains on half of the data.
        return self.folder / "data" / f".{self.split}-{number:05d}.parquet"

    def write(self, source: Source, checker: Checker, shard_size: int) -> None:
        """
        Writes the shards that are missing.

        Args:
            source ([`Source`]): The data.
            checker ([`Checker`]): Makes Examples, and counts.
            shard_size (`int`): Bytes from which on a shard is full.
        """
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        checker.rows, checker.bad = self.state["rows"], self.state["bad_rows"]
        is_tsv = source.format == "tsv"  # the one whose length is known before it has been read
        total = sum(stop - start for _, start, stop in source.shards) if is_tsv else None
        rows = source.rows()
        with tqdm(total=total, unit="B" if is_tsv else " rows", unit_scale=True, desc=self.split) as progress:
            for row in itertools.islice(rows, self.state["rows"]):
                progress.update(row.size if is_tsv else 1)
            more = True
            while more:
                part = self._shard(len(self.state["shards"])).with_suffix(".part")
                written = size = 0
                with pq.ParquetWriter(part, EXAMPLE_FEATURES.arrow_schema) as writer:
                    while size < shard_size and (batch := list(itertools.islice(rows, BATCH))):
                        examples = [embed(example) for row in batch if (example := checker(row)) is not None]
                        table = pa.Table.from_pylist(examples, schema=EXAMPLE_FEATURES.arrow_schema)
                        writer.write_table(table)
                        written, size = written + len(examples), size + table.nbytes
                        progress.update(sum(row.size for row in batch) if is_tsv else len(batch))
                more = size >= shard_size
                self._keep(part, written, checker)
        if not self.state["shards"]:
            raise ValueError(f"{', '.join(self.state['source'])} has no row of split {self.split!r} that can be used.")
        self._finish()

    def _keep(self, part: Path, written: int, checker: Checker) -> None:
        """Makes a shard that is whole one of those that are kept."""
        if not written:
            part.unlink()
        else:
            os.replace(part, self._shard(len(self.state["shards"])))
            self.state["shards"].append(written)
        self.state["rows"], self.state["bad_rows"] = checker.rows, checker.bad
        if self.state["shards"]:
            self._save()

    def _finish(self) -> None:
        """Gives the shards the names by which `load_dataset` finds them."""
        count = len(self.state["shards"])
        for number in range(count):
            shard = self._shard(number)
            if shard.exists():  # or it was renamed before the run was stopped
                os.replace(shard, shard.with_name(f"{self.split}-{number:05d}-of-{count:05d}.parquet"))
        self.state["complete"] = True
        self._save()


def embed(example: dict[str, Any]) -> dict[str, Any]:
    """Puts the picture itself in the place of its path."""
    image = example["image"]
    if image is not None and image["bytes"] is None:
        example["image"] = {"bytes": Path(image["path"]).read_bytes(), "path": os.path.basename(image["path"])}
    return example


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="the file or folder; TSV files may be several")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--task", help="the task, where the format is for several")
    parser.add_argument(
        "--split", type=parse_split, default="train", help="the split to read, and to write (default: train)"
    )
    parser.add_argument("--shard-size", type=parse_size, default="500MB", help="bytes of a shard (default: 500MB)")
    parser.add_argument("--on-bad-row", choices=["raise", "skip"], default="raise", help="stop at bad rows, or warn")
    for name, text in OPTIONS.items():
        parser.add_argument(f"--{name}", help=text, type=parse_columns if name == "columns" else str)
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", default=None, help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    options = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in (*OPTIONS, *FLAGS)}
    paths = [os.path.abspath(path) if os.path.exists(path) else path for path in args.source]
    try:
        source = find_source(args.format, paths, task=args.task, split=args.split, **options)
        request = {"format": args.format, "source": paths, "options": source.options, "files": source.files}
        preparation = Preparation(args.out, args.split, request)
        if not preparation.state["complete"]:
            checker = Checker(args.on_bad_row, source.labelled)
            preparation.write(source, checker, args.shard_size)
            checker.tell()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the shard that was being written", file=sys.stderr)
        return 130
    state = preparation.state
    print(f"{args.out}: {sum(state['shards'])} rows in {len(state['shards'])} shards, {state['bad_rows']} bad rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
