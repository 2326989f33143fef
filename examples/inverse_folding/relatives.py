"""Which held-out chains have a relative among the chains to train on? MMseqs2, every chain against every other.

    apt install mmseqs2
    python examples/inverse_folding/relatives.py --data CHAINS.parquet

--results gets relatives.csv: for each held-out chain the training chain that shares most residues with it, if one is
30 % identical or more where they align (e-value at most 0.001), with that identity and the share of the held-out chain
that is aligned.
"""

import argparse
import csv
import subprocess
import tempfile
from pathlib import Path

from coordformer.data.rows import load_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fasta = {}
        for split in ("valid", "train"):
            rows = load_rows(arguments.data, split)
            fasta[split] = Path(folder) / f"{split}.fasta"
            records = (f">{name}\n{sequence}\n" for name, sequence in zip(rows["id"], rows["sequence"], strict=True))
            fasta[split].write_text("".join(records), encoding="utf-8")
        held_out = [line[1:].split()[0] for line in fasta["valid"].read_text().splitlines() if line.startswith(">")]
        hits = Path(folder) / "hits.tsv"
        command = ["mmseqs", "easy-search", fasta["valid"], fasta["train"], hits, Path(folder) / "tmp"]
        options = ["--min-seq-id", "0.3", "-e", "0.001", "--format-output", "query,target,fident,alnlen,qlen"]
        subprocess.run([*map(str, command), *options, "-v", "1"], check=True)
        best: dict[str, tuple[float, float, float, str]] = {}
        closest: dict[str, float] = {}  # highest identity over half of the chain or more, perhaps with another chain
        for line in hits.read_text().splitlines():
            query, target, identity, aligned, length = line.split("\t")
            covered = min(int(aligned) / int(length), 1.0)
            found = (covered * float(identity), covered, float(identity), target)
            best[query] = max(best.get(query, found), found)
            if covered >= 0.5:
                closest[query] = max(closest.get(query, 0.0), float(identity))
    arguments.results.mkdir(parents=True, exist_ok=True)
    with open(arguments.results / "relatives.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["chain", "relative", "identity", "covered"])
        for name in held_out:
            _, covered, identity, target = best.get(name, (0.0, 0.0, 0.0, ""))
            writer.writerow([name, target, f"{identity:.3f}", f"{covered:.3f}"])
    for identity in (0.3, 0.5, 0.9):
        count = sum(found >= identity for found in closest.values())
        print(f"{count} of {len(held_out)} chains: {identity:.0%} identical over half of their length or more")


if __name__ == "__main__":
    main()
