"""Which relatives of its training sequences does a checkpoint's record recognize? Real chains, and pieces of them.

    pip install biopython
    python examples/inverse_folding/known_sequences.py --data CHAINS.parquet --predicted PREDICTED.parquet

CHAINS.parquet has the columns `split`, `cluster30` and `cluster50` (MMseqs2). Its training chains are cut in two by the
hash of their ids: one half is recorded, the other half asked for. The identity of a chain that is asked for is that of
the best local alignment (BLOSUM62) to a recorded chain of the same cluster, or to one that the record takes for
similar, over at least half of its residues. PREDICTED.parquet, chains in the same layout, has it in the column
`max_train_identity` (MMseqs2), to all training chains. Pieces are cut at random out of recorded chains.

--results gets known_sequences.json: how many chains of each range of identity are recognized, at the threshold of the
package and at others, with 95 % intervals (Wilson); and what a record takes, in seconds of the processor.
"""

import argparse
import hashlib
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from Bio.Align import PairwiseAligner, substitution_matrices
from scipy.stats import binomtest

from coordformer.data import training_sequences
from coordformer.data.files import write_json
from coordformer.data.training_sequences import FILE, SIMILAR, TrainingSequences

BOUNDS = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # of identity, the lower ones
THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5)
ALIGNED, CANDIDATES = 2000, 20  # chains that are aligned, and recorded chains for each at most
PIECES = (0.5, 0.33, 0.25, 0.2)  # of a recorded chain of 150 residues or more


def share(found: int, number: int) -> dict[str, Any]:
    interval = binomtest(found, number).proportion_ci(method="wilson") if number else (0.0, 1.0)
    return {"recognized": found, "chains": number, "interval": [round(float(each), 4) for each in interval]}


def by_identity(identities: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
    """Of each range of identity, and of the two that matter, the chains that are recognized at each threshold."""
    ranges = {f"{low:.2f} to {high:.2f}": (low, high) for low, high in pairwise(BOUNDS)}
    ranges |= {"1.00": (1.0, 1.01), "below 0.70": (0.0, 0.7), "0.90 and more": (0.9, 1.01)}
    table = {}
    for name, (low, high) in ranges.items():
        inside = shares[(identities >= low) & (identities < high)]
        table[name] = {
            str(threshold): share(int((inside >= threshold).sum()), len(inside))
            for threshold in sorted({*THRESHOLDS, training_sequences.CONTAINMENT})
        }
    return table


def best_shares(record: TrainingSequences, sequences: list[str]) -> np.ndarray:
    best = np.zeros(len(sequences))
    queries, _, shares = record.containment(sequences)
    np.maximum.at(best, queries, shares)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--predicted", metavar="PREDICTED.parquet")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    columns = ["id", "sequence", "split", "cluster30", "cluster50"]
    chains = pq.read_table(arguments.data, columns=columns, filters=[("split", "=", "train")]).to_pydict()
    sequences, ids = chains["sequence"], chains["id"]
    order = [hashlib.md5(name.encode()).hexdigest() for name in ids]
    known = [number for number, digest in enumerate(order) if digest[0] < "8"]
    asked = [number for number, digest in enumerate(order) if digest[0] >= "8"]
    record = TrainingSequences.of(sequences[number] for number in known)
    number_of = {int(training_sequences.hash_sequence(sequences[number])): number for number in known}
    results: dict[str, Any] = {
        name.lower(): getattr(training_sequences, name)
        for name in ("K", "MIN_SKETCH", "SHARE", "CONTAINMENT", "MIN_SHARED", "COVERAGE")
    }

    aligner = PairwiseAligner(mode="local", substitution_matrix=substitution_matrices.load("BLOSUM62"))
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1

    def identity(query: str, other: str) -> float:
        alignment = aligner.align(query, other)[0]
        residues = sum(int(end - start) for start, end in alignment.aligned[0])
        if residues < 0.5 * len(query):
            return 0.0
        same = sum(
            one == two
            for (start, end), (from_, to) in zip(*alignment.aligned, strict=True)
            for one, two in zip(query[start:end], other[from_:to], strict=True)
        )
        return same / max(residues, 1)

    # Relatives: of a sample those of their cluster are aligned, the closer clusters first.
    recorded: dict[str, dict[Any, list[int]]] = {name: defaultdict(list) for name in ("cluster50", "cluster30")}
    for number in known:
        for name, members in recorded.items():
            members[chains[name][number]].append(number)
    queries, others, shares = record.containment([sequences[number] for number in asked])
    taken: dict[int, set[int]] = defaultdict(set)
    for place, other, value in zip(queries, others, shares, strict=True):
        if value >= min(THRESHOLDS):
            taken[asked[place]].add(number_of[int(record.hashes[other])])
    with_relatives = [number for number in asked if recorded["cluster50"].get(chains["cluster50"][number])]
    without = [number for number in asked if not recorded["cluster50"].get(chains["cluster50"][number])]
    with_relatives = sorted(with_relatives, key=order.__getitem__)[:ALIGNED]
    best = best_shares(record, [sequences[number] for number in asked])
    best_of = dict(zip(asked, best, strict=True))
    for name, numbers in (("with relatives", with_relatives), ("without relatives", without)):
        identities = []
        for number in numbers:
            mates: list[int] = []
            if name == "with relatives":
                for column, members in recorded.items():
                    mates += members.get(chains[column][number], [])
            mates = list(dict.fromkeys([*mates[:CANDIDATES], *taken[number]]))
            identities.append(max((identity(sequences[number], sequences[mate]) for mate in mates), default=0.0))
        table = by_identity(np.array(identities), np.array([best_of[number] for number in numbers]))
        results[name] = {"chains": len(numbers), "recorded": len(record), "by_identity": table}

    # Pieces of recorded chains.
    rng = np.random.default_rng(0)
    long = [sequences[number] for number in known if len(sequences[number]) >= 150]
    results["pieces"] = {}
    for part in PIECES:
        sizes = [int(part * len(sequence)) for sequence in long]
        starts = [int(rng.integers(len(one) - size + 1)) for one, size in zip(long, sizes, strict=True)]
        pieces = [one[start : start + size] for one, start, size in zip(long, starts, sizes, strict=True)]
        results["pieces"][str(part)] = share(int((record.find(pieces) >= SIMILAR).sum()), len(pieces))

    # All training sequences: other programs' models, size and time.
    started = time.process_time()
    record = TrainingSequences.of(sequences)
    path = arguments.results / FILE
    arguments.results.mkdir(parents=True, exist_ok=True)
    made = time.process_time()
    record.write(path)
    results["cost"] = {"sequences": len(record), "bytes": path.stat().st_size, "seconds_to_make": made - started}
    for number in (1, 1000):
        times = []
        for _ in range(5):
            started = time.process_time()
            TrainingSequences.read(path).find(sequences[:number])
            times.append(time.process_time() - started)
        results["cost"][f"seconds_to_read_and_look_up_{number}"] = times
    path.unlink()
    if arguments.predicted:
        predicted = pq.read_table(arguments.predicted, columns=["sequence", "max_train_identity"]).to_pydict()
        best = best_shares(record, predicted["sequence"])
        table = by_identity(np.array(predicted["max_train_identity"]), best)
        results["predicted"] = {"chains": len(best), "recorded": len(record), "by_identity": table}
    write_json(arguments.results / "known_sequences.json", results)


if __name__ == "__main__":
    main()
