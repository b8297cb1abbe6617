"""Scores detected boxes: an `evaluate` module around `modeling_ofa.evaluation.detection_map`."""

import datasets
import evaluate

from modeling_ofa.evaluation import detection_map


_CITATION = """\
@inproceedings{lin2014microsoft,
  title={Microsoft COCO: Common objects in context},
  author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva and
    Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle={European Conference on Computer Vision},
  year={2014}
}
"""


class OFADetectionMAP(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="COCO's mean average precision of detection, without crowd regions.",
            citation=_CITATION,
            inputs_description=detection_map.__doc__,
            features=datasets.Features(
                {
                    "predictions": {
                        "boxes": datasets.List(datasets.List(datasets.Value("float64"))),
                        "labels": datasets.List(datasets.Value("string")),
                        "scores": datasets.List(datasets.Value("float64")),
                    },
                    "references": {
                        "boxes": datasets.List(datasets.List(datasets.Value("float64"))),
                        "labels": datasets.List(datasets.Value("string")),
                    },
                }
            ),
        )

    def _compute(self, predictions, references, **options):
        return detection_map(predictions, references, **options)
