"""Data as people have it, the rows that training and evaluation read, and batches of them."""

from typing import Any

from .collator import DataCollatorForOFA


def __getattr__(name: str) -> Any:
    # Reading data needs `datasets`, which the base install does not have; what lies beside must import without it.
    if name not in ("EXAMPLE_FEATURES", "FORMATS", "load_examples"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import readers
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ImportError("Reading data needs the `datasets` library: pip install 'modeling-ofa[train]'.") from error
    return getattr(readers, name)


__all__ = ["EXAMPLE_FEATURES", "FORMATS", "DataCollatorForOFA", "load_examples"]  # noqa: F822, three by __getattr__
