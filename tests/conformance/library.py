"""Fetches the common tests of the installed transformers: its source distribution has them, its wheel does not."""

import importlib
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock


CACHE = Path(__file__).resolve().parents[2] / ".cache" / "conformance"
# The library calls the package `tests`. Its modules import each other relatively, so it can be told from ours.
PACKAGE = "transformers_tests"
TIMEOUT = 300  # seconds for a download of 10 MB

# Helpers that the common tests import or read, and the source distribution lacks.
SHIMS = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/exporters/__init__.py": "",
    f"{PACKAGE}/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    f"{PACKAGE}/generation/__init__.py": "",
    f"{PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    f"{PACKAGE}/utils/__init__.py": "",
    f"{PACKAGE}/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    f"{PACKAGE}/fixtures/sample_text.txt": "A kite went up over the harbour.\n\nIt was red; the boats were blue.\n",
    "utils/fetch_hub_objects_for_ci.py": (
        "def url_to_local_path(path, return_url_if_not_found=True):\n    return path\n"
    ),
}


def common_tests(name: str) -> ModuleType:
    """
    A module of the library's common tests, such as `"test_modeling_common"`. Skips the module that asks for it, with
    the reason, where the library's tests cannot be had.
    """
    root, problem = _fetch()
    if root is None:
        pytest.skip(f"transformers' common tests are not available: {problem}", allow_module_level=True)
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module(f"{PACKAGE}.{name}")


@cache
def _fetch() -> tuple[Path | None, str]:
    """The folder that holds the library's tests as `PACKAGE`, or `None` and the reason."""
    release = version("transformers")
    root = CACHE / f"transformers-{release}"
    CACHE.mkdir(parents=True, exist_ok=True)
    # Several test processes may come here at once.
    with FileLock(CACHE / "lock"):
        if not root.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                problem = _download(release, Path(folder))
                if problem:
                    return None, problem
                unpacked = Path(folder) / root.name
                _unpack(Path(folder) / f"{root.name}.tar.gz", unpacked)
                unpacked.rename(root)
    return root, ""


def _download(release: str, folder: Path) -> str:
    """Downloads the source distribution into `folder`; returns what went wrong, if anything."""
    # Only the archive is wanted: nothing of it is installed, and pip takes its own settings for where it comes from.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--retries", "1"]
    command += ["--no-binary", "transformers", "--no-deps", "--no-build-isolation", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*command, f"transformers=={release}"], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no source distribution of transformers {release} within {TIMEOUT} seconds"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return f"pip could not download the source distribution of transformers {release} ({lines[-1]})"
    return ""


def _unpack(archive: Path, root: Path):
    """Unpacks the tests out of `archive` as `root / PACKAGE` and adds the shims."""
    with tarfile.open(archive) as tar:
        prefix = f"{root.name}/tests/"
        for member in tar.getmembers():
            if member.isfile() and member.name.startswith(prefix):
                tar.extract(member, root.parent, filter="data")
    (root / "tests").rename(root / PACKAGE)
    for name, text in SHIMS.items():
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
