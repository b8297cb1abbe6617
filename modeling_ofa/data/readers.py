"""`load_examples`: data in any of the formats of one table, as a data set of Examples."""

import glob
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from ..tasks_ofa import get_task
from .example import EXAMPLE_FEATURES, Row, complete
from .official import TABLES, find_files, read_tsv, tsv_shards
from .public import (
    PICTURES,
    read_coco_caption,
    read_coco_detection,
    read_gigaword,
    read_glue,
    read_imagenet,
    read_refcoco,
    read_snli_ve,
    read_vqa_v2,
)
from .tables import hub_shards, read_folder, read_hub


logger = logging.getLogger(__name__)

OnBadRow = Literal["raise", "skip"]
AnyPath = str | os.PathLike

_ALL_BAD = 100
_PATHS = ("images", "annotations", "answer_list", "class_names", "instances", "targets")


@dataclass(frozen=True)
class Format:
    """
    One row of the table of formats.

    Args:
        read (`Callable[..., Iterator[Row]]`): Reads a shard; what it takes besides are the options of the format.
        tasks (`tuple[str, ...]`): The tasks that the data is for, the first by default; empty for any.
        needs_task (`bool`): Whether the task has to be said.
        shards (`Callable[..., list[Any]]`, *optional*):
            Gives the shards, where the source can be streamed in pieces. Otherwise there is one, the path, and a
            stream comes from Arrow files in the cache, which hold the annotations and the paths of the pictures.
    """

    read: Callable[..., Iterator[Row]]
    tasks: tuple[str, ...] = ()
    needs_task: bool = False
    shards: Callable[..., list[Any]] | None = None


