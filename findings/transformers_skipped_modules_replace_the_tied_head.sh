#!/usr/bin/env bash
# Version:  transformers 5.23.0, bitsandbytes 0.50.2, torch 2.13.0 (CPU)
# Behavior: By default a tied output layer is not quantized. With llm_int8_skip_modules=[...] that default is gone: the
#           list is all that is skipped, the tied layer becomes one of 4 or 8 bits around the float table of the
#           embeddings, loading says nothing, and the first forward pass ends in an AssertionError without a message (4
#           bit) or "'Parameter' object has no attribute 'CB'" (8 bit). Naming the head in the list, too, mends it.
# A guess:  the list adds to what is skipped.
# Why:      whoever keeps one sensitive layer of a masked language model in float32 breaks the model by it.
# Source:   transformers/quantizers/base.py, HfQuantizer.get_modules_to_not_convert(skip_modules,
#           add_default_skips=False), which bitsandbytes, quanto and torchao share; the output below.
# Run:      bash findings/transformers_skipped_modules_replace_the_tied_head.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 \
    bitsandbytes==0.50.2 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from transformers import BitsAndBytesConfig, EsmConfig, EsmForMaskedLM

shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
special = {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1}
EsmForMaskedLM(EsmConfig(**shape, **special, position_embedding_type="rotary")).save_pretrained("tied")


def outcome(skipped, **bits):
    config = BitsAndBytesConfig(**bits, llm_int8_skip_modules=skipped)
    model = EsmForMaskedLM.from_pretrained("tied", dtype=torch.float32, quantization_config=config).eval()
    try:
        with torch.no_grad():
            model(torch.tensor([[0, 5, 6, 2]]))
        return "logits"
    except (AssertionError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
for name, bits in (("4 bit", four), ("8 bit", {"load_in_8bit": True})):
    found = [outcome(skipped, **bits) for skipped in (None, ["contact_head"], ["contact_head", "lm_head"])]
    print(f"{name}: by default {found[0]}; skipping another layer {found[1]!r}; that and the head {found[2]}")
    assert found[0] == found[2] == "logits" != found[1], "the list adds to the default now"
PYTHON
# Output seen:
#   4 bit: by default logits; skipping another layer 'AssertionError: '; that and the head logits
#   8 bit: by default logits; skipping another layer "AttributeError: 'Parameter' object has no attribute 'CB'"; that and the head logits
