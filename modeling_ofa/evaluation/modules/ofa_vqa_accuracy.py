"""Scores answers by VQAv2's official accuracy: an `evaluate` module around `modeling_ofa.evaluation.vqa_accuracy`."""

import datasets
import evaluate

from modeling_ofa.evaluation import vqa_accuracy


_CITATION = """\
@inproceedings{goyal2017making,
  title={Making the V in VQA matter: Elevating the role of image understanding in visual question answering},
  author={Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}
"""


class OFAVQAAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="VQAv2's official accuracy, with its normalisation of answers.",
            citation=_CITATION,
            inputs_description=vqa_accuracy.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, **options):
        return vqa_accuracy(predictions, references, **options)
