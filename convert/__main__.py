"""`python -m convert SOURCE …`: other people's weights → a folder that `from_pretrained` loads."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from . import fairseq, huggingface, mmpretrain, modelscope
from .common import DTYPES


def build_parser() -> argparse.ArgumentParser:
    """Makes the parser: one sub-command a source."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Turns other people's OFA weights into a folder that from_pretrained loads. Nothing in the files "
        "is executed; the folder appears complete and checked, or not at all.",
        epilog="example: python -m convert fairseq caption_base_best.pt ofa-base-caption --vocab vocab/",
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    official = sources.add_parser("fairseq", help="a .pt checkpoint of the official OFA code")
    official.add_argument("input", type=Path, metavar="CKPT", help="the .pt file")
    official.add_argument("--ema", action="store_true", help="take the averaged weights, if training kept them")
    official.add_argument("--head", metavar="NAME", help="which classification head to take, if there are several")
    official.set_defaults(convert=fairseq.convert)

    hub = sources.add_parser("huggingface", help="a folder in the layout of OFA-Sys/* on the Hub")
    hub.add_argument("input", type=Path, metavar="FOLDER", help="folder with config.json and the weights")
    hub.set_defaults(convert=huggingface.convert)

    openmmlab = sources.add_parser("mmpretrain", help="a .pth checkpoint of mmpretrain")
    openmmlab.add_argument("input", type=Path, metavar="CKPT", help="the .pth file")
    openmmlab.add_argument(
        "--task", choices=tuple(mmpretrain.CONFIGS), help="its configuration, if the file's name does not tell it"
    )
    openmmlab.set_defaults(convert=mmpretrain.convert)

    damo = sources.add_parser("modelscope", help="a folder of one of ModelScope's ofa_* models")
    damo.add_argument("input", type=Path, metavar="FOLDER", help="folder with configuration.json and the weights")
    damo.set_defaults(convert=modelscope.convert)

    for source in (official, hub, openmmlab, damo):
        source.add_argument("out", type=Path, metavar="OUT", help="the folder to make: a new one, or an empty one")
        source.add_argument("--dtype", choices=tuple(DTYPES), help="what to store weights in (default: as they are)")
        own = ", in place of the folder's own" if source in (hub, damo) else ""
        source.add_argument(
            "--vocab", type=Path, metavar="FOLDER", help=f"folder with vocab.json and merges.txt, or vocab.txt{own}"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments; those of the process without it.

    Returns:
        `int`: 0, 2 after bad input (one line on stderr says what), or 130 after an interruption.
    """
    options = vars(build_parser().parse_args(argv))
    del options["source"]
    convert = options.pop("convert")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        out = convert(options.pop("input"), options.pop("out"), **options)
    except (OSError, ValueError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    print(out)
    return 0


def describe(error: Exception) -> str:
    """One line that says what an error is about."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
