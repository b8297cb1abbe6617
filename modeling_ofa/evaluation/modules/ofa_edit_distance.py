"""Scores read texts: an `evaluate` module around `modeling_ofa.evaluation.edit_distance`."""

import datasets
import evaluate

from modeling_ofa.evaluation import edit_distance


_CITATION = """\
@inproceedings{wang2022ofa,
  title={OFA: Unifying architectures, tasks, and modalities through a simple sequence-to-sequence learning framework},
  author={Wang, Peng and Yang, An and Men, Rui and Lin, Junyang and Bai, Shuai and Li, Zhikang and Ma, Jianxin and
    Zhou, Chang and Zhou, Jingren and Yang, Hongxia},
  booktitle={International Conference on Machine Learning},
  year={2022}
}
"""


class OFAEditDistance(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Exact match, character error rate and normalised edit distance of read texts.",
            citation=_CITATION,
            inputs_description=edit_distance.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, **options):
        return edit_distance(predictions, references, **options)
