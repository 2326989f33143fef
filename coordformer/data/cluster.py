"""Clusters of similar sequences, and splits of a data set that no cluster crosses.

Only `cluster_sequences` needs MMseqs2, a program of its own: Steinegger and Söding 2017, doi:10.1038/nbt.3988.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

MAX_LENGTH = 65535
"""Residues; mmseqs 14 finds nothing similar to a longer sequence, not even a part of it, and does not say so."""

COMPARABLE = 14
"""Residues other than X; of shorter sequences MMseqs2 finds few relatives, or leaves them out.

Its search begins with spaced k-mers, six letters over eleven residues or so. A sequence of ten residues has none: of
pairs that differ by one substitution mmseqs 14 put 3 to 13 % into one cluster at 8 to 10 residues, 83 % at 11, 97 % at
12, beside a thousand others 48 % and 82 %; from 14 on all.
"""

# Where no sequence has a k-mer that mmseqs keeps (short or repetitive ones), it ends with an error
# (https://github.com/soedinglab/MMseqs2/issues/149); beside this one, which resembles none, it does not.
_COMPANION = "WCHMYFPDWNQECWKRHYMFGCWPHDYTWMCQNFHWRYCPEWKMHDFYCWNHQMPW"


def cluster_sequences(
    sequences: Sequence[str],
    identity: float = 0.3,
    coverage: float = 0.8,
    threads: int | None = None,
    folder: Path | None = None,
) -> np.ndarray:
    """Cluster sequences with `mmseqs easy-cluster --min-seq-id identity -c coverage --cov-mode 1`.

    A representative is the longest of its cluster; an alignment to it covers at least `coverage` of a member's residues
    with at least `identity` identical ones. But MMseqs2 clusters in three steps, so a member may resemble its
    representative only by way of another sequence; and members of two clusters may resemble each other, since only
    representatives are kept apart, and of these only the pairs that the search finds. Of sequences with fewer than
    `COMPARABLE` residues it finds few: a warning says how many there are.

    Args:
        sequences: amino acids in capital letters, at most `MAX_LENGTH` residues each.
        identity, coverage: smallest shares of identical residues in an alignment, and of a member's residues that are
            aligned; above 0, at most 1.
        threads: threads of mmseqs, by default as many as there are cores; the labels do not depend on it.
        folder: where a temporary folder is made, with room for many times the sequences; by default as of `tempfile`.

    Returns:
        int64 `(n,)`: the index in `sequences` of the representative of each one's cluster. Of identical sequences the
        first stands for all, so they have the same label. Another order of the sequences may give other clusters.

    Raises:
        ValueError: an argument is out of range, or a sequence is empty, too long, or holds other characters.
        FileNotFoundError: there is no `mmseqs` on the PATH, or no `folder`.
        ChildProcessError: mmseqs failed, or left out a sequence that it can compare.
    """
    for name, value in (("identity", identity), ("coverage", coverage)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; give a share above 0 and at most 1, such as 0.3 for 30 %.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; give at least 1, or None for all cores.")
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"The folder {folder} for temporary files does not exist; make it or name another.")
    firsts: dict[str, int] = {}
    for index, sequence in enumerate(sequences):
        if not sequence:
            raise ValueError(f"sequences[{index}] is empty; remove it.")
        if bad := re.search(r"[^A-Z]", sequence):
            raise ValueError(f"sequences[{index}] has {bad[0]!r} at {bad.start()}; use capital letters, X if unknown.")
        if len(sequence) > MAX_LENGTH:
            raise ValueError(
                f"sequences[{index}] has {len(sequence)} residues; mmseqs compares at most {MAX_LENGTH}, so cut it."
            )
        firsts.setdefault(sequence, index)
    if not firsts:
        return np.empty(0, np.int64)
    if short := [sequence for sequence in firsts if not is_comparable(sequence)]:
        number = "1 sequence has" if len(short) == 1 else f"{len(short):,} sequences have"
        why = "mmseqs finds few relatives of these, so they may be in two splits"
        logger.warning("%s fewer than %d residues, such as %s: %s.", number, COMPARABLE, short[0], why)
    representatives = _run_mmseqs(firsts, identity, coverage, threads, folder)
    for sequence, index in firsts.items():
        if index not in representatives and is_comparable(sequence):
            raise ChildProcessError(
                f"mmseqs gave no cluster to sequences[{index}] ({sequence[:20]}..., {len(sequence)} residues); run it "
                "again with more free disk space, or install another version of mmseqs."
            )
    return np.array([representatives.get(index, index) for index in map(firsts.__getitem__, sequences)], np.int64)


def is_comparable(sequence: str) -> bool:
    """Whether a sequence is long enough for MMseqs2 to find its relatives, see `COMPARABLE`."""
    return len(sequence) - sequence.count("X") >= COMPARABLE


def find_mmseqs() -> str:
    """Path of the program `mmseqs`, or a FileNotFoundError where it is not on the PATH."""
    if binary := shutil.which("mmseqs"):
        return binary
    raise FileNotFoundError(
        "To cluster sequences, the program `mmseqs` (MMseqs2) must be on the PATH; install it with "
        "`apt install mmseqs2` or `conda install -c bioconda mmseqs2`."
    )


def _run_mmseqs(
    firsts: Mapping[str, int], identity: float, coverage: float, threads: int | None, folder: Path | None
) -> dict[int, int]:
    """Index of the representative by index of the member."""
    binary = find_mmseqs()
    # Without `--dbtype 1` (amino acids), chains of A, C, G and T alone would be read as nucleotides.
    command = [os.path.abspath(binary), "easy-cluster", "chains.fasta", "result", "tmp", "--dbtype", "1"]
    # mmseqs cannot read 1e-05.
    command += ["--min-seq-id", f"{identity:f}", "-c", f"{coverage:f}", "--cov-mode", "1"]
    command += [] if threads is None else ["--threads", str(threads)]
    with tempfile.TemporaryDirectory(prefix="coordformer-mmseqs-", dir=folder) as scratch:
        with open(Path(scratch, "chains.fasta"), "w") as fasta:
            fasta.writelines(f">{index}\n{sequence}\n" for sequence, index in firsts.items())
            fasta.write(f">-1\n{_COMPANION}\n")
        # Run inside it, so that no blank in the folder's name meets the shell scripts of mmseqs.
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=scratch, check=False, **streams)
        output = Path(scratch, "result_cluster.tsv")
        if done.returncode or not output.exists():
            lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
            raise ChildProcessError(
                f"{binary} failed with exit code {done.returncode} on {len(firsts)} sequences in {scratch}: "
                + (" / ".join(lines[-3:]) or "it said nothing, perhaps for want of memory or disk space")
            )
        with open(output) as table:
            pairs = [tuple(map(int, line.split("\t"))) for line in table]
    return {member: representative for representative, member in pairs if representative != -1}


def assign_splits(labels: np.ndarray, names: Sequence[str], shares: Mapping[str, float], seed: int = 0) -> list[str]:
    """Put whole clusters into splits, each by its representative's name alone.

    The SHA-256 of `seed:name` is a number from 0 to 1, and the split is the one in whose part of the cumulated `shares`
    it lies. So a cluster keeps its split when others come or go, as long as its representative and the name of that
    stay. The shares are of clusters, in expectation: with k clusters the share p deviates by about sqrt(p (1 - p) / k),
    the share of chains by more, as clusters differ in size.

    Args:
        labels: integers `(n,)`, the index of the representative of each one's cluster, from `cluster_sequences`.
        names: n names; `names[label]` is the representative's. Take what stays when the data set is made again: the
            sequence itself or the chain's id, not a number in order.
        shares: split names (letters, digits, `_`) and shares, not negative, with a sum of 1; their order counts.
        seed: another one gives another, independent assignment.

    Returns:
        The split of each of the n sequences.

    Raises:
        ValueError: `shares` are wrong, names are too few or many, or labels are no indices of representatives.

    Examples:
        >>> assign_splits(np.array([0, 0, 2]), ["1BD2_A", "1BD2_B", "1ORC_A"], {"train": 0.8, "valid": 0.2})
        ['train', 'train', 'valid']
    """
    labels = np.asarray(labels)
    for split, share in shares.items():
        if not re.fullmatch(r"\w+", split):
            raise ValueError(f"shares has the split {split!r}; name it with letters, digits and _ only.")
        if not share >= 0:
            raise ValueError(f"shares[{split!r}] is {share}; give a share from 0 to 1.")
    if not abs(sum(shares.values()) - 1) <= 1e-6:
        raise ValueError(f"shares {dict(shares)} sum to {sum(shares.values()):g}; make them sum to 1.")
    if labels.ndim != 1 or len(names) != len(labels):
        raise ValueError(
            f"labels have the shape {labels.shape} and there are {len(names)} names; give one name per label."
        )
    if not len(labels):
        return []
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are of type {labels.dtype}; give the integers of `cluster_sequences`.")
    outside = (labels < 0) | (labels >= len(labels))
    if (wrong := outside | (labels[np.where(outside, 0, labels)] != labels)).any():
        index = int(wrong.argmax())
        raise ValueError(
            f"labels[{index}] is {labels[index]}, which is not the index of a representative, whose label is its own "
            "index; give the labels of `cluster_sequences`, of all sequences in their order."
        )
    kept = [split for split, share in shares.items() if share > 0]
    bounds = np.cumsum([shares[split] for split in kept])[:-1]  # the sum may lack up to 1e-6
    splits = {}
    for label in np.unique(labels):
        digest = hashlib.sha256(f"{seed}:{names[label]}".encode()).digest()
        point = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # exact, thus below 1
        splits[label] = kept[np.searchsorted(bounds, point, side="right")]
    return [splits[label] for label in labels]
