"""The tests that Transformers runs on its own models hold for ours, but for those listed here."""

import json
import os
import re
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
import transformers
from conftest import make_config

from coordformer import CoordformerForMaskedLM
from coordformer.model.coordinates import FeatureLinear

ROOT = Path(__file__).parents[2]
VERSION = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]

NOT_OURS = "no such part: not composite, no decoder, experts, sliding windows or tensor parallel plan"
NO_GPU = "needs a GPU, which these runs do without"
NOT_INSTALLED = "needs a package that is not installed: flash-attn, kernels or deepspeed"
OTHER_INPUTS = "of processors of pictures, films, sounds or chats"
PROTEINS = "the processor takes proteins and names its arguments; there is no `text` and no `text_kwargs`"
NO_MAPS = "contacts are added up while the encoder runs: no attention map is kept"
NOT_PASSED = {
    "*.test_attn_implementation_composite_models": NOT_OURS,
    "*.test_can_set_attention_dynamically_composite_model": NOT_OURS,
    "*.test_causal_lm_loss_honors_shift_labels": NOT_OURS,
    "*.test_eager_matches_batched_and_grouped_inference_*": NOT_OURS,
    "*.test_encoder_decoder_loss_no_double_shift": NOT_OURS,
    "*.test_moe_models_record_router_logits": NOT_OURS,
    "*.test_output_router_logits_from_config": NOT_OURS,
    "*.test_reverse_loading_mapping": "weights are saved with their names of today, not with those of version 0.1.0; "
    "test_old_checkpoints.py writes the old ones",
    "*.test_sdpa_can_dispatch_composite_models": NOT_OURS,
    "*.test_sliding_window_mask": NOT_OURS,
    "*.test_tied_head_has_a_tp_plan_entry": NOT_OURS,
    "*.test_tp_plan_matches_params": NOT_OURS,
    "*.test_can_load_with_device_context_manager": NO_GPU,
    "*.test_can_load_with_global_device_set": NO_GPU,
    "*.test_cpu_offload": NO_GPU,
    "*.test_disk_offload_*": NO_GPU,
    "*.test_flex_attention_with_grads": f"{NO_GPU}; test_modeling.py compares flex attention",
    "*.test_model_parallelism": NO_GPU,
    "*.test_sdpa_can_compile_dynamic": f"{NO_GPU}; test_modeling.py compiles",
    "*.test_sdpa_can_dispatch_on_flash": NO_GPU,
    "*.test_torch_compile_for_training": f"{NO_GPU}; test_modeling.py compiles",
    "*.test_flash_attn_*": NOT_INSTALLED,
    "*.test_kernels_can_load_without_crashing": NOT_INSTALLED,
    "*_with_deepspeed*": NOT_INSTALLED,
    "*.test_eager_matches_sdpa_inference_*_output_attentions": "asks for `output_attentions` by name in `forward`, "
    "which takes it among the others; test_modeling.py looks at the maps",
    "*.test_model_rope_*": "ESM's rotary positions know no scaling and no part of a head",
    "*.test_vision_axial_rope": "ESM's rotary positions have one axis",
    "*.test_resize_position_vector_embeddings": "rotary positions have no table",
    "ContactPredictionTest.test_attention_outputs": NO_MAPS,
    "ContactPredictionTest.test_retain_grad_hidden_states_attentions": NO_MAPS,
    "ContactPredictionTest.test_enable_input_require_grads_with_gradient_checkpointing": NO_MAPS,
    "ContactPredictionTest.test_inputs_embeds": "cropping <cls> and <eos> takes `input_ids`",
    **{
        f"{name}.test_keep_in_fp32_modules_exist": "names the modules of all configs; DistanceBiasTest has them all"
        for name in ("PlainTest", "PointsTest*", "SequenceEncoderTest", "ContactPredictionTest")
    },
    **{
        f"{name}.test_training_gradient_checkpointing_use_reentrant_true": "refused: reentrant checkpoints lead no "
        "gradient to what layers get by name"
        for name in ("DistanceBiasTest", "PointsTest*")
    },
    "ProcessorTest.*_images": OTHER_INPUTS,
    "ProcessorTest.*_videos": OTHER_INPUTS,
    "ProcessorTest.*_audio": OTHER_INPUTS,
    "ProcessorTest.test_*chat_template*": OTHER_INPUTS,
    "ProcessorTest.test_args_overlap_kwargs": OTHER_INPUTS,
    "ProcessorTest.test_get_num_multimodal_tokens_matches_processor_call*": OTHER_INPUTS,
    "ProcessorTest.test_processor_text_has_no_visual": OTHER_INPUTS,
    "ProcessorTest.test_processor_with_multiple_inputs": OTHER_INPUTS,
    "ProcessorTest.test_replacement_offsets": OTHER_INPUTS,
    "ProcessorTest.test_call_arguments_default_none": PROTEINS,
    "ProcessorTest.test_call_arguments_not_in_processor_kwargs": PROTEINS,
    "ProcessorTest.test_flat_kwarg_applied_when_modality_dict_lacks_it": PROTEINS,
    "ProcessorTest.test_if_input_has_mismatching_tokens_and_mm_data": PROTEINS,
    "ProcessorTest.test_model_input_names": PROTEINS,
    "ProcessorTest.test_processor_from_and_save_pretrained*": "a saved processor also has `auto_map`, as remote code "
    "asks",
    "TokenizerTest.test_chat_template_save_loading": OTHER_INPUTS,
    "TokenizerTest.test_conversion_reversible": "skipped unless RUN_SLOW is set, which would run much else",
    "TokenizerTest.test_integration*": "compares with what a tokenizer on the Hub gives",
    "TokenizerTest.test_internal_consistency": "spaces between residues are no tokens and do not come back",
    "SequenceEncoderTest.test_base_model_prefix_loads_base_weights": "the encoder in front is a base model, too",
    "SequenceEncoderTest.test_config_attn_implementation_setter": "its config says what it was made of; what runs has "
    "one of its own",
    "SequenceEncoderTest.test_enable_input_require_grads_with_gradient_checkpointing": "what is in front is frozen",
    "SequenceEncoderTest.test_load_with_mismatched_shapes": "the classifier has no weight as large as the vocabulary",
}


