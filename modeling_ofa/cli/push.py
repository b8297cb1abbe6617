"""`ofa push`: a folder, published on the Hub."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import huggingface_hub
import transformers

from ..hub import KINDS, Card, prepare, upload
from .errors import CommandError, first_line


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `ofa push` takes."""
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="what `save_pretrained` or a trainer wrote, or data"
    )
    parser.add_argument("repo", metavar="REPO", help="NAME or OWNER/NAME; it is made if there is none")
    parser.add_argument("--type", choices=KINDS, help="what it is; has to be said of a data set only")
    parser.add_argument("--private", action="store_true", help="let only its owner see the repository")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to publish on (default: main)")
    parser.add_argument("--pull-request", action="store_true", help="open a pull request on a repository that exists")
    parser.add_argument("--message", metavar="TEXT", help="what the history shall say")
    parser.add_argument(
        "--include", metavar="PATTERN", action="append", default=[], help="more files of the folder, such as '*.png'"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would go, and show the card; send nothing")
    card = parser.add_argument_group("what the card says, beside what the folder tells")
    card.add_argument("--license", metavar="ID", help="the licence's name on the Hub, such as apache-2.0")
    card.add_argument("--language", metavar="CODE", action="append", default=[], help="en, zh, …; may be given again")
    card.add_argument("--base-model", metavar="REPO", help="the model on the Hub that this one was made from")
    card.add_argument(
        "--dataset", metavar="REPO", action="append", default=[], help="data on the Hub that it was trained on"
    )
    card.add_argument("--eval-data", metavar="NAME", help="the data that its scores were measured on")
    card.add_argument("--task", metavar="TASK", action="append", default=[], help="a task that the usage shall show")


def run_push(arguments: argparse.Namespace) -> int:
    """Runs `ofa push`; gives the exit status."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # loading takes seconds, but an upload minutes
    card = Card(
        license=arguments.license,
        language=arguments.language,
        base_model=arguments.base_model,
        datasets=arguments.dataset,
        eval_data=arguments.eval_data,
        tasks=arguments.task,
    )
    options = {"kind": arguments.type, "card": card, "include": arguments.include}
    try:
        with prepare(arguments.folder, arguments.repo, **options) as contents:
            sizes = {name: file.stat().st_size for name, file in contents.files.items()}
            record = {"repo": contents.repo_id, "type": contents.kind, "files": sizes}
            if not arguments.json:
                for name, size in sizes.items():
                    print(f"{size:>15,}  {name}")
                print(
                    f"{contents.size:>15,}  bytes in {len(contents.files)} files: {contents.kind} {contents.repo_id}"
                )
            if arguments.dry_run:
                text = contents.files["README.md"].read_text(encoding="utf-8")
                print(json.dumps({**record, "card": text}) if arguments.json else f"\n{text}", flush=True)
                return 0
            url = upload(
                contents,
                private=arguments.private,
                revision=arguments.revision,
                create_pr=arguments.pull_request,
                message=arguments.message,
            )
    except (ValueError, OSError) as error:
        raise CommandError(first_line(error)) from error
    print(json.dumps({**record, "url": url}) if arguments.json else url)
    return 0
