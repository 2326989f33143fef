"""Start a Coordformer from the weights of ProteinMPNN."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.configuration_coordformer import BACKBONE, CoordformerConfig
from ..model.modeling_coordformer import CoordformerForMaskedLM
from ..model.processing_coordformer import VOCABULARY
from .weights import NO_LOGIT, check_fields, read_weights

ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
READ_AS_X = ("B", "U", "Z", "O", "<unk>")  # residues that are none of the twenty
MODEL, NUM_NEIGHBORS = "model_state_dict", "num_edges"  # what the published files hold

# Features of an edge: of the separation along the chain, then of each distance, then with C-alphas of orientations.
POSITIONS, RBF, ORIENTATIONS = 16, 16, 7
# The distances in ProteinMPNN's order, receiver first: of C-alphas before, itself and after; of N, CA (a), C, O and CB.
# Here they are in the order of rows and columns.
ATOMS = {("CA",): "bia", BACKBONE: "nacob"}
PAIRS = {
    ("CA",): "ii bb aa bi ba ib ia ab ai",
    BACKBONE: "aa nn cc oo bb an ac ao ab nc no nb bc bo oc na ca oa ba cn on bn cb ob co",
}
# Parts of a layer, and what they are called here. The first layer of a message is split by what it reads.
LAYER_PARTS = {
    "W1": "message",
    "W2": "message.hidden",
    "W3": "message.output",
    "norm1": "message_norm",
    "dense.W_in": "intermediate",
    "dense.W_out": "output",
    "norm2": "output_norm",
}
ENCODER_PARTS = LAYER_PARTS | {
    "W11": "edge_message",
    "W12": "edge_message.hidden",
    "W13": "edge_message.output",
    "norm3": "edge_norm",
}
OTHER_PARTS = {"features.norm_edges": "features.norm", "W_e": "features.output"}
# Layers whose weights are not taken as they are.
REMADE = ("features.edge_embedding.weight", "features.embeddings.linear.weight", "features.embeddings.linear.bias",
          "W_s.weight", "W_out.weight", "W_out.bias")  # fmt: skip
# Weights of the published files that no output depends on.
IDLE = ("W_v.", "features.node_embedding.", "features.norm_nodes.")

# It asks for its text to go with the weights.
LICENSE = """MIT License

Copyright (c) 2022 Justas Dauparas

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
LICENSE_FILE = "ProteinMPNN-LICENSE"  # of a model trained from these weights

# README.md of a converted folder.
CARD = """---
library_name: transformers
license: mit
tags: [coordformer, protein, protein-structure]
pipeline_tag: fill-mask
---

# ProteinMPNN, {file}

Weights of ProteinMPNN as a masked language model that `AutoModelForMaskedLM` of Transformers loads. Made by
`coordformer convert --kind proteinmpnn` of the published file, see <https://github.com/dauparas/ProteinMPNN>; nothing
was trained.

J. Dauparas et al., Robust deep learning-based protein sequence design using ProteinMPNN, Science 378, 49 (2022),
<https://doi.org/10.1126/science.add2187>.

## License

The weights, also where they were trained further, are under the MIT License; the code of coordformer is under the
Apache License, Version 2.0.

{license}"""


