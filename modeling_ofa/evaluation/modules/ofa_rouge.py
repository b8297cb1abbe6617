"""Scores summaries: an `evaluate` module around `modeling_ofa.evaluation.rouge`."""

import datasets
import evaluate

from modeling_ofa.evaluation import rouge


_CITATION = """\
@inproceedings{lin2004rouge,
  title={ROUGE: A package for automatic evaluation of summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004}
}
"""


class OFARouge(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2 and ROUGE-L of summaries, as OFA evaluates Gigaword.",
            citation=_CITATION,
            inputs_description=rouge.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, **options):
        return rouge(predictions, references, **options)
