#!/usr/bin/env bash
# Version:  transformers 5.23.0, torch 2.13.0 (CPU)
# Behavior: from_pretrained without dtype takes the one in the folder's config. Of a folder in bfloat16 the weights that
#           are trained are bfloat16 as well, and AdamW at 5e-5 moves few of them: an update is about the learning rate,
#           and half the distance between two bfloat16 numbers near 0.05 is 1.2e-4. No warning. `"dtype": "float32"` in
#           config.json, beside the same file of weights, makes it load in float32, where all of them move.
# A guess:  float32, as it was the default before version 5; or a warning when such weights are trained.
# Why:      fine-tuning of a checkpoint that was saved in bfloat16 to be small seems to learn nothing.
# Source:   PreTrainedModel.from_pretrained, dtype="auto"; the output below.
# Run:      bash findings/transformers_folders_in_bfloat16_hardly_learn.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 2>/dev/null
FOLDER="$folder/model" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, EsmConfig, EsmForMaskedLM, logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder = Path(os.environ["FOLDER"])
torch.manual_seed(0)
config = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=64, num_hidden_layers=2,
                   num_attention_heads=4, intermediate_size=128, initializer_range=0.05)
EsmForMaskedLM(config).bfloat16().save_pretrained(folder)


def moved() -> tuple[torch.dtype, float]:
    """The dtype of what is loaded, and the share of the encoder's weights that ten updates move."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    weights = [weight for name, weight in model.named_parameters() if "encoder" in name and weight.dim() == 2]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    tokens = torch.randint(4, 24, (8, 40))
    for _ in range(10):
        model(input_ids=tokens, labels=torch.arange(8) % 2).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = sum(int((weight != old).sum()) for weight, old in zip(weights, before, strict=True))
    return weights[0].dtype, changed / sum(weight.numel() for weight in weights)


found = {"as saved": moved()}
fields = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(fields | {"dtype": "float32"}))
found["dtype float32 in config.json"] = moved()
for name, (dtype, share) in found.items():
    print(f"{name}: {dtype}, {100 * share:.0f} % of the weights move")
assert found["as saved"][0] == torch.bfloat16 and found["as saved"][1] < 0.5
assert found["dtype float32 in config.json"][0] == torch.float32 and found["dtype float32 in config.json"][1] > 0.95
PYTHON
