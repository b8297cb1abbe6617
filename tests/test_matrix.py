"""Tests of scripts/run_matrix.py: what it reads of pytest, what it keeps, and what it shows."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[1] / "scripts" / "run_matrix.py"


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("run_matrix_script", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "log, counts, failed",
    [
        ("....\n4 passed in 1.20s\n", {"passed": 4}, []),
        ("4 passed, 1 warning, 9778 subtests passed in 61.20s (0:01:01)\n", {"passed": 4, "warning": 1}, []),
        (
            "FAILED tests/test_a.py::test_x[1] - ValueError: 3 failed in 2.00s\n"
            "ERROR tests/test_b.py\n== 1 failed, 1,234 passed ==\n"
            "1 failed, 1234 passed, 12 skipped, 3 warnings, 2 errors in 612.34s (0:10:12)\n",
            {"failed": 1, "passed": 1234, "skipped": 12, "warnings": 3, "error": 2},
            ["tests/test_a.py::test_x[1]", "tests/test_b.py"],
        ),
        ("ImportError while loading conftest\n", {}, []),
    ],
)
def test_the_summary_of_pytest_is_read(matrix, log, counts, failed):
    assert matrix.read_summary(log) == (counts, failed)


def test_another_transformers_takes_its_own_dependencies(matrix):
    own = "transformers==5.23.0; python_version >= '3.11'\nhuggingface_hub==2.4.0\ntokenizers==0.23.3\n"
    text = f"torch==2.13.0\n{own}"
    assert matrix.constraints_for(text, matrix.NEWEST) == text
    assert matrix.constraints_for(text, "5.17.0") == "torch==2.13.0\ntransformers==5.17.0\n"


def test_the_constraints_of_ci_pin_what_is_taken_back(matrix):
    text = (SCRIPT.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert len(text.splitlines()) - len(matrix.constraints_for(text, "5.17.0").splitlines()) == 2


def test_interpreters_that_do_not_run_are_passed_over(matrix, tmp_path, monkeypatch):
    broken, working = tmp_path / "python3.12", tmp_path / "python3.11"
    broken.write_text("#!/bin/sh\nexit 127\n")
    working.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for file in (broken, working):
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    assert matrix.find_pythons() == {".".join(map(str, sys.version_info[:3])): sys.executable}


@pytest.fixture
def runs(matrix, monkeypatch) -> list[str]:
    """The cells that are run, in the place of running them."""
    names = []

    def run_cell(cell, executable, folder, workers, keep):
        names.append(cell.name)
        cell.outcome, cell.counts, cell.versions = "passed", {"passed": 1200, "skipped": 3}, {"transformers": "5.17.0"}
        return cell

    monkeypatch.setattr(matrix, "find_pythons", lambda: {"3.10.13": "a", "3.12.1": "b"})
    monkeypatch.setattr(matrix, "run_cell", run_cell)
    monkeypatch.setattr(matrix, "state_of", lambda root: "first")
    return names


def test_a_stopped_run_goes_on_and_another_commit_begins_anew(matrix, runs, tmp_path, monkeypatch, capsys):
    arguments = ["--output", str(tmp_path), "--transformers", "5.17.0", "newest"]
    assert matrix.main([*arguments, "--only", "3.12"]) == 0
    assert runs == ["3.12.1-5.17.0", "3.12.1-newest"]
    assert matrix.main(arguments) == 0
    assert runs[2:] == ["3.10.13-5.17.0", "3.10.13-newest"]
    assert matrix.main(arguments) == 0 and len(runs) == 4
    assert matrix.main([*arguments, "--only", "3.10"]) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == 4  # nothing that was run is forgotten
    monkeypatch.setattr(matrix, "state_of", lambda root: "second")
    assert matrix.main(arguments) == 0 and len(runs) == 8


def test_other_tests_are_another_run(matrix, runs, tmp_path):
    arguments = ["--output", str(tmp_path), "--transformers", "newest", "--only", "3.12"]
    matrix.main(arguments)
    matrix.main([*arguments, "--tests", "tests/test_trie_ofa.py"])
    assert len(runs) == 2


def test_the_table_says_what_was_installed_and_run(matrix, runs, tmp_path, capsys):
    matrix.main(["--output", str(tmp_path), "--transformers", "newest", "--only", "3.12"])
    row = "| 3.12.1 | 5.17.0 |  |  |  | 1,200 passed, 3 skipped |"
    assert row in capsys.readouterr().out and row in (tmp_path / "matrix.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())[0]["counts"] == {"passed": 1200, "skipped": 3}


def test_a_python_that_is_not_there_is_an_error(matrix, runs, tmp_path, capsys):
    assert matrix.main(["--only", "3.99", "--output", str(tmp_path)]) == 2
    assert "3.99" in capsys.readouterr().err
