"""Files a second: `coordformer.model.structure.read_chains` against Biopython, on the mmCIF files of a folder.

    python examples/benchmarks/read_structures.py
    python examples/benchmarks/read_structures.py --folder ~/pdb --repeats 3 --output pdb.json

Both sides give the same for every chain: the deposited sequence and the C-alpha coordinates, NaN where unobserved. The
Biopython side does what a careful user writes with it: MMCIFParser, the sequence of its dictionary (the file is parsed
once), and a global alignment of the observed residues. Both run in one process, in turns; the time of a side is the
median over the repeats of the time for all files. Before the clock starts, the two results are compared.
"""

import argparse
import gzip
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from Bio.Align import PairwiseAligner
from Bio.Data.PDBData import protein_letters_3to1_extended
from Bio.PDB.MMCIFParser import MMCIFParser
from harness import take_turns, write_record

from coordformer.data.inputs import list_sources
from coordformer.model.structure import read_chains

HERE = Path(__file__).parent
Result = dict[str, tuple[str, np.ndarray]]


def with_coordformer(path: Path) -> Result:
    return {chain.id.rpartition("_")[2]: (chain.sequence, chain.coords[:, 0]) for chain in read_chains(path)}


def with_biopython(path: Path) -> Result:
    parser = MMCIFParser(QUIET=True)
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        structure = parser.get_structure(path.name, file)
    table: dict[str, list[str]] = parser._mmcif_dict
    sequences: dict[str, str] = {}
    numbers: dict[str, str] = {}
    rows = zip(*(table.get(f"_entity_poly_seq.{key}", []) for key in ("entity_id", "num", "mon_id")), strict=True)
    for entity, number, monomer in rows:
        if numbers.get(entity) != number:  # of several residue types at one position the first
            sequences[entity] = sequences.get(entity, "") + protein_letters_3to1_extended.get(monomer, "X")
        numbers[entity] = number
    entities = {
        chain: entity
        for entity, strands in zip(
            table.get("_entity_poly.entity_id", []), table.get("_entity_poly.pdbx_strand_id", []), strict=True
        )
        for chain in strands.split(",")
    }
    aligner = PairwiseAligner(mode="global", match_score=2, mismatch_score=-3, open_gap_score=-2, extend_gap_score=-0.1)
    aligner.open_end_gap_score = aligner.extend_end_gap_score = 0

    chains: Result = {}
    for chain in next(structure.get_models()):
        residues = [residue for residue in chain if "CA" in residue and residue["CA"].element == "C"]
        if not residues:
            continue
        observed = "".join(protein_letters_3to1_extended.get(residue.resname, "X") for residue in residues)
        places = np.array([residue["CA"].coord for residue in residues], dtype=np.float32)
        sequence = sequences.get(entities.get(chain.id, ""), observed)
        coords = np.full((len(sequence), 3), np.nan, dtype=np.float32)
        alignment = aligner.align(sequence, observed)[0]
        for (start, stop), (first, last) in zip(*alignment.aligned, strict=True):
            coords[start:stop] = places[first:last]
        chains[chain.id] = (sequence, coords)
    return chains


def seconds(read: Callable[[Path], Result], files: list[Path]) -> list[float]:
    """Seconds for each file."""
    times = []
    for file in files:
        start = time.perf_counter()
        read(file)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE.parent.parent / "tests" / "data" / "structures")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "read_structures.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    files = [Path(source.path) for source in list_sources([options.folder], (".cif", ".mmcif", ".pdbx"))[0]]
    if not files:
        sys.exit(f"{options.folder}: no mmCIF files; give --folder")
    sides = {"coordformer": with_coordformer, "biopython": with_biopython}

    # This also warms both sides up. They choose differently where residue types or conformers tie, and no alignment of
    # letters can know between which of two equal residues a gap falls, so agreement is counted and not required.
    same = total = 0
    for file in files:
        ours, theirs = with_coordformer(file), with_biopython(file)
        total += sum(len(sequence) for sequence, _ in ours.values())
        for name in ours.keys() & theirs.keys():
            if len(ours[name][0]) == len(theirs[name][0]):
                pairs = zip(ours[name][1], theirs[name][1], strict=True)
                same += sum(np.allclose(a, b, atol=1e-3, equal_nan=True) for a, b in pairs)

    raw = take_turns({side: partial(seconds, read, files) for side, read in sides.items()}, options.repeats)
    rates = {side: len(files) / statistics.median(map(sum, times)) for side, times in raw.items()}
    ratio = rates["coordformer"] / rates["biopython"]
    print(f"{len(files)} mmCIF files, {total} residues, {same} with the same C-alpha on both sides")
    print(f"{'side':14}{'files/s':>10}{'ms/file':>10}")
    for side, rate in rates.items():
        print(f"{side:14}{rate:10.1f}{1000 / rate:10.2f}")
    print(f"ratio {ratio:.1f}")
    for index, file in enumerate(files):
        medians = {side: statistics.median(times[index] for times in raw[side]) * 1000 for side in sides}
        print(f"  {file.name:24}{medians['coordformer']:8.2f} ms{medians['biopython']:9.2f} ms", end="")
        print(f"{medians['biopython'] / medians['coordformer']:7.1f}")

    record = {
        "files": [file.name for file in files],
        "residues": total,
        "residues_with_same_calpha": same,
        "files_per_second": rates,
        "ratio": ratio,
        "seconds_per_repeat_and_file": raw,
    }
    write_record(options.output, record, ("gemmi", "biopython", "numpy"))


if __name__ == "__main__":
    main()
