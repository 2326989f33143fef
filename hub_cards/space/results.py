"""What the page shows of a structure: the model's probability of each residue, substitutions, designs, contacts.

Nothing here knows of Gradio, and nothing is kept between calls.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from coordformer import Chain, StructureError, read_chains, read_complex
from coordformer.data.contacts import chain_labels, separations
from coordformer.data.fetch import fetch
from coordformer.inference.contacts import predict_contacts
from coordformer.inference.design import fasta
from coordformer.inference.figures import new_figure, plot_contacts, plot_scan, save_figure
from coordformer.inference.marginals import scan_chains
from coordformer.model.chain import AMINO_ACIDS, Complex
from coordformer.model.design import DesignTask, design
from coordformer.model.residues import ResidueNumbers

WHOLE = "all chains, as one complex"
MAX_RESIDUES = 1000  # each is a row of the scan, so that time grows with the square
COLORS = colormaps["viridis"]
UNKNOWN = "#999999"
TABLE_HEAD = ["residue", "position", "letter", "probability", "best letter", "its score (nats)"]


def fetch_entry(entry: str, folder: str | Path) -> Path:
    """Fetch a structure by its PDB id or UniProt accession into a folder.

    Raises:
        ValueError: the text is not one id, or the file was not got; the message says why.
    """
    words = entry.split()
    if len(words) != 1:
        raise ValueError(f"{entry!r} is not one entry; give a PDB id, such as 1UBQ, or a UniProt accession.")
    # Not `parse_ids`, which would read files of this machine.
    paths, failed = fetch(words, folder, attempts=2, timeout=10.0, progress=False)
    for name, reason in failed:
        raise ValueError(f"{name}: {reason}")
    return paths[0]


def chain_ids(name: str, content: bytes) -> tuple[list[str], list[tuple[str, str]]]:
    """Ids of the protein chains of a file, and of those that cannot be read the reasons.

    Raises:
        StructureError: nothing of the file can be read.
    """
    problems: list[tuple[str, str]] = []
    found = read_chains(name, data=content, problems=problems)
    if not found:
        raise StructureError("; ".join(f"{name}: chain {chain}: {reason}" for chain, reason in problems))
    return [chain.id for chain in found], problems


def read_protein(name: str, content: bytes, chain: str | None, atoms: Sequence[str] = ("CA",)) -> Chain:
    """A chain of a file by its id, or all of them as one complex where `chain` is `WHOLE` or None.

    Raises:
        StructureError: it cannot be read, or has more than `MAX_RESIDUES` residues.
    """
    if chain is None or chain == WHOLE:
        protein: Chain = read_complex(name, data=content, atoms=atoms)
        if isinstance(protein, Complex) and len(protein.chain_names) == 1:
            protein = protein.chains[0]
    else:
        protein = read_chains(name, atoms, chain_ids=chain, data=content)[0]
    if len(protein) > MAX_RESIDUES:
        raise StructureError(
            f"{name}: {protein.id} has {len(protein):,} residues, and this page takes {MAX_RESIDUES:,} at most; choose "
            "a chain, or run `coordformer score` and `coordformer design` on the file"
        )
    return protein


@dataclass
class Scan:
    """All substitutions of a protein.

    Attributes:
        protein: what was read.
        residues: what its residues are called.
        scores: (L, 20), nats, of `scan_chains`: log-likelihood ratios of masked marginals.
        probabilities: (L,), of the residue that is there when it is masked; NaN for X.
        seconds: that it took.
    """

    protein: Chain
    residues: ResidueNumbers
    scores: np.ndarray
    probabilities: np.ndarray
    seconds: float

    def rows(self) -> list[list[Any]]:
        """The table under `TABLE_HEAD`; of the other letters the best one."""
        lines: list[list[Any]] = []
        for index, letter in enumerate(self.protein.sequence):
            about = [self.residues.name(index), int(self.residues.positions[index]), letter]
            if letter not in AMINO_ACIDS:
                lines.append([*about, None, "", None])
                continue
            others = self.scores[index].copy()
            others[AMINO_ACIDS.index(letter)] = -np.inf
            best = int(others.argmax())
            values = [round(float(self.probabilities[index]), 3), AMINO_ACIDS[best], round(float(others[best]), 2)]
            lines.append([*about, *values])
        return lines


def scan(model: Any, processor: Any, protein: Chain) -> Scan:
    """Masked marginals of all substitutions of a protein."""
    start = time.perf_counter()
    scores = scan_chains(model, processor, [protein])[0]
    # Scores are log p(letter) - log p(residue), and the 20 p add up to 1.
    probabilities = 1.0 / np.exp(scores).sum(axis=1)
    return Scan(protein, ResidueNumbers(protein), scores, probabilities, time.perf_counter() - start)


def picture(found: Scan, name: str, content: bytes, chain: str | None) -> str:
    """What the viewer draws, as JSON: atoms as PDB, a color and a label for each residue, by its place from 1."""
    protein = found.protein
    try:
        backbone = read_protein(name, content, chain, ("N", "CA", "C", "O"))
    except StructureError:  # the file has only C-alphas
        backbone = protein
    if len(backbone) != len(protein):
        backbone = protein
    colors, labels = [], []
    for index, share in enumerate(found.probabilities):
        known = bool(np.isfinite(share))
        colors.append(to_hex(COLORS(float(share))) if known else UNKNOWN)
        label = f"{protein.sequence[index]} {found.residues.name(index)}"
        labels.append(f"{label}: {share:.2f}" if known else label)
    whole = len(backbone.atoms) > 1 and bool(backbone.observed.all(axis=1).any())
    return json.dumps({"pdb": _pdb(backbone, found.residues), "colors": colors, "labels": labels, "backbone": whole})


def _pdb(protein: Chain, residues: ResidueNumbers) -> str:
    """Atoms around their center, which fits the columns; residues are numbered by their places from 1."""
    center = np.nanmean(protein.coords.reshape(-1, 3), axis=0)
    lines = []
    for index, slot in zip(*np.nonzero(protein.observed), strict=True):
        x, y, z = (protein.coords[index, slot] - center).tolist()
        chain = chr(ord("A") + int(residues.chain_index[index]) % 26)
        atom = protein.atoms[slot]
        lines.append(
            f"ATOM  {len(lines) + 1:5d}  {atom:<3s} ALA {chain}{index + 1:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {atom[0]}"
        )
    return "\n".join([*lines, "END"])


def legend() -> str:
    """The colors of `picture` as a CSS gradient, from probability 0 to 1."""
    return ", ".join(to_hex(COLORS(step / 8)) for step in range(9))


def draw_scan(found: Scan, path: Path) -> None:
    """The heat map of substitutions as PNG."""
    plot_scan(path, found.scores, found.residues, found.protein.id)


def draw_contacts(model: Any, processor: Any, found: Scan, path: Path) -> str:
    """The contact map as PNG, predicted beside true, or the true one alone; returns what is to be said of it."""
    protein, residues = found.protein, found.residues
    labels = chain_labels(protein)
    if model.config.contact_head:
        maps = {protein.id: next(predict_contacts(model, [protein], processor.tokenizer))[1]}
        plot_contacts(maps, labels, path, separations(protein), residues)
        return "Predicted contacts above the diagonal, true ones below. The model was given the coordinates."
    figure = new_figure((5.0, 5.0), path)
    axes = figure.subplots()
    shades = np.array([(1, 1, 1, 1), (0, 0, 0, 1), (0.9, 0.9, 0.9, 1)])  # no contact, contact; the last: not counted
    axes.imshow(shades[np.maximum(labels, -1)], interpolation="none")
    ticks = range(0, len(protein), max(len(protein) // 8, 1))
    names = [residues.name(index) for index in ticks]
    axes.set_xticks(ticks, names, fontsize=7)
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set(title=f"{protein.id}, true contacts", xlabel="residue", ylabel="residue")
    save_figure(figure, path)
    return (
        "This model has no contact head, so it predicts no contacts: these are the true ones alone. C-alphas closer "
        "than 8 Å; gray are pairs fewer than 6 apart and residues without coordinates."
    )


def draw_designs(
    model: Any, processor: Any, protein: Chain, task: DesignTask, *, name: str, count: int, temperature: float
) -> str:
    """Designed sequences as FASTA, the native one first; `name` is the model's."""
    designs = design(model, protein, task, processor=processor, num_samples=count, temperature=temperature)
    return fasta(designs, {"model": name, "seed": 0})
