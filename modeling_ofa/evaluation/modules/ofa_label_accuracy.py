"""Scores labels: an `evaluate` module around `modeling_ofa.evaluation.label_accuracy`."""

import datasets
import evaluate

from modeling_ofa.evaluation import label_accuracy


_CITATION = """\
@inproceedings{wang2022ofa,
  title={OFA: Unifying architectures, tasks, and modalities through a simple sequence-to-sequence learning framework},
  author={Wang, Peng and Yang, An and Men, Rui and Lin, Junyang and Bai, Shuai and Li, Zhikang and Ma, Jianxin and
    Zhou, Chang and Zhou, Jingren and Yang, Hongxia},
  booktitle={International Conference on Machine Learning},
  year={2022}
}
"""


class OFALabelAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy of labels, such as SNLI-VE's and ImageNet's.",
            citation=_CITATION,
            inputs_description=label_accuracy.__doc__,
            # one label a sample, or a ranked list of labels
            features=[
                datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
                datasets.Features(
                    {"predictions": datasets.List(datasets.Value("string")), "references": datasets.Value("string")}
                ),
            ],
        )

    def _compute(self, predictions, references, **options):
        return label_accuracy(predictions, references, **options)
