"""Sequences for backbones, as files: `coordformer design`."""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_atomically, write_json, write_text
from ..data.inputs import Reject
from ..data.records import counted, current_commit, first_lines, hash_file
from ..model.chain import AMINO_ACIDS, Chain, split_by_chain
from ..model.coordinates import placed_in
from ..model.design import NOISE_LEVEL, Designs, check_drawing, design, plan_design
from ..model.proteins import as_chain, id_of
from ..model.residues import ResidueNumbers, choose_numbering
from .checkpoints import (
    digest_weights,
    load_checkpoint,
    training_reports,
    training_sequences_of,
    warn_of_training,
)
from .figures import plot_probabilities
from .runner import PARTS, REJECTS, Inputs, file_stems, is_data_set, join_tables, parts_in, run_parts, write_arrays
from .selection import (
    low_plddt,
    named_residues,
    read_copies,
    say_copies,
    say_left_out,
    say_low_plddt,
    say_missing,
    say_unknown,
    unknown_letters,
)

logger = logging.getLogger(__name__)

HEAD = (
    "id", "file", "rank", "temperature", "sample", "score", "global_score", "pseudo_score", "seq_recovery",
    "designed_residues", "designed_sequence", "sequence",
)  # fmt: skip
BACKGROUND = 2.89  # nats of the frequencies of residues: a perplexity of 18.1, see examples/inverse_folding
FEW = 20  # residues, of which a mean says little
SELECTING = ("fixed_residues", "redesigned_residues", "chains_to_design")


