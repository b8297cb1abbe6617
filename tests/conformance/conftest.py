"""Marks: every test here is `conformance`, and those that compile are `slow` too."""

import os
from pathlib import Path

import pytest


LIBRARY_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config):
    if "not slow" not in config.option.markexpr:
        os.environ.setdefault("RUN_SLOW", "1")  # or the library skips what it marks as slow
    for mark in LIBRARY_MARKS:
        config.addinivalue_line("markers", f"{mark}: one of transformers' own marks")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.conformance)
            if item.get_closest_marker("torch_compile_test"):
                item.add_marker(pytest.mark.slow)
