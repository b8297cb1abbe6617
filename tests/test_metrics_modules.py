"""The `evaluate` modules: loaded from the package, without network, as Trainer and `evaluate.combine` use them."""

import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from modeling_ofa.evaluation import METRICS, metric_path


ROOT = Path(__file__).parents[1]


def forget_modules() -> None:
    """evaluate imports its copies of modules as parts of one package, which stays where it was first made."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    cache = tmp_path_factory.mktemp("evaluate")
    forget_modules()
    with pytest.MonkeyPatch.context() as patch:
        # If another test of this process had evaluate copy modules to its usual folder, that would be found first.
        patch.setattr(sys, "path", [path for path in sys.path if not Path(path, "evaluate_modules").is_dir()])
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(cache / "metrics"))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        yield
    forget_modules()


def load(name: str, *options: str) -> evaluate.EvaluationModule:
    return evaluate.load(str(metric_path(name)), *options)


BOX = [1.0, 2.0, 5.0, 6.0]
CASES = {
    "coco_caption": (
        ["a dog runs", "two boats"],
        [["a dog is running", "a dog runs"], ["red boats"]],
        {"meteor": False},
    ),
    "vqa_accuracy": (["2", "red"], [["two"] * 3 + ["3"] * 7, ["blue"] * 10], {"answer_types": ["number", "other"]}),
    "grounding_accuracy": ([BOX, [0.0, 0.0, 1.0, 1.0]], [BOX, BOX], {"threshold": 0.4}),
    "label_accuracy": (["yes", "no"], ["yes", "maybe"], {}),
    "rouge": (["us stocks rise ( again )"], [["u.s. stocks rise -lrb- again -rrb-"]], {}),
    "edit_distance": (["stop", "go"], ["stop", "gone"], {"spaces": True}),
    "token_accuracy": ([[1, 2], [3]], [[1, 9], [3]], {}),
    "detection_map": (
        [{"boxes": [BOX, BOX], "labels": ["a", "b"], "scores": [0.5, 0.4]}, {"boxes": [], "labels": [], "scores": []}],
        [{"boxes": [BOX], "labels": ["a"]}, {"boxes": [BOX], "labels": ["a"]}],
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_module_gives_what_the_function_gives(name):
    predictions, references, options = CASES[name]
    module = load(name)
    expected = METRICS[name].function(predictions, references, **options)
    assert module.compute(predictions=predictions, references=references, **options) == expected
    assert module.description and module.citation and "Args:" in module.inputs_description
    for prediction, reference in zip(predictions, references, strict=True):
        module.add(prediction=prediction, reference=reference)
    assert module.compute(**options) == expected


def test_the_module_of_the_soft_score_takes_answers_with_scores():
    answers = [{"answer": "yes", "score": 1.0}, {"answer": "maybe", "score": 0.3}]
    module = load("vqa_soft_score")
    scores = module.compute(predictions=["maybe", "no"], references=[answers, answers])
    assert scores == METRICS["vqa_soft_score"].function(["maybe", "no"], [{"yes": 1.0, "maybe": 0.3}] * 2)
    assert scores["score"] == pytest.approx(0.15)


def test_the_module_of_labels_also_takes_ranked_lists():
    scores = load("label_accuracy").compute(predictions=[["a", "b"], ["b", "a"]], references=["a", "a"], top_k=2)
    assert scores == {"accuracy": 0.5, "top_2_accuracy": 1.0}


def test_missing_boxes_and_scores_pass_through_the_modules():
    assert load("grounding_accuracy").compute(predictions=[None, BOX], references=[BOX, BOX])["accuracy"] == 0.5
    scores = load("detection_map").compute(
        predictions=[{"boxes": [BOX], "labels": ["a"], "scores": None}], references=[{"boxes": [BOX], "labels": ["a"]}]
    )
    assert scores["map"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", [name for name in METRICS if name.startswith("glue_")])
def test_the_module_of_glue_takes_the_task_as_its_configuration(name):
    answers = {"predictions": ["yes", "no", "yes"], "references": ["yes", "no", "no"]}
    module = load(name, name.removeprefix("glue_"))
    assert module.compute(**answers) == METRICS[name].function(**answers)


def test_modules_combine():
    both = evaluate.combine([load("label_accuracy"), load("edit_distance")])
    scores = both.compute(predictions=["stop", "go"], references=["stop", "no"])
    assert scores["accuracy"] == scores["exact_match"] == 0.5 and scores["cer"] == pytest.approx(1 / 6)


def test_a_module_serves_as_compute_metrics_of_trainer(tmp_path):
    metric = load("token_accuracy")

    class Echo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, labels):
            return {"loss": self.weight * 0, "logits": torch.nn.functional.one_hot(input_ids, 8).float()}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        tokens = np.argmax(prediction.predictions, axis=-1)
        return metric.compute(predictions=tokens, references=prediction.label_ids)

    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 4]}, {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]
    trainer = Trainer(
        model=Echo(),
        args=TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True),
        eval_dataset=rows,
        compute_metrics=compute,
    )
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(5 / 6)


def test_a_fresh_process_without_network_loads_a_module(tmp_path):
    code = (
        "import evaluate, socket\n"
        "from modeling_ofa.evaluation import metric_path\n"
        "def refuse(*_, **__): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "print(evaluate.load(str(metric_path('ofa_glue')), 'rte').compute(predictions=['yes'], references=['no']))\n"
    )
    environment = {"HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "{'accuracy': 0.0}", run.stderr


def test_names_find_their_modules_and_an_unknown_one_lists_them():
    assert metric_path("glue_cola") == metric_path("glue") == metric_path("ofa_glue")
    assert all(metric_path(name).is_file() for name in METRICS)
    with pytest.raises(ValueError, match="Unknown metric 'cider'; choose one of coco_caption"):
        metric_path("cider")