@pytest.fixture(scope="module")
def suite(pytestconfig):
    """A folder with the package `transformers_tests`: what lies in tests/ of transformers' source distribution."""
    if transformers.__version__ != VERSION:
        pytest.skip(f"what cannot apply is listed for transformers {VERSION}, this is {transformers.__version__}")
    pytest.importorskip("parameterized")
    cache = os.environ.get("COORDFORMER_TEST_CACHE") or pytestconfig.cache.mkdir("coordformer")
    folder = Path(cache) / f"transformers-{VERSION}"
    package = folder / "transformers_tests"
    if not (package / "__init__.py").exists():
        package.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                   "--dest", str(folder), f"transformers=={VERSION}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"transformers' source distribution cannot be fetched: {done.stderr.strip()[-300:]}")
        with tarfile.open(folder / f"transformers-{VERSION}.tar.gz") as archive:
            for member in archive:
                if re.fullmatch(r"[^/]+/tests/test_\w+\.py", member.name):
                    member.name = Path(member.name).name
                    archive.extract(member, package, filter="data")
        (package / "__init__.py").touch()  # last: it says that all are there
    return folder


@pytest.mark.slow
def test_transformers_own_tests_hold(suite, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(suite)]),
        "CUDA_VISIBLE_DEVICES": "",  # the list is of a machine without a GPU
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = str(Path(__file__).parent / "transformers_suite.py")
    command = [sys.executable, "-W", "ignore", script, str(tmp_path / "outcomes")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads((tmp_path / "outcomes").read_text())
    not_passed = {name: outcome for name, outcome in outcomes.items() if outcome != "passed"}
    unexpected = {
        name: outcome for name, outcome in not_passed.items() if not any(fnmatch(name, each) for each in NOT_PASSED)
    }
    assert unexpected == {}
    # Nor is anything listed that passes, or is no longer there.
    listed = {each: [name for name in outcomes if fnmatch(name, each)] for each in NOT_PASSED}
    assert [each for each, names in listed.items() if not names or not not_passed.keys() >= set(names)] == []
    assert {
        "PlainTest.test_save_load",
        "PlainTest.test_training_overfit",
        "PointsTest7M.test_save_load",
        "TokenizerTest.test_save_and_load_tokenizer",
        "ProcessorTest.test_save_load_pretrained_additional_features",
    } <= outcomes.keys() - not_passed.keys()


@pytest.mark.parametrize("start", [CoordformerForMaskedLM, partial(CoordformerForMaskedLM.from_pretrained, None)])
def test_weights_that_a_checkpoint_lacks_start_as_in_a_new_model(start):
    """One of the suite's findings, where the suite cannot be fetched: points began with torch's own start, or none."""
    config = make_config(num_qk_points=4, num_neighbors=6)
    model = start(config) if start is CoordformerForMaskedLM else start(config=config, state_dict={})
    found = {name for name, module in model.named_modules() if isinstance(module, FeatureLinear)}
    assert len(found) == 2 * 4 + 1
    for name in found:
        layer = model.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(config.initializer_range, rel=0.1) and not layer.bias.any()
