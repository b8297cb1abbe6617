"""What is asked, row by row: pictures, texts and tasks in whatever form they come, brought into line and checked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .tasks_ofa import Task, get_task


class Asked(NamedTuple):
    """
    One row of a batch, as the user gave it.

    Args:
        task ([`Task`], *optional*): Its task; without one `text` is read as it is.
        picture (*optional*): Whatever [`OFAImageProcessor`] takes.
        text (`str` or `list[float]`, *optional*): The text, or the region for a task that takes one.
        text_pair (`str`, *optional*): The second text.
        objects (`str` or `Sequence[str]`, *optional*): Names of objects in the picture; in a string `&&` parts them.
    """

    task: Task | None
    picture: Any = None
    text: Any = None
    text_pair: str | None = None
    objects: str | Sequence[str] | None = None


def as_list(values: Any) -> Any:
    """
    Gives what has several values (a tuple, an array, a tensor, a series, a column of a data set) as a list, and
    anything else (a text, a mapping, a number) as it is.
    """
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
        return values
    return list(values)


def tasks_of(task: Any) -> list[Task]:
    """
    Looks up a task, or each of several.

    Raises:
        `ValueError`: if one is unknown, or if there is none.
    """
    given = as_list(task)
    tasks = [get_task(one) for one in (given if isinstance(given, list) else [given])]
    if not tasks:
        raise ValueError("The list of tasks is empty: name one task for all rows, or one for each row.")
    return tasks


def rows_of(images: Any, text: Any, task: Any, text_pair: Any, objects: Any) -> list[Asked]:
    """
    Brings what [`OFAProcessor.__call__`] was given into rows. Texts that are blank count as none for a task.

    Raises:
        `ValueError`: if images, texts and tasks do not match in number, or if a row lacks what its task needs, or has
            what it does not take.
    """
    pictures = _pictures(images)
    text, text_pair, objects = as_list(text), as_list(text_pair), as_list(objects)
    tasks: Sequence[Task | None] = [None] if task is None else tasks_of(task)
    if isinstance(as_list(task), list):
        count = len(tasks)
    elif text is not None or text_pair is not None:
        count = _count(text if text is not None else text_pair)
    elif pictures is not None:
        count = len(pictures)
    elif task is None:
        raise ValueError("Nothing to process: give images=, text= or task=.")
    else:
        count = 1  # it lacks what its task needs, as the check of the row says
    if count == 0:
        raise ValueError("The batch is empty: images and text must be one thing or a list of at least one.")
    if pictures is not None and len(pictures) != count:
        raise ValueError(
            f"{len(pictures)} images but {count} texts: give one image for each text (None where a text has none)."
        )
    if objects is not None and count == 1 and all(isinstance(one, str) for one in objects):
        objects = [objects]
    columns = (
        list(tasks) if len(tasks) == count else list(tasks) * count,
        pictures or [None] * count,
        _column(text, "text", count),
        _column(text_pair, "text_pair", count),
        _column(objects, "objects", count),
    )
    rows = []
    for i, values in enumerate(zip(*columns, strict=True)):
        row = Asked(*values)
        if row.task is not None:
            row = row._replace(text=_stated(row.text), text_pair=_stated(row.text_pair))
        _check(row, f" (row {i})" if count > 1 else "", pictures is not None)
        rows.append(row)
    return rows


def _pictures(images: Any) -> list[Any] | None:
    """Gives one picture or `None` for each row."""
    if images is None:
        return None
    dimensions = getattr(images, "ndim", 1)
    if dimensions == 4:
        return list(images)
    images = as_list(images) if dimensions == 1 else images
    if not isinstance(images, list):
        return [images]
    pictures: list[Any] = []
    for i, image in enumerate(images):
        if isinstance(image, list | tuple):
            if len(image) > 1:
                raise ValueError(f"OFA reads one picture a text, but row {i} of images has {len(image)}.")
            pictures.append(image[0] if image else None)
        elif getattr(image, "ndim", None) == 4:
            pictures.extend(image)
        else:
            pictures.append(image)
    if not pictures:
        raise ValueError("images is empty; leave it out for a batch without pictures.")
    return pictures


def _count(texts: Any) -> int:
    """Gives the number of texts or regions."""
    return len(texts) if isinstance(texts, list) and not _is_region(texts) else 1


def _column(values: Any, name: str, count: int) -> list[Any]:
    """Gives one value or `None` for each row."""
    if values is None:
        return [None] * count
    if not isinstance(values, list) or _is_region(values):
        values = [values]
    if len(values) != count:
        raise ValueError(
            f"{count} rows but {len(values)} values of {name}: give one for each image, text or task (None where "
            "a row has none)."
        )
    return values


def _is_region(value: Any) -> bool:
    """Whether a value is a region, four numbers."""
    values = as_list(value)
    return isinstance(values, list) and len(values) == 4 and all(isinstance(one, int | float) for one in values)


def _stated(text: Any) -> Any:
    """Gives a text, or `None` if it is blank."""
    return None if isinstance(text, str) and not text.strip() else text


def _check(row: Asked, where: str, has_pictures: bool) -> None:
    """Says what a row lacks, or has too much. Its picture may be `None`, if it is said that it has none."""
    task, picture, text, pair, objects = row
    if task is None:
        if pair is not None or objects is not None:
            raise ValueError("text_pair and objects belong to a task: give task=.")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"text must be a string or a list of strings, but here{where} it is {text!r}.")
        return
    where = f"Task {task.name!r}{where}"
    if task.takes_audio:
        raise ValueError(
            f"{where} is about recorded speech, which needs MMSpeech's encoder: this model reads pictures and text."
        )
    if task.takes_image and not has_pictures:
        raise ValueError(f"{where} is about a picture: give images=.")
    if not task.takes_image and picture is not None:
        raise ValueError(f"{where} takes no picture; leave images= out.")
    if task.takes_text:
        if text is None:
            raise ValueError(f"{where} needs text=: {task.text_is or 'its text'}.")
        if not isinstance(text, str) and not (task.takes_region and _is_region(text)):
            raise ValueError(f"{where} takes {task.text_is or 'a text'} as text=, not {text!r}.")
    elif text is not None:
        raise ValueError(f"{where} takes no text, its instruction is {task.instruction!r}; leave task= out.")
    if task.needs_pair and not isinstance(pair, str):
        raise ValueError(f"{where} needs text_pair=: {task.text_pair_is or 'the second text'}.")
    if pair is not None and not (task.takes_pair and isinstance(pair, str)):
        raise ValueError(f"{where} takes {'a string as' if task.takes_pair else 'no'} text_pair=, not {pair!r}.")
    if objects is not None and not task.takes_objects:
        raise ValueError(f"{where} takes no objects=.")


__all__ = ["Asked", "as_list", "rows_of", "tasks_of"]
