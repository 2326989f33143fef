"""Contacts of residues: labels, training batches, precision, and the files of `coordformer contacts`.

Two residues are in contact if their C-alphas are less than 8 Å apart and they are at least 6 apart in the sequence
(paper, section 6). A model that is given coordinates is asked for what follows from its input: precision then says how
much of the geometry is left in its attention maps. With coordinates withheld it says how well contacts are predicted.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.batching import fetch_rows
from ..data.collator import CoordformerDataCollator
from ..data.files import write_atomically, write_text
from ..model.modeling_coordformer import IGNORED_LABEL, CoordformerForContactPrediction
from ..model.processing_coordformer import (
    SPECIAL_TOKENS,
    CoordformerProcessor,
    chain_arrays,
    longest_window,
    window_starts,
)
from ..model.structure import Chain, read_proteins
from . import figures
from .evaluate import coordinates_given, load_checkpoint

CONTACT = 8.0  # Å
MIN_SEPARATION = 6  # residues
RANGES = {"short": (6, 11), "medium": (12, 23), "long": (24, math.inf)}  # separations, both ends included
CUTS = {"L": 1, "L/2": 2, "L/5": 5}  # of how many predictions the precision is: residues divided by this
LISTED = 5  # pairs for each residue that a TSV file has


# ---------------------------------------------------------------------------------------------------------------------
# Labels and training batches
# ---------------------------------------------------------------------------------------------------------------------


def contact_labels(coords: Any) -> torch.Tensor:
    """Which residues are in contact.

    Args:
        coords: C-alpha positions (..., residues, D), Å, NaN where not observed; an array or a tensor.

    Returns:
        (..., residues, residues), int8: 1 for contacts, 0 for others, -100 where one of the two is not observed or they
        are fewer than 6 apart in the sequence.

    Examples:
        >>> contact_labels([[0.0, 0, 0], *[[50.0 * i, 0, 0] for i in range(1, 6)], [0, 7.9, 0]])[0]
        tensor([-100, -100, -100, -100, -100, -100,    1], dtype=torch.int8)
    """
    if not torch.is_tensor(coords):
        coords = torch.tensor(np.asarray(coords, dtype=np.float32))
    coords = coords.float()
    # Not by a matrix product, whose rounding would move pairs across the threshold.
    distances = torch.cdist(coords, coords, compute_mode="donot_use_mm_for_euclid_dist")
    place = torch.arange(coords.shape[-2], device=coords.device)
    asked = ((place.unsqueeze(1) - place).abs() >= MIN_SEPARATION) & distances.isfinite()
    return (distances < CONTACT).to(torch.int8).masked_fill(~asked, IGNORED_LABEL)


def chain_labels(chain: Chain | Mapping[str, Any]) -> np.ndarray:
    """`contact_labels` of a chain, or of a row of a data set: (residues, residues), int8."""
    return contact_labels(chain_arrays(chain, ("CA",))[1][:, 0]).numpy()


@dataclass
class ContactCollator:
    """Batches for `CoordformerForContactPrediction`: those of a collator, nothing masked, with contacts as labels.

    Takes what `CoordformerDataCollator` takes, padded, one chain in each row. `labels` (batch, residues, residues),
    int8, are the contacts of the rows as they are, whatever `collator` does to the coordinates: cropped with them, but
    without their noise, and also of rows whose coordinates it withholds (`drop_coords=1.0`: of all rows).

    Args:
        collator: brings tokens and coordinates.
    """

    collator: CoordformerDataCollator
    _exact: CoordformerDataCollator = field(init=False, repr=False)
    _alpha: int = field(init=False, repr=False)

    def __post_init__(self):
        if "CA" not in self.collator.atoms:
            raise ValueError(f"`atoms` is {self.collator.atoms}; contacts are counted between C-alphas (CA), add them.")
        self.collator = replace(self.collator, mlm_probability=0.0)
        self._exact = replace(self.collator, noise=0.0, drop_coords=0.0)
        self._alpha = self.collator.atoms.index("CA")

    def __call__(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):  # so that both collators crop alike
            exact = self._exact(features)["coords"]
        batch = self.collator(features)
        alpha = exact if exact.dim() == 3 else exact[:, :, self._alpha]
        return batch | {"labels": contact_labels(alpha[:, 1:-1])}


def freeze_encoder(model: CoordformerForContactPrediction) -> None:
    """Let training change the contact head alone: logistic regression on the encoder's attention maps, as ESM's is."""
    head: Any = model.coordformer.contact_head
    model.requires_grad_(False)
    head.requires_grad_(True)


# ---------------------------------------------------------------------------------------------------------------------
# Prediction and precision
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_chain(
    model: PreTrainedModel,
    processor: CoordformerProcessor,
    chain: Chain | Mapping[str, Any],
    *,
    without_coords: bool = False,
    window: int = 1024,
) -> np.ndarray:
    """Probabilities of contacts of one chain.

    A chain of more than `window` residues is predicted in windows that overlap by half, each a chain to the model, and
    probabilities are averaged; of pairs that no window holds there are none.

    Args:
        model: a Coordformer with a contact head.
        processor: of the model.
        chain: a chain or a row of a data set.
        without_coords: withhold all coordinates.
        window: residues; memory grows with its square.

    Returns:
        (residues, residues), float32, symmetric, NaN where no window holds both residues.
    """
    if window < 2:
        raise ValueError(f"`window` is {window}; it must be at least 2.")
    window = longest_window(model, window)
    batch = dict(processor(chains=chain).to(model.device))
    if without_coords:
        del batch["coords"]
    residues = batch["input_ids"].shape[1] - SPECIAL_TOKENS
    inside = min(window, residues)
    total, count = np.zeros((2, residues, residues), dtype=np.float32)
    contact_model: Any = model.eval()
    for first in window_starts(residues, inside):
        places = [0, *range(first + 1, first + 1 + inside), -1]
        part = contact_model.predict_contacts(**{name: values[:, places] for name, values in batch.items()})
        here = slice(first, first + inside)
        total[here, here] += part[0].cpu().numpy()
        count[here, here] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(np.nan))


def precision_at(scores: Any, labels: Any) -> dict[str, dict[str, float]]:
    """Share of contacts among the highest-scoring pairs of a chain.

    By sequence separation (`short`: 6 to 11, `medium`: 12 to 23, `long`: from 24) of the best L, L/2 and L/5 pairs,
    rounded down but at least one, where L is the number of residues, observed or not. Pairs without a label or a score
    do not compete. Where a range has fewer pairs than that, all of them count, as in CASP, which divides by the number
    of predictions; ESM's published evaluation divides by L/k all the same. Where contacts are fewer, even a perfect
    prediction stays below 1: `precision_at(labels, labels)` says how far.

    Args:
        scores: probabilities or logits (residues, residues), an array or a tensor on the CPU, NaN where there is none;
            the upper triangle is read. Of equal ones first ranks the pair that comes first in the chain.
        labels: (residues, residues), 1, 0, or negative where unknown.

    Returns:
        Precision by range and cut; NaN in a range without a pair that competes.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.shape != labels.shape or scores.shape != 2 * scores.shape[:1]:
        raise ValueError(
            f"`scores` has shape {scores.shape} and `labels` {labels.shape}; both have to be (residues, residues)."
        )
    first, second = np.triu_indices(len(labels), MIN_SEPARATION)
    known = (labels[first, second] >= 0) & ~np.isnan(scores[first, second])
    first, second = first[known], second[known]
    precision = {}
    for name, (least, most) in RANGES.items():
        inside = (second - first >= least) & (second - first <= most)
        pairs = first[inside], second[inside]
        ranked = labels[pairs][np.argsort(-scores[pairs], kind="stable")]
        precision[name] = {
            cut: float(ranked[: max(len(labels) // share, 1)].mean()) if ranked.size else math.nan
            for cut, share in CUTS.items()
        }
    return precision


def measure_precision(
    model: PreTrainedModel,
    rows: Any,
    processor: CoordformerProcessor,
    *,
    without_coords: bool = False,
    window: int = 1024,
    progress: bool = True,
) -> np.ndarray:
    """Precision on every chain of a data set; the mean over chains is `np.nanmean(..., axis=0)`.

    Args:
        rows: chains, see `evaluation.open_chains`.
        model, processor, without_coords, window: as of `predict_chain`.
        progress: show a progress bar.

    Returns:
        (chains, ranges, cuts), in the order of `RANGES` and `CUTS`; NaN where a chain has no known pair.
    """
    table = []
    for number in tqdm(range(len(rows)), unit="chain", disable=not progress):
        row = fetch_rows(rows, [number])[0]
        scores = predict_chain(model, processor, row, without_coords=without_coords, window=window)
        precision = precision_at(scores, chain_labels(row))
        table.append([list(cuts.values()) for cuts in precision.values()])
    return np.array(table)


# ---------------------------------------------------------------------------------------------------------------------
# Files and the command
# ---------------------------------------------------------------------------------------------------------------------


def write_pairs(probabilities: np.ndarray, sequence: str, path: str | Path) -> None:
    """The 5 L most probable pairs i < j, at least 6 apart, as TSV: residues counted from 1, letters, probability."""
    first, second = np.triu_indices(len(sequence), MIN_SEPARATION)
    order = np.argsort(-probabilities[first, second], kind="stable")[: LISTED * len(sequence)]
    lines = ["i\tj\tresidue_i\tresidue_j\tprobability"]
    for i, j in zip(first[order], second[order], strict=True):
        if np.isfinite(probabilities[i, j]):  # not of pairs that no window holds, which come last
            lines.append(f"{i + 1}\t{j + 1}\t{sequence[i]}\t{sequence[j]}\t{probabilities[i, j]:.6g}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot_contacts(maps: Mapping[str, np.ndarray], labels: np.ndarray, path: str | Path) -> None:
    """Predicted probabilities above the diagonal and true contacts below, as PNG; a panel for each of `maps`, by title.

    Pairs fewer than 6 apart are left blank; gray are those of which nobody knows. The L/5 most probable are darkest.
    """
    if (figure := figures.new_figure((5.4 * len(maps), 5.0), path)) is None:
        return
    residues = len(labels)
    place = np.arange(residues)
    separation = place - place[:, None]
    shades = np.array([(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0.15)])  # no contact, contact; the last for -100
    truth = shades[np.maximum(labels, -1)] * (separation <= -MIN_SEPARATION)[..., None]
    below = "true contacts (gray: not known)" if (labels >= 0).any() else "nothing, as no structure is known"
    extent = (0.5, residues + 0.5, residues + 0.5, 0.5)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (title, probabilities) in zip(panels, maps.items(), strict=True):
        predicted = np.where(separation >= MIN_SEPARATION, probabilities, np.nan)
        best = np.sort(predicted[np.isfinite(predicted)])[-max(residues // 5, 1) :]
        limits = {"vmin": 0.0, "vmax": best.min(initial=1.0)}
        image = axes.imshow(predicted, cmap="Blues", extent=extent, interpolation="none", **limits)
        axes.imshow(truth, extent=extent, interpolation="none")
        axes.plot([0.5, residues + 0.5], [0.5, residues + 0.5], color="0.6", linewidth=0.8)
        axes.set(xlabel="residue", ylabel="residue")
        axes.set_title(f"{title}\nabove: predicted, below: {below}", fontsize=9)
        figure.colorbar(image, ax=axes, extend="max", label="predicted probability of contact", shrink=0.8)
    figures.save_figure(figure, path)


def file_stems(ids: Sequence[str]) -> list[str]:
    """Names of files for chains: what some systems do not allow becomes `_`, and of equal ones the later get -2, -3.

    A and a, two chains of a large complex, are equal: on some systems they are one file.
    """
    stems: dict[str, str] = {}  # by what makes two of them equal
    for name in ids:
        stem = first = re.sub(r'^\.+$|[<>:"/\\|?*\0]', "_", name)
        number = 1
        while stem.casefold() in stems:
            number += 1
            stem = f"{first}-{number}"
        stems[stem.casefold()] = stem
    return list(stems.values())


def write_contacts(
    checkpoint: str | Path,
    protein: str | Path,
    output: str | Path,
    *,
    chain_ids: Sequence[str] | None = None,
    min_plddt: float | None = None,
    without_coords: bool = False,
    dtype: str = "float32",
    window: int = 1024,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict the contacts of the chains of a file.

    Writes into the folder `output` for each chain, by its id (see `file_stems`): ID.npz with `probabilities` (residues,
    residues), float32, `contacts` (as of `contact_labels`) and `sequence`; ID.tsv with the 5 L most probable pairs;
    ID.png with both triangles.

    Args:
        checkpoint: folder or Hub name of a Coordformer with a contact head.
        protein: structure or FASTA file.
        output: folder.
        chain_ids, min_plddt: as of `structure.read_proteins`.
        without_coords, window: as of `predict_chain`.
        dtype: of the weights.
        progress: show a progress bar.

    Returns:
        What is also in `contacts.json`: `checkpoint`, `protein`, `dtype`, `window` and `chains`, of each its `id`,
        `file` (without the ending), `residues`, `coordinates` (see `coordinates_given`), `contacts` (known pairs; None
        without structure) and `precision` as of `precision_at`, None where it is not defined.

    Raises:
        ValueError: the checkpoint has no contact head, or an input is unusable.
    """
    output = Path(output)
    if output.is_file():
        raise ValueError(f"`output` is {output}, which is a file; give a folder.")
    model, processor = load_checkpoint(checkpoint, dtype, any_head=True)
    if not model.config.contact_head:
        raise ValueError(
            f"{checkpoint} has no contact head; train one on it (examples/contacts), or start with `from_esm` from an "
            "ESM-2 that has one."
        )
    atoms = tuple(dict.fromkeys((*processor.coordinate_atoms, "CA")))
    chains = read_proteins(protein, atoms, min_plddt, chain_ids)
    stems = file_stems([chain.id for chain in chains])
    output.mkdir(parents=True, exist_ok=True)
    reports = []
    for stem, chain in zip(stems, tqdm(chains, unit="chain", disable=not progress), strict=True):
        probabilities = predict_chain(model, processor, chain, without_coords=without_coords, window=window)
        labels = chain_labels(chain)
        precision = precision_at(probabilities, labels)
        known = bool((labels >= 0).any())
        report = {
            "id": chain.id,
            "file": stem,
            "residues": len(chain),
            "coordinates": coordinates_given(model, chain, without_coords),
            "contacts": int((labels == 1).sum()) // 2 if known else None,
            # JSON has no NaN.
            "precision": {
                name: {cut: None if math.isnan(value) else value for cut, value in cuts.items()}
                for name, cuts in precision.items()
            },
        }
        title = f"{chain.id}, coordinates {report['coordinates']}"
        if known:
            title += f"\nprecision at L: {describe_precision(precision)}"
        _write_chain(output / stem, chain.sequence, probabilities, labels, title)
        reports.append(report)
    summary = {"checkpoint": Path(checkpoint).name, "protein": Path(protein).name, "dtype": dtype, "window": window}
    summary |= {"chains": reports}
    write_text(output / "contacts.json", json.dumps(summary, indent=2) + "\n")
    return summary


def describe_precision(precision: Mapping[str, Mapping[str, float | None]]) -> str:
    """`short 0.31, medium 0.22, long 0.10` at L; a range without one has a dash."""
    values = {name: math.nan if cuts["L"] is None else cuts["L"] for name, cuts in precision.items()}
    return ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.2f}'}" for name, value in values.items())


def _write_chain(stem: Path, sequence: str, probabilities: np.ndarray, labels: np.ndarray, title: str) -> None:
    def write_arrays(path: Path) -> None:
        with open(path, "wb") as file:  # given a name, numpy would add .npz to it
            np.savez_compressed(file, probabilities=probabilities, contacts=labels, sequence=sequence)

    # Not `with_suffix`: an id may have dots.
    write_atomically(stem.with_name(f"{stem.name}.npz"), write_arrays)
    write_atomically(stem.with_name(f"{stem.name}.tsv"), lambda path: write_pairs(probabilities, sequence, path))
    plot_contacts({title: probabilities}, labels, stem.with_name(f"{stem.name}.png"))
