"""The library's model and configuration tests, over images with texts and over texts alone."""

import unittest

import pytest
import torch
from tiny import images, tiny_config, tiny_model

from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAForSequenceClassification, OFAModel

from .library import common_tests


modeling = common_tests("test_modeling_common")
configuration = common_tests("test_configuration_common")

# By name, the common tests know which classes have which head: without these, they pass over ours in silence.
for table, name in (
    ("MODEL_MAPPING_NAMES", "OFAModel"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "OFAForConditionalGeneration"),
    ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "OFAForConditionalGeneration"),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "OFAForSequenceClassification"),
):
    setattr(modeling, table, {**getattr(modeling, table), "ofa": name})


class OFAModelTester:
    """Tiny models and inputs for the common tests, which read these attributes."""

    batch_size = 2
    seq_length = 7
    decoder_seq_length = 7
    image_size = 32
    num_patches = 4
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32

    def __init__(self, parent: unittest.TestCase, has_images: bool):
        self.parent = parent
        self.has_images = has_images
        self.encoder_seq_length = self.key_length = self.seq_length + (self.num_patches if has_images else 0)

    def get_config(self) -> OFAConfig:
        return tiny_config(dropout=0.1)

    def prepare_config_and_inputs_for_common(self) -> tuple[OFAConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        input_ids = torch.randint(4, config.vocab_size, (self.batch_size, self.seq_length))
        decoder_input_ids = torch.randint(4, config.vocab_size, (self.batch_size, self.decoder_seq_length))
        input_ids[:, 0] = decoder_input_ids[:, 0] = config.bos_token_id
        input_ids[:, -1] = config.eos_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": torch.ones_like(decoder_input_ids),
        }
        if self.has_images:
            inputs["pixel_values"] = images(self.batch_size, self.image_size, self.image_size)
            # One row of image codes and one of text, so that every parameter of the decoder has something to do.
            inputs["code_masks"] = torch.tensor([True, False])
        return config, inputs


class OFAModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (OFAModel, OFAForConditionalGeneration, OFAForSequenceClassification)
    additional_model_inputs = ["pixel_values"]
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True
    has_images = True

    @unittest.skip("the source distribution has no GenerationTesterMixin; test_generation_ofa.py stands for it")
    def test_generation_tester_mixin_inheritance(self):
        pass

    def setUp(self):
        self.model_tester = OFAModelTester(self, self.has_images)


class OFATextModelTest(OFAModelTest):
    has_images = False
    # These look at no inputs: once, above, is enough.
    test_bc_torch_dtype = None
    test_can_init_all_missing_weights = None
    test_all_params_have_gradient = False  # nothing to see for the ResNet and the tables of image positions


class OFAConfigTest(unittest.TestCase):
    def test_config(self):
        configuration.ConfigTester(self, config_class=OFAConfig, d_model=37).run_common_tests()


@pytest.mark.slow
@pytest.mark.parametrize("has_images", [True, False], ids=["image", "text"])
@pytest.mark.parametrize("cls", OFAModelTest.all_model_classes)
def test_a_model_exports_with_shapes_that_vary(cls: type, has_images: bool):
    """In place of the library's `ExportTesterMixin`, which the source distribution lacks."""
    exporter = pytest.importorskip(
        "transformers.exporters.exporter_dynamo", reason="this transformers has no exporter"
    )
    model = tiny_model(cls)
    _, inputs = OFAModelTester(unittest.TestCase(), has_images).prepare_config_and_inputs_for_common()
    inputs.pop("code_masks", None)
    exported = exporter.DynamoExporter().export(model, dict(inputs), config=exporter.DynamoConfig(dynamic=True))
    shorter = {name: value if name == "pixel_values" else value[:, :5] for name, value in inputs.items()}
    with torch.no_grad():
        for some in (inputs, shorter):
            torch.testing.assert_close(exported(**some)[0], model(**some)[0], rtol=1e-4, atol=1e-5)
