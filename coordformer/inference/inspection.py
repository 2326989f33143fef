"""What the verbs read in files: chains, and what their residues are called: `coordformer inspect`."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_text
from ..data.inputs import Reject
from ..data.records import counted, first_lines, first_ones
from ..model.chain import Chain
from ..model.proteins import as_chain
from ..model.residues import ResidueNumbers
from .runner import Inputs, check_file, warn_of_rejects, why_no_chain
from .selection import LOW_PLDDT, low_plddt, unknown_letters

ATOMS = ("N", "CA", "C", "O")  # all that a model here reads
HEAD = ("id", "file", "chain", "residue", "position", "letter", "atoms", "b_factor")
LISTED = 8  # ranges that a line names


def inspect(
    inputs: Sequence[str | Path] | str | Path, output: str | Path | None = None, *, split: str | None = None,
    chain_ids: Sequence[str] | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Say what is in files of proteins, without a model.

    Args:
        inputs: structure and FASTA files, archives, folders, data sets.
        output: a CSV file, gets a row for each residue: `id`, `file` (see `Inputs.file_of`), `chain`, `residue` (its
            name, as options and mutants have it), `position` in the chain from 1, `letter`, observed `atoms` of the
            backbone, and `b_factor`, pLDDT in predicted structures.
        split, chain_ids: as of `runner.Inputs`.
        progress: show a progress bar.

    Returns:
        `rejected` (files or chains that cannot be read) and `chains`, of each `id`, `file`, `residues`, their `ranges`,
        which end where numbers jump, those with an insertion code as `inserted`, those without coordinates as
        `unobserved`, as `missing` what is not even in the file's sequence (`ResidueNumbers.gaps`), those that are X as
        `unknown`, the `atoms` that any residue has, `method`, `resolution`, Å, `low_plddt` (see
        `selection.low_plddt`), and `copy_of`, the first chain of the file that has the same sequence.

    Raises:
        ValueError: an argument is unusable, or no chain can be read.
    """
    check_file(output, ".csv")
    given = Inputs(inputs, atoms=ATOMS, optional_atoms=ATOMS, split=split, chain_ids=chain_ids)
    rejects: list[Reject] = list(given.rejects)
    reports: list[dict[str, Any]] = []
    seen: dict[tuple[str, str], str] = {}  # first chains of a file and sequence
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEAD)
    for part in tqdm(range(len(given)), unit="part", disable=not progress or len(given) < 2, leave=False):
        for record in given.read(part, rejects)[0]:
            chain, file = as_chain(record), given.file_of(record)
            residues = ResidueNumbers(chain)
            first = seen.setdefault((file, chain.sequence), chain.id)
            reports.append(_report(chain, residues, file) | {"copy_of": None if first == chain.id else first})
            if output is not None:
                table.writerows(_lines(chain, residues, file))
    if not reports:
        raise ValueError(why_no_chain(given, rejects))
    if output is not None:
        write_text(Path(output), text.getvalue())
    warn_of_rejects(rejects)
    return {"chains": reports, "rejected": len(rejects)}


def _report(chain: Chain, residues: ResidueNumbers, file: str) -> dict[str, Any]:
    observed = chain.observed.any(axis=1)
    jumps = [0, *np.flatnonzero(residues.jumps).tolist(), len(chain)]
    report: dict[str, Any] = {"id": chain.id, "file": file, "residues": len(chain)}
    report["ranges"] = [text for start, end in pairwise(jumps) for text in residues.ranges(range(start, end))]
    coded = [index for index, number in enumerate(residues.numbers) if number[-1:].isalpha()]
    report["inserted"] = list(map(residues.name, coded))
    report["missing"] = residues.gaps()
    report |= {"unknown": [], **unknown_letters(residues, range(len(chain)))}
    report["unobserved"] = residues.ranges(np.flatnonzero(~observed).tolist())
    report["atoms"] = [chain.atoms[slot] for slot in np.flatnonzero(chain.observed.any(axis=0))]
    report |= {"method": chain.method, "resolution": chain.resolution}
    return {**report, "low_plddt": [], **low_plddt(chain, residues)}


def _lines(chain: Chain, residues: ResidueNumbers, file: str) -> Iterator[list[Any]]:
    names = np.array(chain.atoms)
    for index, letter in enumerate(chain.sequence):
        value = chain.b_factor[index]
        cells = [residues.chain_name(index), residues.name(index), residues.positions[index], letter]
        there = " ".join(names[chain.observed[index]])
        yield [chain.id, file, *cells, there, "" if np.isnan(value) else f"{value:g}"]


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text, a line for each chain."""
    lines = []
    for chain in summary["chains"]:
        what = [f"{counted(chain['residues'], 'residue')}, {_listed(chain['ranges'])}"]
        what += [f"inserted {_listed(chain['inserted'])}"] if chain["inserted"] else []
        what += [f"not observed {_listed(chain['unobserved'])}"] if chain["unobserved"] and chain["atoms"] else []
        what += [f"letter not known (X) {_listed(chain['unknown'])}"] if chain["unknown"] else []
        what += [f"gap where the file has nothing: {', '.join(chain['missing'])}"] if chain["missing"] else []
        what += [f"pLDDT below {LOW_PLDDT} {_listed(chain['low_plddt'])}"] if chain["low_plddt"] else []
        what += [f"sequence of {chain['copy_of']}"] if chain["copy_of"] else []
        what.append(", ".join(chain["atoms"]) or "no coordinates")
        lines.append(f"{chain['id']}: {'; '.join(what)}")
    return first_lines(lines)


def _listed(texts: Sequence[str]) -> str:
    return first_ones(texts, LISTED, " ")
