"""What the documentation says is so: its snippets run, its commands and options are understood, its links lead on."""

import argparse
import ast
import base64
import dataclasses
import importlib
import inspect
import os
import pydoc
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate.commands.launch
import datasets
import pytest
import torch
import torch.distributed.run
from markdown_pages import Page
from PIL import Image
from tiny import save_checkpoint

import convert.__main__
import modeling_ofa.hub
from modeling_ofa import DataCollatorForOFA, OFAConfig, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli import build_parser
from modeling_ofa.evaluation import Predictor
from modeling_ofa.tasks_ofa import TASKS
from modeling_ofa.training import OFATrainingArguments, recipes
from modeling_ofa.training.freezing import freeze
from modeling_ofa.training.self_critical import SelfCriticalTrainingArguments


ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): Page(path)
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
EVERY_PAGE = pytest.mark.parametrize("name", PAGES)

# --- Python ---------------------------------------------------------------------------------------------------------

# Snippets that are compiled, and whose imports are made, but which are not run: by a line of theirs.
NOT_RUN = {
    "from gradio_client import": "it asks a server, as tests/test_app.py does",
    "Negatives.load(": "it reads the data of pre-training, as tests/test_pretraining.py does",
    'snapshot_download("ME/run"': "it asks the Hub, as tests/test_hub.py does",
    '"someone/their-vqa"': "it asks the Hub, as tests/test_hub.py does",
    'load_examples("coco_caption"': "it reads public data sets, as tests/test_readers.py does",
    "torch.compile(": "it takes a minute, as in tests/test_generation_ofa.py",
    "BitsAndBytesConfig(": "it wants bitsandbytes, which is no dependency",
    "from world.splits import": "it wants the artwork, as tests/test_world.py does",
}
# What is done otherwise here: without a GPU, with a small vocabulary, and two steps in the place of a training.
CHANGES = {
    "bf16=True": "use_cpu=True",
    '.to("cuda")': '.to("cpu")',
    "TokenRange(58457, 59457)": "TokenRange(4, 9)",
    "max_steps=30": "max_steps=2",
    ", …)": ")",
}
# What the reader has done before a snippet: by the line with which it begins.
BEFORE = {
    "bins = tokenizer.bin_start_id": "inputs = processor(images=[image] * 3, text=['a'] * 3, return_tensors='pt')",
    'load_examples("parquet", "out", split="train", streaming=True)': "prepare()",
}


def snippets_of(page: Page) -> Iterator[str]:
    """Gives the Python of a page, in its order, as it is run here."""
    for fence in page.fences:
        if fence.language == "python":
            code = fence.code
            for said, done in CHANGES.items():
                code = code.replace(said, done)
            yield code


def is_run(code: str) -> bool:
    return not any(line in code for line in NOT_RUN)


