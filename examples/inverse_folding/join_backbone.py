"""Make a data set of backbones of one of C-alphas and one of the other atoms.

    python examples/inverse_folding/join_backbone.py --chains CHAINS.parquet --backbone BACKBONE.parquet \
        --output BACKBONES.parquet [--keep_all]

--chains is a data set of C-alphas that `coordformer train` reads, with its splits and clusters. --backbone has the
column `id` and for each of the atoms N, C and O three lists of whole hundredths of an Å (`n_x`, `n_y`, `n_z` ...),
relative to the residue's C-alpha, -32768 where not observed. Chains of both are written, with the atoms N, CA, C and O,
and with --keep_all the others, too, for models that read C-alphas alone.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coordformer.data.files import write_atomically
from coordformer.data.rows import SCHEMA, load_rows
from coordformer.model.configuration_coordformer import BACKBONE

UNOBSERVED = -32768
BESIDE_ALPHA = [atom for atom in BACKBONE if atom != "CA"]


def join(chains: pa.Table, offsets: pa.Table) -> pa.Table:
    """Rows of `SCHEMA` with the atoms of `BACKBONE`, of rows with C-alphas and of the other atoms' offsets by id.

    Raises:
        ValueError: no chain is in both, or a chain has another number of residues in one of them, or other atoms.
    """
    places = {name: place for place, name in enumerate(chains["id"].to_pylist())}
    found = [place for place, name in enumerate(offsets["id"].to_pylist()) if name in places]
    if not found:
        raise ValueError("No chain of --backbone is in --chains; give two files of the same chains.")
    offsets = offsets.take(found)
    chains = chains.take([places[name] for name in offsets["id"].to_pylist()]).combine_chunks()
    lengths = np.asarray(chains["length"])
    if (many := np.flatnonzero(np.asarray(chains["coords"].combine_chunks().value_lengths()) != 3 * lengths)).size:
        raise ValueError(
            f"Chain {chains['id'][int(many[0])]} of --chains has more atoms than the C-alpha; give its trace."
        )
    coords = np.empty((lengths.sum(), len(BACKBONE), 3), dtype=np.float32)
    alphas = coords[:, BACKBONE.index("CA")] = chains["coords"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    for atom in BESIDE_ALPHA:
        for axis, name in enumerate(f"{atom.lower()}_{letter}" for letter in "xyz"):
            column = offsets[name].combine_chunks()
            counts = np.asarray(column.value_lengths())
            if (wrong := np.flatnonzero(counts != lengths)).size:
                chain, count, residues = offsets["id"][int(wrong[0])], counts[wrong[0]], lengths[wrong[0]]
                raise ValueError(f"Chain {chain}: {count} values in {name} for {residues} residues.")
            values = column.flatten().to_numpy()
            known = np.where(values == UNOBSERVED, np.float32("nan"), values.astype(np.float32) / np.float32(100))
            coords[:, BACKBONE.index(atom), axis] = alphas[:, axis] + known
    coords[np.isnan(coords).any(axis=-1)] = np.nan  # an atom is observed or not
    ends = 3 * len(BACKBONE) * np.append(0, lengths.cumsum())
    seen = np.append(0, np.isfinite(coords).any(axis=(1, 2)).cumsum())[np.append(0, lengths.cumsum())]
    made = {
        "atoms": pa.array([list(BACKBONE)] * len(chains), SCHEMA.field("atoms").type),
        "coords": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(coords.reshape(-1))),
        "observed": pa.array(np.diff(seen), pa.int32()),
    }
    for name, column in made.items():
        chains = chains.set_column(chains.column_names.index(name), SCHEMA.field(name), column)
    return chains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chains", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--backbone", required=True, metavar="BACKBONE.parquet")
    parser.add_argument("--output", required=True, type=Path, metavar="BACKBONES.parquet")
    parser.add_argument("--keep_all", action="store_true", help="chains without a backbone, too, as they are")
    arguments = parser.parse_args()
    rows = load_rows(arguments.chains).data.table.cast(SCHEMA)
    try:
        joined = join(rows, pq.read_table(arguments.backbone))
    except ValueError as error:
        parser.error(str(error))
    print(f"{len(joined):,} of {len(rows):,} chains have a backbone: {arguments.output}")
    if arguments.keep_all:
        others = pc.invert(pc.is_in(rows["id"], joined["id"].combine_chunks()))
        joined = pa.concat_tables([joined, rows.filter(others)])
    write_atomically(arguments.output, lambda path: pq.write_table(joined, path))


if __name__ == "__main__":
    main()