def from_proteinmpnn(path_or_state_dict: str | Path | Mapping[str, Any], **overrides: Any) -> CoordformerForMaskedLM:
    """Make a Coordformer of ProteinMPNN's weights (Dauparas et al. 2022).

    It has the same layers and is a masked language model, see `coordformer.model.proteinmpnn`: a masked residue has the
    probabilities that ProteinMPNN gives to it. The weights say whether they read C-alphas or N, CA, C and O, and how
    many layers there are.

    Args:
        path_or_state_dict: a published file, such as `v_48_020.pt` of `ca_model_weights`, `vanilla_model_weights` or
            `soluble_model_weights`, which is read with `weights_only=True`; or what it holds, or the weights alone.
        **overrides: fields of `CoordformerConfig` that leave the shapes of the weights alone. `num_neighbors` is the
            file's, or else 48; `hidden_dropout_prob` is 0.1, as ProteinMPNN was trained.

    Returns:
        A `CoordformerForMaskedLM` in evaluation mode, in float32. ProteinMPNN's X is ours, and also read for B, U, Z, O
        and `<unk>`. Tokens that it does not have are never predicted: their logit is -10,000.

    Raises:
        OSError: there is no such file.
        ValueError: the weights are no ProteinMPNN's, or an override does not fit them.
    """
    check_fields(overrides)
    source = path_or_state_dict
    content = source if isinstance(source, Mapping) else read_weights(source)
    content = content if isinstance(content, Mapping) else {}
    theirs, neighbors = content.get(MODEL, content), content.get(NUM_NEIGHBORS, 48)
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith(IDLE)}
    fields = _fields(theirs)
    given = {"encoder_type": "proteinmpnn", "num_neighbors": neighbors, "hidden_dropout_prob": 0.1}
    model = CoordformerForMaskedLM(CoordformerConfig(**fields | given | overrides))
    weights = _translate(theirs, fields["coordinate_atoms"], fields["hidden_size"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The weights of ProteinMPNN do not fit, with the overrides {overrides}: {error}") from error
    return model.eval()


def _fields(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of the config, from names and shapes of the weights."""
    layers = {
        part: len({name.split(".")[1] for name in theirs if name.startswith(f"{part}_layers.")})
        for part in ("encoder", "decoder")
    }
    states, edges = theirs.get("encoder_layers.0.dense.W_in.weight"), theirs.get(REMADE[0])
    read = 0 if edges is None else edges.shape[-1] - POSITIONS
    atoms = {RBF * 9 + ORIENTATIONS: ("CA",), RBF * 25: BACKBONE}.get(read)
    if atoms is None or states is None or not all(layers.values()) or not theirs.keys() >= {*REMADE}:
        raise ValueError(
            "These are no weights of ProteinMPNN; give a file of its ca_model_weights, vanilla_model_weights or "
            f"soluble_model_weights, and not one with {', '.join(map(str, list(theirs)[:3])) or 'anything else'}."
        )
    return {
        "hidden_size": states.shape[1],
        "intermediate_size": states.shape[0],
        "num_hidden_layers": layers["encoder"],
        "num_decoder_layers": layers["decoder"],
        "coordinate_atoms": atoms,
    }


def _translate(theirs: dict[str, Tensor], atoms: tuple[str, ...], width: int) -> dict[str, Tensor]:
    """The weights under Coordformer's names."""
    front = "coordformer.proteinmpnn."
    ours: dict[str, Tensor] = {}
    for name in theirs.keys() - {*REMADE}:
        module, _, kind = name.rpartition(".")
        stack, _, rest = module.partition("_layers.")
        number, _, part = rest.partition(".")
        if stack in ("encoder", "decoder"):
            to = f"{front}{stack}.{number}.{(ENCODER_PARTS if stack == 'encoder' else LAYER_PARTS).get(part, part)}"
        else:
            to = front + OTHER_PARTS.get(module, module)
        if part not in ("W1", "W11"):
            ours[f"{to}.{kind}"] = theirs[name]
        elif kind == "bias":
            ours[f"{to}.receiver.bias"] = theirs[name]
        else:
            read = ("receiver", "edge", "sender") if stack == "encoder" else ("receiver", "edge", "letter", "sender")
            for input_, columns in zip(read, theirs[name].split(width, dim=1), strict=True):
                ours[f"{to.removesuffix('.message') if input_ == 'letter' else to}.{input_}.weight"] = columns
    geometry = theirs[REMADE[0]]
    along, geometry = geometry[:, :POSITIONS], geometry[:, POSITIONS:]
    # The separation is one-hot, and goes through two linear layers: rows of the product of these.
    ours[f"{front}features.separation.weight"] = (along @ theirs["features.embeddings.linear.weight"]).T.contiguous()
    ours[f"{front}features.geometry.bias"] = along @ theirs["features.embeddings.linear.bias"]
    pairs, letters = PAIRS[atoms].split(), ATOMS[atoms]
    order = [pairs.index(receiver + sender) for receiver in letters for sender in letters]
    distances = geometry[:, : RBF * len(pairs)].unflatten(1, (len(pairs), RBF))[:, order].flatten(1)
    ours[f"{front}features.geometry.weight"] = torch.cat((distances, geometry[:, RBF * len(pairs) :]), dim=1)

    known = {letter: number for number, letter in enumerate(ALPHABET)}
    known |= dict.fromkeys(READ_AS_X, known["X"])
    reads = torch.tensor([token in known for token in VOCABULARY])
    writes = torch.tensor([token in [*ALPHABET] for token in VOCABULARY])
    rows = [known.get(token, 0) for token in VOCABULARY]
    ours[f"{front}word_embeddings.weight"] = theirs["W_s.weight"][rows].masked_fill(~reads.unsqueeze(1), 0.0)
    ours["lm_head.weight"] = theirs["W_out.weight"][rows].masked_fill(~writes.unsqueeze(1), 0.0)
    ours["lm_head.bias"] = theirs["W_out.bias"][rows].masked_fill(~writes, NO_LOGIT)
    return ours