def design_files(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, *,
    num_samples: int = 8, temperature: Sequence[float] = (0.1,), seed: int = 0, rounds: int | str | None = None,
    fixed_residues: str | None = None, redesigned_residues: str | None = None,
    chains_to_design: Sequence[str] | None = None, omit_aa: str = "", bias_aa: str | None = None,
    omit_per_residue: str | Path | None = None, bias_per_residue: str | Path | None = None,
    symmetry_residues: str | None = None, symmetry_weights: str | None = None, homo_oligomer: bool = False,
    pssm: str | Path | None = None, gaps: str = "X", rescore: bool = False, probabilities: bool = False,
    structures: bool = False, figures: bool = True, numbering: str | None = None, as_complex: bool = True,
    noise_level: float | None = None, dtype: str = "float32", token_budget: int = 8192,
    entries_per_part: int = 16, progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Design sequences for structures; arguments that are not below are those of `design` and `plan_design`.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer.
        inputs: structure files, archives, folders, data sets; each file is one complex.
        output: a folder. Gets for each protein ID.fasta, whose first record is the native sequence, chains joined by
            `/`; ID.png, the probabilities of the letters; `designs.csv`, of each protein the best score first; and
            `design.json`. The table has what was designed by itself: `designed_residues`, their names with blanks
            between (`ResidueNumbers.name`), and `designed_sequence`, their letters in the same order; and `file`, the
            input (`Inputs.file_of`).
        bias_aa: such as `"W:3.0 P:-2"`.
        omit_per_residue, bias_per_residue: JSON files, `{"A12": "CM"}` and `{"A12": {"W": 3.0}}`, of one protein, or by
            the ids of several.
        pssm: CSV or npz file of (L, 20) nats, columns in the order of `AMINO_ACIDS`; of several proteins npz, by id.
        rescore: the table gets the column `pseudo_score`, and the FASTA file the same.
        gaps: the letter that is written for residues without coordinates whose letter is not known.
        probabilities: also ID.npz and ID.csv, before and after bias and temperature.
        structures: also ID.cif of the best design: its letters in the given backbone, with confidence as B-factor.
        figures: write ID.png, which can take longer than a design.
        as_complex: each structure file is one complex; otherwise each of its chains is designed alone.
        dtype: of the weights.
        entries_per_part, reading (`split`, `chain_ids`, `min_plddt`, `assembly`, `shard`): as of `runner.Inputs`.

    Returns:
        What is also in `design.json`: the settings, counts, and `proteins`, of each `id`, `file`, `residues`,
        `designed`, `sequences`, how many of them are `distinct`, `native_score`, the means of `score` and
        `seq_recovery`, and `trained_on` (see `checkpoints.trained_on`), which `trained_on_sequences` counts. With
        `redesigned_residues` how many were `chosen`, and of these the `unobserved`, as ranges; and `missing_residues`,
        what the file skips without naming it, `unknown` (designed residues that were X), `low_plddt`, `copies` and
        `one_of_each`, as of `score`.

    Raises:
        ValueError: an argument or input is unusable.
    """
    output = Path(output)
    if len(gaps) != 1 or gaps not in "X-":
        raise ValueError(f"`gaps` is {gaps!r}; write X or -.")
    temperatures, rounds = check_drawing(num_samples, temperature, seed, _rounds(rounds))
    asked, _ = choose_numbering(numbering)
    shared: dict[str, Any] = {"fixed_residues": fixed_residues, "redesigned_residues": redesigned_residues}
    shared |= {"chains_to_design": chains_to_design and list(chains_to_design), "omit_aa": omit_aa}
    shared["homo_oligomer"] = homo_oligomer
    shared |= {"symmetry_residues": symmetry_residues, "symmetry_weights": symmetry_weights, "numbering": asked}
    bias = parse_bias(bias_aa) if bias_aa else None
    omitted, biases = _read_json(omit_per_residue), _read_json(bias_per_residue)
    matrices = _read_pssm(pssm)
    if odd := sorted(set(omit_aa) - set(AMINO_ACIDS)):
        raise ValueError(f"`omit_aa` has {', '.join(odd)}; letters are among {AMINO_ACIDS}.")
    # Told again by `design`, which has a default of its own.
    model, processor = load_checkpoint(checkpoint, dtype, noise_level=noise_level)
    files = not all(map(is_data_set, [inputs] if isinstance(inputs, str | Path) else inputs))
    reading |= {"as_complex": as_complex and files, **processor.reads}
    given = Inputs(inputs, entries_per_part=entries_per_part, **reading)
    say_left_out(inputs, reading, "design")
    if all(shared[name] is None for name in SELECTING):
        logger.warning("every residue with coordinates is designed; choose some by --redesigned_residues or others")
    drawing: dict[str, Any] = {"num_samples": num_samples, "temperature": temperatures, "seed": seed}
    drawing |= {"rounds": rounds, "rescore": rescore}
    if model.config.noise_conditioning:
        drawing["noise_level"] = NOISE_LEVEL if noise_level is None else noise_level
    training = training_sequences_of(checkpoint)
    note = {"model": Path(checkpoint).name, "seed": seed, "commit": current_commit()[:12] or "installed"}

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        reports: list[dict[str, Any]] = []
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([name for name in HEAD if rescore or name != "pseudo_score"])
        for record, stem in zip(records, file_stems(output, part, records), strict=True):
            name = id_of(record)
            try:
                protein = as_chain(record)
                residues = ResidueNumbers(protein, numbering=asked)
                placed = placed_in(protein, model)
                _check_choice(placed, residues, shared)
                own = {"omit_per_residue": _of_protein(omitted, name, 1)}
                own |= {"bias_per_residue": _of_protein(biases, name, 2), "placed": placed}
                task = plan_design(protein, **shared, **own, bias_aa=bias, pssm=matrices.get(name, matrices.get("")))
                designs = design(model, protein, task, processor=processor, token_budget=token_budget, **drawing)
            except ValueError as error:
                rejects.append(("", name, str(error).removeprefix(f"{name}: ")))
                continue
            finally:
                bar.update()
            write_text(Path(f"{stem}.fasta"), fasta(designs, note, gaps))
            table.writerows(_lines(designs, residues, given.file_of(name), gaps, rescore))
            if figures:
                observed: Any = protein.observed.any(axis=1)
                plot_probabilities(Path(f"{stem}.png"), designs, residues, observed)
            if probabilities:
                _write_probabilities(stem, designs, residues)
            if structures:
                write_structure(Path(f"{stem}.cif"), protein, designs)
            (trained,) = training_reports(training, [protein])
            report = {"id": name, "file": given.file_of(name)} | _report(designs) | trained
            if redesigned_residues is not None:
                kept = [index for index in _chosen(residues, shared) if not designs.designed[index]]
                report["unobserved"] = residues.ranges(kept)
                report["chosen"] = report["designed"] + len(kept)
            report |= low_plddt(protein, residues)
            designed = np.flatnonzero(designs.designed).tolist()
            report |= unknown_letters(residues, designed)
            if not homo_oligomer and symmetry_residues is None:
                report |= read_copies(protein, residues, designed, designed)
            if missing := residues.gaps():
                report["missing_residues"] = missing
            reports.append(report)
        write_text(output / PARTS / f"{part}.csv", text.getvalue())
        counts = {"chains": len(reports), "residues": sum(report["residues"] for report in reports)}
        return {"reports": reports, "file": f"{PARTS}/{part}.csv", **counts}

    settings = {"checkpoint": Path(checkpoint).name, "dtype": dtype, "gaps": gaps, **drawing, **shared, "bias_aa": bias}
    guarded = {
        "verb": "design",
        "weights": digest_weights(model),
        "probabilities": probabilities,
        "structures": structures,
        "figures": figures,
    }
    paths = {"omit_per_residue": omit_per_residue, "bias_per_residue": bias_per_residue, "pssm": pssm}
    guarded |= {name: path and hash_file(path) for name, path in paths.items()}
    with parts_in(output, given):
        outcome = run_parts(given, output, settings | guarded, work, progress)
        summary: dict[str, Any] = settings | outcome.counts()
        reports = [report for record in outcome.records for report in record.get("reports", ())]
        what = "recoveries and scores say"
        summary["trained_on_sequences"] = warn_of_training(settings["checkpoint"], reports, "id", what)
        say_missing(reports, "id", "sequences are joined there")
        _warn_of_unobserved(reports)
        say_low_plddt(reports, "id")
        say_unknown(reports, "id", "they get letters as all others; --fixed_residues keeps them")
        _warn_of_unlikely(reports)
        say_copies(reports, "id", "; --symmetry_residues or --homo_oligomer give copies one letter")
        summary["proteins"] = reports
        if outcome.complete:
            outcome.list_rejects(output / REJECTS)
            join_tables([output / each["file"] for each in outcome.records if "file" in each], output / "designs.csv")
            write_json(output / "design.json", summary)
    return summary


def _chosen(residues: ResidueNumbers, shared: Mapping[str, Any]) -> list[int]:
    """Indices of `redesigned_residues` in the chains that are designed."""
    chains = shared["chains_to_design"]
    indices = sorted(residues.select(shared["redesigned_residues"]))
    return [index for index in indices if chains is None or residues.chain_name(index) in chains]


def _check_choice(observed: np.ndarray, residues: ResidueNumbers, shared: Mapping[str, Any]) -> None:
    """Refuse residues of which none can be designed.

    Raises:
        ValueError: none has coordinates, none is in a chain that is designed, or all are fixed; the message names them.
    """
    text, fixed, chains = (shared[name] for name in ("redesigned_residues", "fixed_residues", "chains_to_design"))
    if None not in (text, fixed) or not set(chains or ()) <= set(residues.chain_names):
        return  # of which `plan_design` says what is wrong
    inside = [index for index in range(len(observed)) if chains is None or residues.chain_name(index) in chains]
    asked = inside if text is None else residues.select(text)
    kept = [] if fixed is None else residues.select(fixed)
    chosen = sorted({*asked}.intersection(inside).difference(kept))
    if shared["homo_oligomer"] or observed[chosen].any():
        return  # of a homo-oligomer a copy may be observed
    if not observed.any():
        why = "no residue has coordinates; give a structure"
    elif text is not None and not chosen:
        why = f"`redesigned_residues` {text!r} are in no chain of `chains_to_design`, {', '.join(chains)}"
    elif text is not None:
        have = f"{text!r} {'has' if len(chosen) == 1 else 'have'} no coordinates"
        why = f"{' '.join(residues.ranges(chosen))} of `redesigned_residues` {have}; choose others"
    elif fixed is not None:
        why = f"`fixed_residues` {fixed!r} keep all residues with coordinates; fix fewer"
    else:
        why = f"the chains of `chains_to_design`, {', '.join(chains)}, have no coordinates; choose others"
    raise ValueError(f"nothing is left to design; {why}.")


def _warn_of_unobserved(reports: Sequence[Mapping[str, Any]]) -> None:
    """Say which of the residues that were to be designed have no coordinates."""
    here = [report for report in reports if report.get("unobserved")]
    if not here:
        return
    chosen, designed = (sum(report[name] for report in here) for name in ("chosen", "designed"))
    listed = named_residues(reports, "id", "unobserved")
    verb = "was" if chosen - designed == 1 else "were"
    what = f"{chosen - designed:,} of {counted(chosen, 'residue')} {verb} not observed"
    logger.warning("%s: %s; what has no coordinates keeps its letter", what, listed)


def _warn_of_unlikely(reports: Sequence[Mapping[str, Any]]) -> None:
    """Say of which proteins the native letters are no likelier than elsewhere: the backbone tells the model nothing."""
    unlikely = [each for each in reports if (each["native_score"] or 0.0) > BACKGROUND and each["designed"] >= FEW]
    if unlikely:
        first = unlikely[0]
        more = f", and so of {len(unlikely) - 1:,} more" if unlikely[1:] else ""
        what = f"the native letters of {first['id']}, masked all at once, are no likelier than their frequencies"
        fix = "the model does not know this fold from its backbone, and designs are guesses; where fewer residues are "
        fix += "designed at once, the others tell more"
        numbers = f"{first['native_score']:.2f} nats, {BACKGROUND:.2f}"
        logger.warning("%s (%s)%s: %s", what, numbers, more, fix)


def _rounds(rounds: int | str | None) -> int | str | None:
    if rounds is None or rounds == "all" or isinstance(rounds, int):
        return rounds
    if not rounds.isdigit():
        raise ValueError(f"`rounds` is {rounds!r}; write a number from 1 on, or all.")
    return int(rounds)


def parse_bias(text: str) -> dict[str, float]:
    """`W:3.0 P:-2` as a dictionary.

    Raises:
        ValueError: it is written otherwise, or has another letter than the 20.
    """
    try:
        pairs = [part.split(":") for part in text.replace(",", " ").split()]
        bias = {letter: float(value) for letter, value in pairs}
    except ValueError:
        raise ValueError(f"`bias_aa` is {text!r}; write letters and nats, such as 'W:3.0 P:-2'.") from None
    if odd := sorted(set(bias) - set(AMINO_ACIDS)):
        raise ValueError(f"`bias_aa` has {', '.join(odd)}; letters are among {AMINO_ACIDS}.")
    return bias


def _read_json(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds a {type(values).__name__}; give an object with residues, such as A12, as names."
        )
    return values


def _of_protein(values: Mapping[str, Any], name: str, depth: int) -> Any:
    """Values by residue, of a file that has them of one protein, or, nested `depth` deep, by the ids of several."""
    several = bool(values)
    each: list[Any] = list(values.values())
    for _ in range(depth):
        several = several and all(isinstance(value, dict) for value in each)
        each = [inner for value in each if isinstance(value, dict) for inner in value.values()]
    return values.get(name) if several else values


def _read_pssm(path: str | Path | None) -> dict[str, np.ndarray]:
    """Matrices by the ids of proteins; one that is of any has no id."""
    if path is None:
        return {}
    try:
        if Path(path).suffix == ".npz":
            with np.load(path) as file:
                matrices = {name: file[name] for name in file.files}
            return {"": next(iter(matrices.values()))} if len(matrices) == 1 else matrices
        head, *lines = Path(path).read_text(encoding="utf-8").strip().splitlines()
        if (letters := head.replace(" ", "")) == ",".join(AMINO_ACIDS):
            head, *lines = lines
        elif any(letter.isalpha() for letter in letters.replace("e", "").replace("inf", "")):
            raise ValueError(f"its first line is {head!r}")
        return {"": np.loadtxt([head, *lines], delimiter=",", ndmin=2)}
    except (ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no PSSM ({error}); give CSV or npz with 20 columns, {AMINO_ACIDS}.") from error


def _ranked(designs: Designs) -> list[int]:
    """Numbers of the sequences, the best score first."""
    return np.argsort(designs.scores, kind="stable").tolist()


def _joined(designs: Designs, sequence: str, gaps: str) -> str:
    return "/".join(designs.split(sequence.replace("X", gaps)))


def fasta(designs: Designs, note: Mapping[str, Any], gaps: str = "X") -> str:
    """The native sequence and the designs as FASTA, chains joined by `/`; ids are ID and ID_TEMPERATURE_SAMPLE."""
    about = ", ".join(f"{name}={value}" for name, value in note.items())
    native = f"score={designs.native_score:.4f}, global_score={designs.native_global_score:.4f}"
    if not math.isnan(designs.native_pseudo_score):
        native += f", pseudo_score={designs.native_pseudo_score:.4f}"
    lines = [f">{designs.id} native, {native}, {about}", _joined(designs, designs.native, gaps)]
    for number, sequence in enumerate(designs.sequences):
        drawn = f"{designs.temperatures[number]:g}", designs.samples[number]
        head = f">{designs.id}_{drawn[0]}_{drawn[1]} T={drawn[0]}, sample={drawn[1]}"
        head += f", score={designs.scores[number]:.4f}, global_score={designs.global_scores[number]:.4f}"
        pseudo = designs.pseudo_scores[number]
        head += "" if math.isnan(pseudo) else f", pseudo_score={pseudo:.4f}"
        lines += [f"{head}, seq_recovery={designs.recoveries[number]:.4f}, {about}", _joined(designs, sequence, gaps)]
    return "\n".join(lines) + "\n"


def _lines(designs: Designs, residues: ResidueNumbers, file: str, gaps: str, rescore: bool) -> list[list[Any]]:
    designed = np.flatnonzero(designs.designed).tolist()
    names = " ".join(map(residues.name, designed))
    lines = []
    for rank, number in enumerate(_ranked(designs), 1):
        values = [designs.scores[number], designs.global_scores[number]]
        values += [*[designs.pseudo_scores[number]] * rescore, designs.recoveries[number]]
        cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
        drawn = [f"{designs.temperatures[number]:g}", designs.samples[number]]
        sequence = designs.sequences[number]
        letters = "".join(sequence[index] for index in designed)
        lines.append([designs.id, file, rank, *drawn, *cells, names, letters, _joined(designs, sequence, gaps)])
    return lines


def _report(designs: Designs) -> dict[str, Any]:
    def rounded(value: float) -> float | None:
        return None if math.isnan(value) else round(float(value), 6)  # JSON has no NaN

    return {
        "residues": len(designs.native),
        "designed": int(designs.designed.sum()),
        "sequences": len(designs.sequences),
        "distinct": len(set(designs.sequences)),
        "native_score": rounded(designs.native_score),
        "score": rounded(designs.scores.mean()),
        "seq_recovery": rounded(designs.recoveries.mean()),
    }


def _write_probabilities(stem: Path, designs: Designs, residues: ResidueNumbers) -> None:
    before = np.exp(designs.log_probabilities)
    arrays: dict[str, Any] = {"probabilities": before, "biased": designs.biased, "letters": np.array(list(AMINO_ACIDS))}
    arrays |= {"temperatures": np.unique(designs.temperatures), "designed": designs.designed}
    write_arrays(Path(f"{stem}.npz"), **arrays, residues=np.array([residues.name(i) for i in range(len(residues))]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["residue", "position", "native", "designed", *AMINO_ACIDS, *(f"biased_{aa}" for aa in AMINO_ACIDS)])
    for index, native in enumerate(designs.native):
        after = ["" if math.isnan(value) else f"{value:.6g}" for value in designs.biased[0, index]]
        about = [residues.name(index), residues.positions[index], native, int(designs.designed[index])]
        table.writerow([*about, *(f"{value:.6g}" for value in before[index]), *after])
    write_text(Path(f"{stem}.csv"), text.getvalue())


def write_structure(path: Path, protein: Chain, designs: Designs) -> None:
    """The best design in the backbone it was made for, as mmCIF: the probability of each letter, in %, as B-factor."""
    sequence = designs.sequences[_ranked(designs)[0]]
    residues = ResidueNumbers(protein)
    structure, model = gemmi.Structure(), gemmi.Model(1)
    structure.name = designs.id
    names = [gemmi.expand_one_letter(each, gemmi.ResidueKind.AA) if each != "X" else "UNK" for each in sequence]
    parts = (split_by_chain(values, residues.chain_lengths) for values in (names, protein.positions))
    for start, polymer, positions in zip(residues.chain_starts, *parts, strict=True):
        chain = gemmi.Chain(residues.chain_name(start) or "A")
        entity = gemmi.Entity(str(len(model) + 1))
        entity.entity_type, entity.polymer_type = gemmi.EntityType.Polymer, gemmi.PolymerType.PeptideL
        entity.subchains = [f"{chain.name}xp"]
        if np.diff(positions).max(initial=1) == 1:  # else residues are missing whose letters nobody knows
            entity.full_sequence = polymer
        for index, name in enumerate(polymer, start):
            residue = gemmi.Residue()
            residue.name, residue.label_seq = name, index - start + 1
            number = residues.numbers[index] or str(residues.positions[index])
            code = number[-1] if number[-1].isalpha() else " "
            residue.seqid = gemmi.SeqId(int(number.removesuffix(code)), code)
            residue.subchain, residue.entity_id = entity.subchains[0], entity.name
            residue.het_flag, residue.entity_type = "A", entity.entity_type
            letter = AMINO_ACIDS.find(sequence[index])
            share = math.exp(designs.log_probabilities[index, letter]) if letter >= 0 else 0.0
            for slot in np.flatnonzero(protein.observed[index]):
                atom = gemmi.Atom()
                atom.name, atom.element = protein.atoms[slot], gemmi.Element(protein.atoms[slot][0])
                atom.pos = gemmi.Position(*map(float, protein.coords[index, slot]))
                atom.b_iso, atom.occ = 100 * share, 1.0
                residue.add_atom(atom)
            if len(residue):
                chain.add_residue(residue)
        model.add_chain(chain)
        structure.entities.append(entity)
    structure.add_model(model)
    structure.assign_serial_numbers()
    text = structure.make_mmcif_document().as_string()
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    lines = []
    for protein in summary["proteins"]:
        line = f"{protein['id']}: {counted(protein['sequences'], 'sequence')}"
        if (distinct := protein.get("distinct", protein["sequences"])) < protein["sequences"]:
            line += f", {distinct:,} distinct,"
        line += f" for {protein['designed']:,} of "
        line += counted(protein["residues"], "residue")
        if protein["seq_recovery"] is not None:
            line += f"; recovery {100 * protein['seq_recovery']:.1f} %, score {protein['score']:.3f}"
            line += "" if protein["native_score"] is None else f" (native {protein['native_score']:.3f})"
        lines.append(line)
    return first_lines(lines)