def prepare_data() -> None:
    """Runs the command of docs/data.md that packs the folder of its first example."""
    main = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))["main"]
    columns = "image=file,text=question,target=answer"
    assert main(["folder", "photos/questions.csv", "out", "--task", "vqa", "--columns", columns]) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model that answers at once."""
    return save_checkpoint(tmp_path_factory.mktemp("docs") / "checkpoint")


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    """Tasks that a page registers are gone behind it."""
    before = dict(TASKS)
    yield
    for name in TASKS.keys() - before.keys():
        del TASKS[name]


@pytest.fixture
def reader(checkpoint, tmp_path, monkeypatch) -> dict[str, Any]:
    """The names that snippets take as given, in a folder with the files that they read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(modeling_ofa.hub, "upload", lambda contents, **options: f"sent {len(contents.files)} files")
    for folder in ("ME/ofa-captions", "runs/captions", "stage1", "ofa-caption", "ofa-ve"):
        shutil.copytree(checkpoint, tmp_path / folder)
    image = Image.new("RGB", (96, 64), "white")
    for folder in ("photos", "vqa_data"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "b.png", "dogs.jpg", "photos/kitchen.jpg", "picture.png"):
        image.save(tmp_path / name)
    table = next(fence.code for fence in PAGES["docs/data.md"].fences if fence.code.startswith("file,"))
    (tmp_path / "photos" / "questions.csv").write_text(table)
    encoded = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    line = "\t".join(["1", "7", "what is it?", "0.6|!+nothing", "cup&&plate", encoded])
    (tmp_path / "vqa_data" / "vqa_train.tsv").write_text(f"{line}\n")

    processor = OFAProcessor.from_pretrained(checkpoint)
    model = OFAForConditionalGeneration.from_pretrained(checkpoint, dtype="float32").eval()
    caption = {"task": "caption", "image": image, "target": "a cup", "references": ["a cup", "one cup"]}
    question = {"task": "vqa", "image": image, "text": "what is it?", "target": "a cup"}
    inputs = DataCollatorForOFA(processor, with_targets=False)([question])
    return {
        "path": str(checkpoint),
        "ckpt_dir": str(checkpoint),
        "processor": processor,
        "tokenizer": processor.tokenizer,
        "model": model,
        "vocab_size": model.config.vocab_size,
        "predictor": Predictor(model, processor),
        "image": image,
        "img": image,
        "question": question["text"],
        "text": "the cup",
        "inputs": {name: value for name, value in inputs.items() if not name.startswith("decoder")},
        "rows": [caption, question],
        "held_out": [caption, question],
        "dataset": [caption, question],
        "data": [question],
        "train": datasets.Dataset.from_list([caption | {"image": str(tmp_path / "a.png")}] * 2),
        "train_references": [["a cup", "one cup"], ["a plate"]],
        "texts": ["a cup"],
        "candidates": ["a cup"],
        "references_of_each": [["a cup"]],
        "datasets": datasets,
        "prepare": prepare_data,
    }


def run_snippets(name: str, names: dict[str, Any]) -> None:
    """Runs the snippets of a page one after the other, as a reader would."""
    for code in filter(is_run, snippets_of(PAGES[name])):
        exec(BEFORE.get(code.split("\n")[0], ""), names)
        exec(compile(code, name, "exec"), names)


# tests/test_pipelines.py runs those of pipelines and embeddings, and a test below those of migration.
@pytest.mark.parametrize("name", [name for name in PAGES if not re.search("pipelines|embeddings|migrate", name)])
def test_the_snippets_of_a_page_run_in_its_order(name, reader, capsys):
    run_snippets(name, reader)


@EVERY_PAGE
def test_what_is_not_run_is_python_at_least_and_imports_what_there_is(name):
    for code in snippets_of(PAGES[name]):
        for statement in ast.walk(ast.parse(code)):
            if isinstance(statement, ast.ImportFrom) and statement.module.startswith("modeling_ofa"):
                module = importlib.import_module(statement.module)
                assert all(hasattr(module, alias.name) for alias in statement.names)


def test_every_snippet_that_is_not_run_is_still_there():
    everything = "\n".join(code for page in PAGES.values() for code in snippets_of(page))
    assert [line for line in [*NOT_RUN, *BEFORE] if line not in everything] == []


# --- tables of old calls and new ones -------------------------------------------------------------------------------

# By the head of their last column: what calls the arguments that it lists.
CALLS = {
    "`generate`": "model.generate(**inputs, {})",
    "`OFATrainingArguments`": "OFATrainingArguments('out', use_cpu=True, {})",
}


def is_python(span: str) -> bool:
    """Whether this is a call or an assignment, and no word, file or command."""
    try:
        [statement] = ast.parse(span).body
    except (SyntaxError, ValueError):
        return False
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return isinstance(statement, ast.Assign)


@pytest.mark.parametrize("name", [name for name in PAGES if "migrate" in name])
def test_every_new_call_of_the_migration_tables_runs(name, reader, capsys):
    run_snippets(name, reader)
    exec("from modeling_ofa import *; from modeling_ofa.generation import *", reader)
    reader |= {"OFATrainingArguments": OFATrainingArguments, "txt": " what does the image describe?"}
    reader |= {"answer": {"text": "", "label": "", "score": 0.0, "boxes": []}, "height": 64, "width": 96}
    reader |= {"a": 1, "b": 16, "source_length": 9}  # of the longest answer
    reader |= {"ids": torch.tensor([[0, 5, 6, 2]]), "logits": torch.zeros(1, 4, 9)}
    for cell in PAGES[name].cells():
        call = CALLS.get(cell.header, "{}")
        for span in cell.spans if cell.is_last and cell.header != "task" else []:
            for said, done in CHANGES.items():
                span = span.replace(said, done)
            if "…" in span or span.endswith(".py"):
                continue
            if call != "{}" and re.match(r"\w+=", span) or call == "{}" and is_python(span):
                exec(call.format(span), dict(reader))


