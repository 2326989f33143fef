"""Run the tests that Transformers runs on its own models on ours; started by test_transformers_suite.py.

transformers_suite.py OUTPUT

The package `transformers_tests`, the files of tests/ in transformers' source distribution, has to be importable. Writes
{test: "passed", or why not} as JSON.
"""

import copy
import json
import sys
import tempfile
import unittest
from pathlib import Path
from types import ModuleType

import torch
from conftest import make_config
from transformers import EsmConfig, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto

from coordformer import (
    CoordformerConfig,
    CoordformerForContactPrediction,
    CoordformerForMaskedLM,
    CoordformerForSequenceClassification,
    CoordformerForTokenClassification,
    CoordformerModel,
    CoordformerProcessor,
    build_tokenizer,
)

CARDS = Path(__file__).parents[2] / "hub_cards"

# What these files import of each other's neighbors, which the source distribution leaves out.
for name, members in {
    "exporters": {},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation": {},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils": {},
    "utils.test_configuration_utils": {"config_common_kwargs": {"return_dict": False, "num_labels": 5}},
    ".fetch_hub_objects_for_ci": {"url_to_local_path": str},
}.items():
    module = ModuleType(name[1:] if name.startswith(".") else f"transformers_tests.{name}")
    vars(module).update(members)
    sys.modules[module.__name__] = module

from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from transformers_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402
from transformers_tests.test_tokenization_common import TokenizerTesterMixin  # noqa: E402
from transformers_tests.test_training_mixin import TrainingTesterMixin  # noqa: E402

# By these lists of names they tell which class is a base model and which labels a head takes.
for mapping, cls in (
    (modeling_auto.MODEL_MAPPING_NAMES, CoordformerModel),
    (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, CoordformerForMaskedLM),
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, CoordformerForSequenceClassification),
    (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, CoordformerForTokenClassification),
):
    mapping["coordformer"] = cls.__name__


class CoordformerTester:
    """Small configs and batches, under the names that the mixins ask for."""

    is_training = True
    batch_size, seq_length = 4, 9
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    causal_lm_class = CoordformerForMaskedLM  # the mixin's name for the head that is trained on token labels

    def __init__(self, fields):
        self.fields = fields

    def get_config(self):
        return make_config(hidden_size=self.hidden_size, intermediate_size=37, **copy.deepcopy(self.fields))

    def prepare_config_and_inputs_for_common(self):
        config, shape = self.get_config(), (self.batch_size, self.seq_length)
        coords = 10 * torch.randn(*shape, 3)
        coords[0, :3] = torch.nan
        mask = torch.ones(shape, dtype=torch.long)
        return config, {"input_ids": torch.randint(4, 32, shape), "attention_mask": mask, "coords": coords}


class PlainTest(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    """The paper's model: what the config's defaults give."""

    all_model_classes = (
        CoordformerModel,
        CoordformerForMaskedLM,
        CoordformerForSequenceClassification,
        CoordformerForTokenClassification,
    )
    additional_model_inputs = ("coords",)
    fields: dict = {}
    model_tester = None

    def setUp(self):
        self.model_tester = CoordformerTester(self.fields)

    def test_config(self):
        ConfigTester(self, CoordformerConfig, hidden_size=32, num_attention_heads=4).run_common_tests()


class DistanceBiasTest(PlainTest):
    """With every module that a config can add to the encoder."""

    fields = {"num_distance_bins": 5, "contact_head": True, "coordinate_embedding": "quadratic", "lm_head": "linear"}


def shipped_fields(name):
    """The config of a shipped model, but for its sizes, which are the tester's, and for what says how it was saved."""
    fields = json.loads((CARDS / name / "config.json").read_text())
    sizes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    saved = {"architectures", "auto_map", "dtype", "model_type", "transformers_version"}
    assert sizes | saved <= fields.keys()
    return {name: value for name, value in fields.items() if name not in sizes | saved}


class PointsTest1M(PlainTest):
    """The layers of coordformer-1M-pdb: frames, points and plain messages."""

    fields = shipped_fields("coordformer-1M-pdb")


class PointsTest7M(PlainTest):
    """Those of coordformer-7M-pdb: the same with gated messages, and dropout."""

    fields = shipped_fields("coordformer-7M-pdb")


class SequenceEncoderTest(PlainTest):
    """Behind a frozen ESM-2."""

    esm = EsmConfig(
        vocab_size=33, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", hidden_size=16,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    fields = {"sequence_encoder": esm, "lm_head": "linear"}


class ContactPredictionTest(PlainTest):
    all_model_classes = (CoordformerForContactPrediction,)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:
            residues = self.model_tester.seq_length - 2
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, residues, residues)
        return inputs


class TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = PreTrainedTokenizerFast

    @classmethod
    def setUpClass(cls):
        cls.tokenizers_list = []
        cls.tmpdirname = tempfile.mkdtemp()
        build_tokenizer().save_pretrained(cls.tmpdirname)


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CoordformerProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer()


class Outcomes(unittest.TestResult):
    """Of each test "passed", the reason why it was skipped, or the last line of its first error."""

    def __init__(self):
        super().__init__()
        self.of: dict[str, str] = {}

    def startTest(self, test):
        self.of[self.name(test)] = "passed"

    def addSkip(self, test, reason):
        self.of[self.name(test)] = f"skipped: {reason}"

    def addFailure(self, test, error):
        self.of[self.name(test)] = f"failed: {' '.join(str(error[1]).split())[:300]}"

    addError = addFailure

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.addFailure(test, error)

    @staticmethod
    def name(test):
        test = getattr(test, "test_case", test)  # skips of a subtest are the test's
        return f"{type(test).__name__}.{test._testMethodName}"


if __name__ == "__main__":
    outcomes = Outcomes()
    unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"]).run(outcomes)
    Path(sys.argv[1]).write_text(json.dumps(outcomes.of, indent=2))
