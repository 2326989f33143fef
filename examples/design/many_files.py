"""A thousand files by one command that is killed twice: is all there, nothing twice, and does memory stay flat?

    python examples/design/many_files.py hub_cards/coordformer-1M-pdb --chains CHAINS.parquet
    python examples/design/many_files.py hub_cards/coordformer-1M-pdb --chains CHAINS.parquet \
        --num_files 80 --copies 7 --kills 0 --name many_files_again

Writes C-alpha PDB files of chains of 100 to 500 residues into --output, designs them by `coordformer design`, kills it
(SIGKILL) after a third and after two thirds of them, and starts the same command again. With --copies the same lengths
come again and again. --results gets many_files.json. Linux: memory is read from /proc.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coordformer import Chain, design, read_complex
from coordformer.data.files import write_json
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.runner import Inputs
from coordformer.model.proteins import as_chain, residues_of

CODES = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS", "I": "ILE", "K": "LYS",
    "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER", "T": "THR", "V": "VAL",
    "W": "TRP", "Y": "TYR", "X": "UNK",
}  # fmt: skip


def pdb_text(chain: Chain) -> str:
    """The C-alpha atoms of a chain as a PDB file."""
    lines = []
    for index, (letter, xyz) in enumerate(
        zip(chain.sequence, chain.coords[:, chain.atoms.index("CA")], strict=True), 1
    ):
        if not np.isnan(xyz).any():
            place = "".join(f"{value:8.3f}" for value in xyz)
            lines.append(f"ATOM  {index:5d}  CA  {CODES[letter]} A{index:4d}    {place}  1.00  0.00           C")
    return "\n".join([*lines, "TER", "END", ""])


def write_files(options: argparse.Namespace, folder: Path) -> None:
    """PDB files of chains that are drawn with seed 0."""
    records = [each for each in Inputs(options.chains).read_all() if 100 <= residues_of(each) <= 500]
    chosen = np.random.default_rng(0).choice(len(records), options.num_files, replace=False)
    folder.mkdir(parents=True, exist_ok=True)
    for number in np.sort(chosen).tolist():
        chain = as_chain(records[number])
        for copy in range(options.copies):
            name = f"{copy}_{chain.id}" if options.copies > 1 else chain.id
            (folder / f"{name.replace(':', '_')}.pdb").write_text(pdb_text(chain), encoding="utf-8")


def memory_of(process: int) -> float:
    """Resident memory, MiB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")  # it has ended


def run_once(command: list[str], output: Path, until: int | None, log: Path) -> dict[str, Any]:
    """The command until it ends, or until so many files are designed and it is killed."""
    start, samples = time.monotonic(), []
    before = os.times()
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None:
            designed = sum(1 for _ in output.rglob("*.fasta"))
            samples.append((round(time.monotonic() - start, 1), designed, round(memory_of(process.pid), 1)))
            if until is not None and designed >= until:
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
            time.sleep(1)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"exit_code": process.returncode, "processor_seconds": round(spent, 1), "samples": samples}


def check(options: argparse.Namespace, files: list[Path], output: Path) -> dict[str, Any]:
    """Rows, files, and for some of them the same designs made here."""
    with open(output / "designs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = Counter((row["id"], row["sample"]) for row in rows)
    model, processor = load_checkpoint(options.checkpoint, "float32")
    ids, equal, compared = set(), 0, files[:: max(1, len(files) // 10)]
    by_id: dict[str, dict[str, str]] = {}
    for row in rows:
        by_id.setdefault(row["id"], {})[row["sample"]] = row["sequence"]
    for path in compared:
        protein = read_complex(path)
        designs = design(model, protein, processor=processor, num_samples=options.num_samples)
        drawn = {str(number): each for number, each in zip(designs.samples, designs.sequences, strict=True)}
        equal += drawn == by_id[protein.id]
        ids.add(protein.id)
    return {
        "files": len(files),
        "proteins_in_table": len(by_id),
        "rows": len(rows),
        "rows_twice": sum(count > 1 for count in counts.values()),
        "fasta_files": sum(1 for _ in output.rglob("*.fasta")),
        "figures": sum(1 for _ in output.rglob("*.png")),
        "rejected": sum(1 for _ in open(output / "rejected.tsv", encoding="utf-8")) - 1
        if (output / "rejected.tsv").exists()
        else 0,
        "designed_here_as_well": len(compared),
        "of_these_equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--chains", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--num_files", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=1, help="of each file (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("runs/many_files"), metavar="FOLDER", help="must be new")
    parser.add_argument("--name", default="many_files", help="of the file with the results")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs, output, log = options.output / "files", options.output / "designs", options.output / "log.txt"
    if output.exists():
        parser.error(f"{output} is there already; give another --output")
    write_files(options, inputs)
    files = sorted(inputs.iterdir())
    command = [sys.executable, "-m", "coordformer", "design", options.checkpoint, str(inputs), "--output", str(output)]
    command += ["--num_samples", str(options.num_samples)]
    ends = [len(files) * number // (options.kills + 1) for number in range(1, options.kills + 1)]
    runs = [run_once(command, output, until, log) for until in (*ends, None)]
    memory = [sample[2] for sample in runs[-1]["samples"] if sample[2] == sample[2]]
    half = len(memory) // 2
    report: dict[str, Any] = {"checkpoint": Path(options.checkpoint).name, "num_samples": options.num_samples}
    report |= check(options, files, output)
    report["residues"] = sum(len(read_complex(path)) for path in files)
    report["kills_after_files"] = [run["samples"][-1][1] for run in runs[:-1]]
    report["exit_codes"] = [run["exit_code"] for run in runs]
    report["processor_seconds"] = [run["processor_seconds"] for run in runs]
    report["wall_seconds"] = [run["samples"][-1][0] for run in runs]
    report["largest_memory_of_last_run_by_half"] = [max(memory[:half], default=None), max(memory[half:], default=None)]
    report["seconds_files_memory"] = [" ".join(map(str, each)) for run in runs for each in run["samples"][::10]]
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / f"{options.name}.json", report)
    print({name: value for name, value in report.items() if name != "seconds_files_memory"})


if __name__ == "__main__":
    main()