FORMATS: dict[str, Format] = {
    "tsv": Format(read_tsv, tuple(TABLES), needs_task=True, shards=tsv_shards),
    "folder": Format(read_folder),
    "hub": Format(read_hub, shards=hub_shards),
    "coco_caption": Format(read_coco_caption, ("caption",)),
    "coco_detection": Format(read_coco_detection, ("object_detection",)),
    "vqa_v2": Format(read_vqa_v2, ("vqa",)),
    "refcoco": Format(read_refcoco, ("visual_grounding", "grounded_caption")),
    "snli_ve": Format(read_snli_ve, ("visual_entailment",)),
    "imagenet": Format(read_imagenet, ("image_classification",)),
    "glue": Format(read_glue, ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"), needs_task=True),
    "gigaword": Format(read_gigaword, ("summarization",)),
}


class Checker:
    """
    Makes Examples of rows, and counts and reports those that are bad.

    Args:
        on_bad_row (`str`): `"raise"` or `"skip"`.
        labelled (`bool`): Whether rows without an answer are bad.
    """

    def __init__(self, on_bad_row: OnBadRow = "raise", labelled: bool = False):
        if on_bad_row not in ("raise", "skip"):
            raise ValueError(f"on_bad_row={on_bad_row!r} must be 'raise' or 'skip'.")
        self.on_bad_row, self.labelled = on_bad_row, labelled
        self.rows = self.bad = 0

    def __call__(self, row: Row) -> dict[str, Any] | None:
        """
        Gives the Example of a row, or `None` if it is bad and skipped.

        Raises:
            `ValueError`: if it is bad and not skipped, or if the first 100 rows all were.
        """
        self.rows += 1
        try:
            return complete(row.make(), self.labelled)
        except (ValueError, OSError) as error:
            message = str(error)
        except (LookupError, TypeError, AttributeError) as error:  # something is missing, or of another type
            message = f"not a row of this format ({type(error).__name__}: {error})"
        if self.on_bad_row == "raise":
            raise ValueError(f"{row.where}: {message}. (on_bad_row='skip' leaves such rows out.)")
        self.bad += 1
        logger.warning("%s: %s; the row is skipped", row.where, message)
        if self.bad == self.rows == _ALL_BAD:
            raise ValueError(f"The first {_ALL_BAD} rows are all bad, the last at {row.where}: {message}.")
        return None

    def tell(self) -> None:
        """Says how many rows were bad, if any were."""
        if self.bad:
            logger.warning("%d of %d rows were bad and skipped", self.bad, self.rows)


@dataclass(frozen=True)
class Source:
    """
    Data that was found, and how it will be read.

    Args:
        format (`str`): A key of `FORMATS`.
        shards (`list[Any]`): What the format's reader takes, one at a time.
        options (`dict[str, Any]`): What it takes besides.
        labelled (`bool`): Whether rows without an answer are bad.
        files (`list[tuple[str, int, int]]`): Each file or folder by name, size and time, by which a change shows.
    """

    format: str
    shards: list[Any]
    options: dict[str, Any]
    labelled: bool
    files: list[tuple[str, int, int]]

    def rows(self) -> Iterator[Row]:
        """
        Gives the rows of all shards in order.

        Raises:
            `ValueError`: if a file is not what the format reads.
        """
        for shard in self.shards:
            try:
                yield from FORMATS[self.format].read(shard, **self.options)
            except (LookupError, TypeError, AttributeError, UnicodeError) as error:
                path = shard if isinstance(shard, str) else shard[0]
                raise ValueError(
                    f"{path}, or a file that goes with it, is not what format {self.format!r} reads "
                    f"({type(error).__name__}: {error})."
                ) from error


def find_source(
    format: str,
    path: AnyPath | Sequence[AnyPath],
    *,
    task: str | None = None,
    split: str | None = None,
    num_shards: int | None = None,
    **options: Any,
) -> Source:
    """
    Finds the data that `load_examples` is asked for, and checks the request before anything is read.

    Raises:
        `ValueError`: if the format, the task or an option is not known, or something is missing.
        `FileNotFoundError`: if a file or folder that is named does not exist.
    """
    if format not in FORMATS:
        raise ValueError(f"Unknown format {format!r}. The formats are: parquet, {', '.join(FORMATS)}.")
    row = FORMATS[format]
    if task is None and row.needs_task:
        raise ValueError(f"Format {format!r} needs task=, one of: {', '.join(row.tasks)}.")
    if task is not None and row.tasks and task not in row.tasks:
        raise ValueError(f"Format {format!r} is for {', '.join(row.tasks)}, and not for task {task!r}.")
    if task is None and row.tasks:
        task = row.tasks[0]
    if task is not None and not row.tasks:
        get_task(task)

    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: _absolute(given[name]) for name in _PATHS if name in given}
    parameters = [one for one in inspect.signature(row.read).parameters.values() if one.kind is one.KEYWORD_ONLY]
    names = [one.name for one in parameters]
    given |= {name: value for name, value in (("task", task), ("split", split)) if name in names and value is not None}
    if missing := [one.name for one in parameters if one.default is one.empty and one.name not in given]:
        raise ValueError(f"Format {format!r} needs {missing[0]}=.")
    if format != "hub" and (unknown := sorted(set(given) - set(names))):  # others are for load_dataset
        raise ValueError(f"Format {format!r} has no option {', '.join(unknown)}; it takes {', '.join(names)}.")

    sources = [path] if isinstance(path, str | os.PathLike) else list(path)
    if format != "tsv" and len(sources) != 1:
        raise ValueError(f"Format {format!r} takes one path, not a list.")
    if format == "hub":
        load_options = {name: value for name, value in given.items() if name not in names}
        pieces = hub_shards(os.fspath(sources[0]), num_shards, split, **load_options)
        return Source(format, pieces, given, split == "train", [(pieces[0][-1], 0, 0)])
    paths = [_absolute(one) for one in sources]
    paths = find_files(paths) if format == "tsv" else paths
    for one in [*paths, *(given[name] for name in _PATHS if name in given)]:
        if not os.path.exists(one):
            raise FileNotFoundError(f"No such file or folder: {one}")
    shards = tsv_shards(paths, num_shards) if format == "tsv" else paths
    named = [*paths, *(given[name] for name in _PATHS if name in given and name != "images")]
    files = [file for one in named for file in _stat(one, split, with_folders=format == "imagenet")]
    return Source(format, shards, given, split == "train", files)


def _absolute(path: AnyPath) -> str:
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def _stat(path: str, split: str | None, with_folders: bool) -> Iterator[tuple[str, int, int]]:
    """Gives name, size and time of a file, or of what a folder holds besides pictures."""
    if split and os.path.isdir(inside := os.path.join(path, split)):
        yield from _stat(inside, None, with_folders)
    names = [path]
    if os.path.isdir(path):
        entries = [entry for entry in os.scandir(path) if not entry.name.lower().endswith(PICTURES)]
        names = sorted(entry.path for entry in entries if with_folders or entry.is_file())
    for name in names:
        status = os.stat(name)
        yield name, status.st_size, status.st_mtime_ns


