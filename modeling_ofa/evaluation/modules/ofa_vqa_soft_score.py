"""Scores answers by their soft labels: an `evaluate` module around `modeling_ofa.evaluation.vqa_soft_score`."""

import datasets
import evaluate

from modeling_ofa.evaluation import vqa_soft_score


_CITATION = """\
@inproceedings{wang2022ofa,
  title={OFA: Unifying architectures, tasks, and modalities through a simple sequence-to-sequence learning framework},
  author={Wang, Peng and Yang, An and Men, Rui and Lin, Junyang and Bai, Shuai and Li, Zhikang and Ma, Jianxin and
    Zhou, Chang and Zhou, Jingren and Yang, Hongxia},
  booktitle={International Conference on Machine Learning},
  year={2022}
}
"""


class OFAVQASoftScore(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="The score of OFA's own VQA validation: the soft label of the very answer.",
            citation=_CITATION,
            inputs_description=vqa_soft_score.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(
                        {"answer": datasets.Value("string"), "score": datasets.Value("float64")}
                    ),
                }
            ),
        )

    def _compute(self, predictions, references, **options):
        weighted = [{one["answer"]: one["score"] for one in answers} for answers in references]
        return vqa_soft_score(predictions, weighted, **options)
