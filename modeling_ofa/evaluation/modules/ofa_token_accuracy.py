"""Scores image codes: an `evaluate` module around `modeling_ofa.evaluation.token_accuracy`."""

import datasets
import evaluate

from modeling_ofa.evaluation import token_accuracy


_CITATION = """\
@inproceedings{wang2022ofa,
  title={OFA: Unifying architectures, tasks, and modalities through a simple sequence-to-sequence learning framework},
  author={Wang, Peng and Yang, An and Men, Rui and Lin, Junyang and Bai, Shuai and Li, Zhikang and Ma, Jianxin and
    Zhou, Chang and Zhou, Jingren and Yang, Hongxia},
  booktitle={International Conference on Machine Learning},
  year={2022}
}
"""


class OFATokenAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy of tokens, place by place, such as image codes.",
            citation=_CITATION,
            inputs_description=token_accuracy.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("int64")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, **options):
        return token_accuracy(predictions, references, **options)
