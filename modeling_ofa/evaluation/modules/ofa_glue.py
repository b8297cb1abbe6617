"""Scores a GLUE task, its configuration: an `evaluate` module around `modeling_ofa.evaluation.glue`."""

import datasets
import evaluate

from modeling_ofa.evaluation import glue


_CITATION = """\
@inproceedings{wang2019glue,
  title={GLUE: A multi-task benchmark and analysis platform for natural language understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}
"""


class OFAGlue(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="The scores of a GLUE task, whose name is the configuration, from OFA's answers in words.",
            citation=_CITATION,
            inputs_description=glue.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        return glue(predictions, references, self.config_name)
