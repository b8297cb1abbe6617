"""
Draws the curves of docs/learning.md: what the runs of recipes/learning/ lost in training, and scored on held-out data.

    python scripts/plot_curves.py runs/learning     # after the runs: keeps their logs in docs/curves/, and draws
    python scripts/plot_curves.py                   # draws what was kept

A log is a run's own trainer_state.json without all that is no curve.
"""

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


DOCS = Path(__file__).resolve().parents[1] / "docs"
KEPT = ("step", "loss", "loss_image_text", "loss_extra", "reward", "eval_loss", "eval_cider", "eval_accuracy")
# Runs are in folders DATA_RUN. The name and colour of a RUN in the pictures:
RUNS = {
    "plain": ("all weights", "#1f77b4"),
    "lora": ("LoRA", "#ff7f0e"),
    "self_critical": ("self-critical", "#2ca02c"),
    "backbone": ("ResNet", "#1f77b4"),
    "model": ("model", "#1f77b4"),
    "tasks": ("a question a picture", "#1f77b4"),
    "lessons": ("then six", "#ff7f0e"),
    "places": ("heads that point: decoder", "#2ca02c"),
    "pointed": ("then all", "#d62728"),
    "middles": ("it goes on", "#ff7f0e"),
    "counted": ("heads that count", "#9467bd"),
}
# By the name of a picture its panels: title, data, what is drawn, of which runs.
PICTURES = {
    "learning": (
        ("Scenes: loss of training", "scenes", "loss", ("plain", "lora")),
        ("Scenes: mean reward of drawn captions", "scenes", "reward", ("self_critical",)),
        ("Scenes: CIDEr-D of held-out pictures", "scenes", "eval_cider", ("plain", "lora", "self_critical")),
        ("Fashion-MNIST: loss of training", "fashion_mnist", "loss", ("plain", "lora")),
        ("Fashion-MNIST: loss of held-out pictures", "fashion_mnist", "eval_loss", ("plain", "lora")),
        ("Fashion-MNIST: accuracy on held-out pictures", "fashion_mnist", "eval_accuracy", ("plain", "lora")),
    ),
    "world": (
        ("ResNet: names and boxes of patches", "world", "loss", ("backbone", "middles")),
        ("Model: tasks about pictures", "world", "loss_image_text", ("model",)),
        (
            "All tasks as they are asked in the end",
            "world",
            "loss",
            ("tasks", "lessons", "places", "pointed", "counted"),
        ),
    ),
}
_COLUMNS = 3


def keep(state: Path, folder: Path) -> None:
    """Writes what the panels need of a trainer_state.json, named after its run."""
    entries = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    lines = [{name: round(entry[name], 4) for name in KEPT if name in entry} for entry in entries]
    text = ",\n".join(json.dumps(line) for line in lines if len(line) > 1)
    (folder / f"{state.parent.name}.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


def draw_panel(axes: Axes, title: str, data: str, name: str, runs: tuple[str, ...], logs: Path) -> None:
    """Draws one score of some runs against their updates; held-out scores have a mark for each evaluation."""
    for run in runs:
        label, colour = RUNS[run]
        entries = json.loads((logs / f"{data}_{run}.json").read_text(encoding="utf-8"))
        steps, values = zip(*[(entry["step"], entry[name]) for entry in entries if name in entry], strict=True)
        axes.plot(
            steps, values, color=colour, label=label, marker="o" if name.startswith("eval") else "", markersize=4
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("updates")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="folder with the runs' folders, whose logs shall be kept")
    parser.add_argument("--picture", choices=PICTURES, default="learning", help="which picture (%(default)s)")
    parser.add_argument("--logs", type=Path, default=DOCS / "curves", help="folder of the logs (docs/curves)")
    parser.add_argument("--output", type=Path, help="the picture to write (docs/images/PICTURE.png)")
    args = parser.parse_args()
    panels, output = PICTURES[args.picture], args.output or DOCS / "images" / f"{args.picture}.png"
    wanted = sorted({f"{data}_{run}" for _, data, _, runs in panels for run in runs})
    args.logs.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    for run in wanted if args.runs else ():
        state = args.runs / run / "trainer_state.json"
        if not state.is_file():
            raise SystemExit(f"{state} does not exist: docs/{args.picture}.md has the command that trains {run}.")
        keep(state, args.logs)
    rows = len(panels) // _COLUMNS
    figure = Figure(figsize=(12, 3.25 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, _COLUMNS).flat, panels, strict=True):
        draw_panel(axes, *panel, args.logs)
    figure.savefig(output, dpi=80)
    print(output)


if __name__ == "__main__":
    main()
