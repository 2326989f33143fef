"""Select the backbones that ship in this folder: every tenth held-out chain, with N, C and O.

    python examples/data/select_backbones.py BACKBONE.parquet

BACKBONE.parquet is what examples/inverse_folding/join_backbone.py reads: of each residue the offsets of N, C and O from
its C-alpha in whole hundredths of an Å. What is written is in the compact layout, all atoms in one frame.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent
ATOMS, AXES = ("n", "c", "o"), ("x", "y", "z")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone", type=Path)
    parser.add_argument("--output", type=Path, default=FOLDER / "backbones.parquet")
    parser.add_argument("--every", type=int, default=10, help="held-out chain that is taken (default: %(default)s)")
    arguments = parser.parse_args()

    chains = pq.read_table(FOLDER / "chains.parquet")
    chains = chains.filter(pc.equal(chains["split"], "valid"))
    chains = chains.take(pa.array(range(0, len(chains), arguments.every)))
    offsets = pq.read_table(arguments.backbone, filters=pc.field("id").isin(chains["id"].combine_chunks()))
    places = [offsets["id"].to_pylist().index(name) for name in chains["id"].to_pylist()]
    offsets = offsets.take(pa.array(places))
    for name in (f"{atom}_{axis}" for atom in ATOMS for axis in AXES):
        alphas, beside = chains[f"ca_{name[-1]}"].to_pylist(), offsets[name].to_pylist()
        placed = [np.add(one, other, dtype=np.int16) for one, other in zip(alphas, beside, strict=True)]
        chains = chains.append_column(name, pa.array(placed, chains["ca_x"].type))
    pq.write_table(
        chains, arguments.output, compression="zstd", compression_level=22, use_dictionary=["source", "split"]
    )
    print(f"{len(chains)} backbones, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