def test_the_arguments_named_beside_those_of_the_transformers_branch_exist():
    cells = [cell for cell in PAGES["docs/migrate_transformers.md"].cells() if cell.is_last]
    known = set(inspect.signature(OFAForConditionalGeneration.forward).parameters)
    known |= {"labels", "output_attentions", "output_hidden_states", "return_dict", "Cache", "patch_images"}
    named = [
        span
        for cell in cells
        if cell.header == "`OFAForConditionalGeneration.forward`"
        for span in cell.spans
        if span.isidentifier()
    ]
    assert len(named) > 10 and set(named) <= known


# --- command lines --------------------------------------------------------------------------------------------------


class Understood(Exception):
    """A command line was read to its end."""


RECIPE = "recipes/vqa_base.yaml"
# What stands for something of the reader's where a parser wants one of its own words.
PLACEHOLDERS = {"SOURCE": "fairseq", "TASK": "caption", "...": "picture.png", "N": "4", "recipes/NAME.yaml": RECIPE}
# What a script wants beside what is said of it, where only a part of its command is.
WANTED = {
    "scripts/evaluate.py": ["--data", "data.tsv"],
    "scripts/finetune.py": ["--eval_strategy", "steps", "--save_strategy", "steps"],
}
# Programs of others.
FOREIGN = {"aws", "cat", "cp", "export", "git", "hf", "mkdir", "printf", "python3"}


def understand(words: list[str], monkeypatch) -> None:
    """
    Lets the command itself read its words.

    Raises:
        SystemExit, Exception: It does not understand them.
    """
    if is_mentioned(words):
        return
    words = [PLACEHOLDERS.get(word, word) for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if "…" in words:
        words = [word for word in words if word != "…"]
        words += next((wanted for script, wanted in WANTED.items() if script in words), [])
    match words:
        case ["ofa", *rest] | ["python", "scripts/push_to_hub.py", *rest]:
            rest = rest if words[0] == "ofa" else ["push", *rest]
            _, unknown = build_parser().parse_known_args(rest)
            assert not [word for word in unknown if word.startswith("-")], f"ofa does not know {unknown}"
        case ["python", "-m", "convert", *rest]:
            convert.__main__.build_parser().parse_args(rest)
        case ["python", script, *rest] if script.startswith("scripts/"):
            run_script(script, rest, monkeypatch)
        case ["accelerate", "launch", *rest]:
            given = accelerate.commands.launch.launch_command_parser().parse_args(rest)
            assert given.config_file is None or (ROOT / given.config_file).is_file()
            run_script(given.training_script, given.training_script_args, monkeypatch)
        case ["torchrun", *rest]:
            given = torch.distributed.run.get_args_parser().parse_args(rest)
            run_script(given.training_script, given.training_script_args, monkeypatch)
        case ["make", *rest]:
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in rest if "=" not in word} <= set(targets)
        case ["pip", "install", *rest]:
            setup = (ROOT / "setup.py").read_text(encoding="utf-8")
            for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.+)\]", " ".join(rest)))):
                assert f'"{extra}": [' in setup or f'extras["{extra}"]' in setup, f"no extra {extra}"
        case ["ofa" | "pytest" | "accelerate", *rest]:
            assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
        case [program, *_]:
            assert program in FOREIGN, f"what is {program}?"


