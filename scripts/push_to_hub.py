"""
Publishes a model with the code that loads it anywhere, an adapter, or a data set on the Hub: `ofa push` as a script.

    python scripts/push_to_hub.py runs/captions ofa-captions --dry-run
    python scripts/push_to_hub.py runs/captions ME/ofa-captions --private --license apache-2.0

docs/publish.md says what goes. A run that was stopped goes on where it was when the same command is given again.
"""

import sys

from modeling_ofa.cli import main


if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