def _generate(
    shards: Sequence[Any],
    format: str,
    options: dict[str, Any],
    labelled: bool,
    on_bad_row: OnBadRow,
    if_empty: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Gives the Examples of some shards. `datasets` runs it, in workers too, and pickles its arguments."""
    check = Checker(on_bad_row, labelled)
    for row in Source(format, list(shards), options, labelled, []).rows():
        if (example := check(row)) is not None:
            yield example
    check.tell()
    if if_empty is not None and check.rows == check.bad:
        raise ValueError(if_empty)


def load_examples(
    format: str,
    path: AnyPath | Sequence[AnyPath],
    *,
    task: str | None = None,
    split: str | None = None,
    images: AnyPath | None = None,
    columns: str | Mapping[str, Any] | None = None,
    streaming: bool = False,
    on_bad_row: OnBadRow = "raise",
    num_shards: int | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """
    Loads data of any format as Examples: rows with the columns of `EXAMPLE_FEATURES`, which the collator and the
    evaluation take. docs/data.md has the table of formats.

    Args:
        format (`str`): A key of `FORMATS`, or `"parquet"` for what `scripts/prepare_data.py` wrote.
        path (`str`, `os.PathLike` or a list of these):
            The file or folder; for `"tsv"` also a pattern or a list of files, for `"parquet"` a list of folders, for
            `"hub"` the name of a data set.
        task (`str`, *optional*): The task, where the format is for several.
        split (`str`, *optional*):
            The split, where the source holds several. Whatever the source, rows of `"train"` must have an answer.
        images (`str` or `os.PathLike`, *optional*): The folder of the pictures.
        columns (`str` or `Mapping[str, Any]`, *optional*):
            What the columns are, for `"tsv"` (see `read_tsv`), `"folder"` and `"hub"` (see `read_folder`).
        streaming (`bool`): Whether to give an `IterableDataset`, which reads large TSV files as it goes.
        on_bad_row (`str`): What to do with a row that cannot be used: `"raise"`, or `"skip"` with a warning.
        num_shards (`int`, *optional*): Into how many pieces workers and nodes can share a stream.
        **options: Those of the format's reader.

    Returns:
        `Dataset` or `IterableDataset`: Pictures stay encoded, as bytes or paths, until a row is taken.

    Raises:
        `ValueError`: if a format, task, option or row is bad; the message says where.
        `FileNotFoundError`: if something that is named does not exist.
    """
    if format == "parquet":
        folders = path if isinstance(path, list | tuple) else [path]
        return concatenate_datasets([_load_parquet(folder, split, streaming) for folder in folders])
    source = find_source(
        format, path, task=task, split=split, num_shards=num_shards, images=images, columns=columns, **options
    )
    Checker(on_bad_row)  # refuses other words now, and not when the first row is taken
    arguments = {
        "format": format,
        "options": source.options,
        "labelled": source.labelled,
        "on_bad_row": on_bad_row,
    }
    if streaming and FORMATS[format].shards is not None:
        return IterableDataset.from_generator(
            _generate, features=EXAMPLE_FEATURES, gen_kwargs={"shards": source.shards, **arguments}
        )
    from .. import __version__

    try:
        data = Dataset.from_generator(
            _generate,
            features=EXAMPLE_FEATURES,
            # a list of shards would be run shard by shard, and bad rows told for each
            gen_kwargs={
                "shards": tuple(source.shards),
                **arguments,
                "if_empty": f"{path} has no row" + (f" of split {split!r}." if split else " that can be used."),
            },
            # by default the cache is found by the arguments alone, however the files have changed
            fingerprint=Hasher.hash([__version__, source.shards, arguments, source.files]),
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    return data.to_iterable_dataset(num_shards=min(num_shards or 64, len(data))) if streaming else data


def _load_parquet(path: Any, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    """Loads what `scripts/prepare_data.py` wrote."""
    if not glob.glob(os.path.join(glob.escape(os.fspath(path)), "data", "*.parquet")):
        raise FileNotFoundError(f"{path} holds no data that scripts/prepare_data.py has finished.")
    splits = load_dataset("parquet", data_dir=os.fspath(path), streaming=streaming)
    name = split or (next(iter(splits)) if len(splits) == 1 else None)
    if name not in splits:
        raise ValueError(f"{path} holds the splits {', '.join(map(str, splits))}; name one with split=.")
    return splits[name]


__all__ = ["EXAMPLE_FEATURES", "FORMATS", "Checker", "Format", "Source", "find_source", "load_examples"]
