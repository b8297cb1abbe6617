"""`ofa app`: the page on which people try a checkpoint."""

from __future__ import annotations

import argparse

from .errors import CommandError
from .predictor import default_checkpoint
from .request import find_task, split_list


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `ofa app` takes besides a model."""
    options = parser.add_argument_group("page")
    options.add_argument("--tasks", metavar="A,B,C", help="the tabs (without it: what the checkpoint's card names)")
    options.add_argument(
        "--host", help="address to serve at; 0.0.0.0 is all of this machine's (without it: 127.0.0.1)"
    )
    options.add_argument("--port", type=int, help="port to serve at (without it: the first free one from 7860)")
    options.add_argument(
        "--share", action="store_true", help="also open a tunnel, so that anybody with its link can ask"
    )


def run_app(arguments: argparse.Namespace) -> int:
    """Runs `ofa app` until it is interrupted; gives the exit status.

    Raises:
        CommandError: if gradio is missing, a task is unknown, the checkpoint cannot be loaded or the port is taken.
    """
    tasks = [find_task(name).name for name in split_list(arguments.tasks or "")]
    try:
        from ..app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise CommandError("the page needs gradio: pip install 'modeling-ofa[app]'") from error
    serve(
        arguments.model or default_checkpoint(),
        tasks,
        device=arguments.device,
        dtype=arguments.dtype,
        host=arguments.host,
        port=arguments.port,
        share=arguments.share,
    )
    return 0