def run_script(script: str, words: list[str], monkeypatch) -> None:
    """Runs a script up to where it has read its command line."""
    read, read_recipe = argparse.ArgumentParser.parse_args, recipes.parse_recipe

    def parse_args(parser: Any, *arguments: Any, **options: Any) -> None:
        read(parser, *arguments, **options)
        raise Understood

    def parse_recipe(kinds: Any, *arguments: Any, **options: Any) -> None:
        read_recipe(kinds, [*words, "--use_cpu", "true"])
        raise Understood

    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(recipes, "parse_recipe", parse_recipe)
        patch.setattr(sys, "argv", [script, *words])
        patch.setattr(sys, "path", [*sys.path, str(ROOT / "scripts")])
        with pytest.raises(Understood):
            runpy.run_path(script, run_name="__main__")


def programs(line: str) -> Iterator[list[str]]:
    """Splits a line of a shell into the words of each program that it runs."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in ("&&", "|", ";"):
            if words:
                yield words
            words = []
        elif word not in ("<", ">"):
            words.append(word)


def commands_of(page: Page) -> Iterator[list[str]]:
    """Gives the commands of a page, from blocks and sentences, as words."""
    for fence in page.fences:
        if fence.language in ("sh", "console") or re.match(r"python |pip |accelerate ", fence.code):
            code = re.sub(r"<<'END'.*?^END$", "", fence.code, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
            for variable, value in re.findall(r"^(\w+)=(\S+)$", code, re.MULTILINE):
                code = code.replace(f"{variable}={value}", "").replace(f"${variable}", value)
            for line in code.splitlines():
                if fence.language != "console" or line.startswith("$ "):
                    yield from programs(line.removeprefix("$ "))
    for span in page.spans:
        span = re.sub(r"^(?=scripts/\w+\.py --)", "python … ", span)
        if re.match(r"ofa [a-z]|python (… )?scripts/|python -m convert|accelerate launch .*scripts/|make [a-z]", span):
            yield from programs(span)


def is_mentioned(words: list[str]) -> bool:
    """Whether a command is only named, such as `ofa push`, and not given."""
    return len(words) < (5 if words[:2] == ["python", "-m"] else 3)


@EVERY_PAGE
def test_every_command_line_is_understood(name, monkeypatch):
    for words in commands_of(PAGES[name]):
        try:
            understand(words, monkeypatch)
        except (SystemExit, Exception) as error:
            pytest.fail(f"{shlex.join(words)}: {error!r}")


def test_every_command_that_is_named_exists():
    choices = next(action for action in build_parser()._actions if isinstance(action.choices, dict)).choices
    mentioned = {tuple(words) for page in PAGES.values() for words in commands_of(page) if is_mentioned(words)}
    assert {words[1] for words in mentioned if words[0] == "ofa"} <= set(choices)
    assert all((ROOT / words[1]).is_file() for words in mentioned if words[1].startswith("scripts/"))


@EVERY_PAGE
def test_every_option_in_the_column_of_a_script_is_understood_by_it(name, monkeypatch):
    for cell in PAGES[name].cells():
        script = re.search(r"scripts/\w+\.py", cell.header)
        for span in cell.spans if cell.is_last and script else []:
            if span.startswith("--") and " " in span:  # alone, it is named and not given
                try:
                    run_script(script[0], [*WANTED.get(script[0], []), *shlex.split(span)], monkeypatch)
                except (SystemExit, Exception) as error:
                    pytest.fail(f"{script[0]} {span}: {error!r}")


# Options of the official code, and of transformers, that sentences name.
OF_OTHERS = {"--log-end", "--selected-cols", "--unnormalized", "--trust-remote-code"}
OLD_COLUMNS = re.compile(r"official|flag|fairseq|script in|mmpretrain|ModelScope")


def known_options() -> set[str]:
    """Gives all options of all commands of this package, and those of accelerate and torchrun."""
    parsers: list[argparse.ArgumentParser] = [build_parser(), convert.__main__.build_parser()]
    parsers += [accelerate.commands.launch.launch_command_parser(), torch.distributed.run.get_args_parser()]
    known = set(OF_OTHERS)
    while parsers:
        for action in parsers.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    for script in (ROOT / "scripts").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        known |= set(re.findall(r'"(--[\w-]+)"', text))
        known |= {f"--{name}" for name in re.findall(r"^    (\w+): .+ = ", text, re.MULTILINE)}
    from prepare_data import FLAGS, OPTIONS

    known |= {f"--{name}" for name in [*OPTIONS, *FLAGS]}
    arguments = [OFATrainingArguments, SelfCriticalTrainingArguments]
    return known | {f"--{one.name}" for kind in arguments for one in dataclasses.fields(kind)}


@EVERY_PAGE
def test_every_option_that_is_named_exists(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "scripts")])
    page, known = PAGES[name], known_options()
    old = {span for cell in page.cells() if OLD_COLUMNS.search(cell.header) for span in cell.spans}
    old -= {span for cell in page.cells() if cell.is_last for span in cell.spans}
    named = {option for span in set(page.spans) - old for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named - known == set()


# --- links, files, names --------------------------------------------------------------------------------------------


@EVERY_PAGE
def test_every_link_leads_somewhere(name):
    page = PAGES[name]
    for link in page.links:
        file, _, anchor = link.partition("#")
        if file.startswith(("http://", "https://")):
            continue
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in Page(target).anchors, f"{link}: there is no such heading"


@EVERY_PAGE
def test_every_file_of_the_repository_that_is_named_exists(name):
    for span in PAGES[name].spans:
        if re.fullmatch(r"(convert|docs|modeling_ofa|notebooks|recipes|scripts|tests)/[\w./-]*\w", span):
            assert (ROOT / span).exists(), f"there is no {span}"


@EVERY_PAGE
def test_every_name_of_the_package_that_is_written_out_exists(name):
    for span in PAGES[name].spans:
        if re.fullmatch(r"modeling_ofa(\.\w+)+", span) and not span.endswith(".py"):
            assert pydoc.locate(span) is not None, f"there is no {span}"


def test_the_index_names_every_page():
    linked = set(PAGES["docs/index.md"].links)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_every_core_file_is_explained():
    text = PAGES["docs/internals.md"].text
    assert [path.name for path in (ROOT / "modeling_ofa").glob("*_ofa.py") if f"`{path.name}`" not in text] == []


def test_the_reference_has_every_module_that_a_user_meets():
    named = set(re.findall(r"automodule:: (\S+)", PAGES["docs/api.md"].text))
    files = [*(ROOT / "modeling_ofa").rglob("*.py"), *(ROOT / "convert").glob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem[:2] != "__"}
    hidden = {name for name in modules if re.match(r"modeling_ofa\.(cli|app|evaluation\.modules)\b", name)}
    # Where the names of core files are given again.
    again = {"modeling_ofa.data.collator", "modeling_ofa.evaluation.predictor"}
    assert modules - hidden - named == again and named <= modules


def test_docstrings_are_rewritten_for_the_reference():
    to_rst = runpy.run_path(str(ROOT / "docs" / "conf.py"))["to_rst"]
    lines = ["[`OFAModel`]s of `a` and ``b`` ([paper](https://a.org)), as [`Trainer`]:", "```python", ">>> 1", "```"]
    expected = ":py:obj:`OFAModel <.OFAModel>`\\ s of ``a`` and ``b`` (`paper <https://a.org>`__), as ``Trainer``:"
    assert [line for line in to_rst(lines) if line] == [expected, ">>> 1"]


@pytest.mark.slow
def test_the_pages_and_the_reference_are_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees"]
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([*command, "docs", tmp_path / "pages"], **options)
    assert done.returncode == 0, done.stderr
    assert {"index.html", "start.html", "api.html"} <= {path.name for path in (tmp_path / "pages").glob("*.html")}


def test_the_parameters_that_freezing_is_said_to_leave_are_those_of_the_size_base():
    with torch.device("meta"):
        model = OFAForConditionalGeneration(OFAConfig.from_size("base"))
    assert f"```\n{freeze(model, ['embeddings', 'resnet'])}\n```" in PAGES["docs/lora.md"].text


def test_no_page_names_a_machine_of_its_authors():
    for page in PAGES.values():
        assert not re.search(r"/(work|root|tmp)/", page.text), f"{page.path} names a path of one machine"
