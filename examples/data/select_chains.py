"""Select the chains that ship in this folder.

    python examples/data/select_chains.py CHAINS.parquet --output examples/data/chains.parquet

CHAINS.parquet is in the compact layout (`coordformer.data.rows.read_compact`) with the columns source, cluster30,
cluster50 and split. Taken are chains of at most 256 residues from promod3-data, one per cluster: for training one per
50 % identity, held out one per 30 % identity; no cluster at 30 % has chains on both sides.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ["id", "sequence", "ca_x", "ca_y", "ca_z", "source", "cluster30", "split"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chains", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "chains.parquet")
    parser.add_argument("--train", type=int, default=3200, help="chains to train on")
    parser.add_argument("--valid", type=int, default=400, help="chains held out")
    parser.add_argument("--max_length", type=int, default=256, help="residues")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    table = pq.read_table(arguments.chains)
    columns = {name: table[name].to_numpy() for name in ("source", "length", "cluster30", "cluster50", "split")}
    usable = (columns["source"] == "promod3") & (columns["length"] <= arguments.max_length)
    rng = np.random.default_rng(arguments.seed)
    picked = []
    for split, cluster, number in (("train", "cluster50", arguments.train), ("valid", "cluster30", arguments.valid)):
        rows = rng.permutation(np.flatnonzero(usable & (columns["split"] == split)))
        _, first = np.unique(columns[cluster][rows], return_index=True)
        picked.append(rng.permutation(rows[first])[:number])
    indices = np.sort(np.concatenate(picked))
    train, valid = (set(columns["cluster30"][rows]) for rows in picked)
    assert not train & valid, "a cluster has chains on both sides"
    pq.write_table(
        table.take(pa.array(indices)).select(COLUMNS).replace_schema_metadata(None),
        arguments.output,
        compression="zstd",
        compression_level=22,
        use_dictionary=["source", "split"],
    )
    print(
        f"{len(picked[0])} chains to train on, {len(picked[1])} held out, {columns['length'][indices].sum()} residues, "
        f"{arguments.output.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
