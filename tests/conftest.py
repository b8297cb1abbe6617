"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest
import torch


# One thread each, for tests that run side by side and for the processes that they start: sums depend on the number.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def _vocabulary(*names: str) -> Path:
    """The folder with OFA's vocabulary files, which no package holds and this repository does not distribute."""
    default = Path(__file__).parents[2] / "shared" / "golden" / "vocab"
    folder = Path(os.environ.get("OFA_VOCAB_DIR", default))
    if not all((folder / name).is_file() for name in names):
        pytest.skip(f"reason: set OFA_VOCAB_DIR to a folder with {', '.join(names)} (those of any OFA-Sys/* model)")
    return folder


@pytest.fixture(scope="session")
def vocab_dir() -> Path:
    return _vocabulary("vocab.json", "merges.txt")


@pytest.fixture(scope="session")
def vocab_cn_file() -> Path:
    return _vocabulary("vocab_cn.txt") / "vocab_cn.txt"
