"""Scores captions with COCO's arithmetic: an `evaluate` module around `modeling_ofa.evaluation.coco_caption`."""

import datasets
import evaluate

from modeling_ofa.evaluation import coco_caption


_CITATION = """\
@article{chen2015microsoft,
  title={Microsoft COCO captions: Data collection and evaluation server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Doll{\\'a}r,
    Piotr and Zitnick, C. Lawrence},
  journal={arXiv preprint arXiv:1504.00325},
  year={2015}
}
"""


class OFACocoCaption(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="COCO's caption scores: CIDEr-D, BLEU-1 to 4, ROUGE-L, and METEOR where there is Java.",
            citation=_CITATION,
            inputs_description=coco_caption.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, **options):
        return coco_caption(predictions, references, **options)
