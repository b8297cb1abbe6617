"""Scores grounded boxes: an `evaluate` module around `modeling_ofa.evaluation.grounding_accuracy`."""

import datasets
import evaluate

from modeling_ofa.evaluation import grounding_accuracy


_CITATION = """\
@inproceedings{yu2016modeling,
  title={Modeling context in referring expressions},
  author={Yu, Licheng and Poirson, Patrick and Yang, Shan and Berg, Alexander C. and Berg, Tamara L.},
  booktitle={European Conference on Computer Vision},
  year={2016}
}
"""


class OFAGroundingAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="The part of grounded boxes that overlap the true one enough (Acc@0.5), by OFA's arithmetic.",
            citation=_CITATION,
            inputs_description=grounding_accuracy.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, predictions, references, **options):
        return grounding_accuracy(predictions, references, **options)
