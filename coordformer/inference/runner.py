"""The one way from what a verb is given to its files.

Inputs (files, folders, tar archives, FASTA, data sets) are cut into parts of so many entries; a part is read, predicted
and written, and then recorded in `parts/`. So a run that was stopped goes on with the parts that are missing, and
`--shard 3/64` takes every 64th part: the jobs of an array write disjoint files, which together are those of one run.
The job that finds all parts recorded makes what is made of all of them. What cannot be read is listed in `rejected.tsv`
and costs nothing else.
"""

import csv
import hashlib
import json
import logging
import mmap
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.batching import fetch_rows
from ..data.files import write_atomically, write_json
from ..data.inputs import (
    Reject,
    Source,
    is_archive,
    list_sources,
    name_entries,
    read_and_hash,
    write_rejects,
)
from ..data.pack import open_chains
from ..data.records import RUN, begin_run, hash_json, lock_folder, other_locks
from ..model.chain import Chain
from ..model.proteins import SEQUENCE_SUFFIXES, Record, distinct_ids, has_suffix, id_of, residues_of
from ..model.structure import STRUCTURE_SUFFIXES, read_proteins

logger = logging.getLogger(__name__)

PARTS, REJECTS = "parts", "rejected.tsv"
LONGEST_STEM = 200  # bytes, of the 255 that file systems have
NAMES = {"checkpoint", "ensemble"}  # settings that do not decide results, since what is in the weights does
# What settings are of runs that do not have them: those of an older version, or in which they were not given.
UNSTATED = {"as_complex": False, "noise_level": None, "ensemble_weights": None, "figures": True}


def is_data_set(path: str | Path) -> bool:
    """Whether a path is a data set of chains: a Parquet or packed file, or a folder made by `coordformer prepare`."""
    path = Path(path)
    if path.is_dir():
        return any(path.glob("data/*.parquet")) or any(path.glob("*.parquet"))
    return path.suffix in (".parquet", ".safetensors")


@dataclass
class _Rows:
    """A part that is rows of a data set; `mark` tells its clusters from those of other data sets."""

    rows: Any
    inside: range
    name: str
    mark: str


class Inputs:
    """The chains of files and data sets, in parts.

    Files whose ids would be equal have their entry replaced, see `name_entries`. Equal ids of FASTA files and of
    members of compressed archives are told apart within a part, see `distinct_ids`; between parts they may be equal.

    Args:
        inputs: structure and FASTA files, tar archives, folders of these, and data sets (see `is_data_set`).
        split: only rows of the data sets whose column `split` has this value.
        atoms, optional_atoms: what to read of structure files, as of `read_chains`.
        chain_ids: only these chains of each file, by id or name.
        min_plddt: residues of predicted structures below this confidence count as not observed.
        as_complex, assembly: of structure files each is one complex, as it is or as an assembly, see `read_proteins`.
        entries_per_part: structure files, sequences or rows of a part; a compressed file of several is one part, and so
            is a FASTA file of which `chain_ids` are read.
        shard: `3/64`: only every 64th part, from the third on, as the third of 64 jobs.

    Attributes:
        names: of what was given, without the folders it lies in.
        job, jobs: number of this job, and of all.
        may_repeat: whether chains of two parts may have one id: only structure files are asked for theirs beforehand.
        rejects: what of the archives cannot be listed.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is nothing to read, or an argument does not go with what was given.
    """

    def __init__(
        self, inputs: Sequence[str | Path] | str | Path, *, split: str | None = None, atoms: Sequence[str] = ("CA",),
        optional_atoms: Sequence[str] = (), chain_ids: Sequence[str] | None = None, min_plddt: float | None = None,
        as_complex: bool = False, assembly: str | None = None, entries_per_part: int = 1000, shard: str | None = None,
    ):  # fmt: skip
        given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
        if not given:
            raise ValueError("There is nothing to read; give structure or FASTA files, folders, archives or data sets.")
        if entries_per_part < 1:
            raise ValueError(f"`entries_per_part` is {entries_per_part}; it must be at least 1.")
        data_sets = [path for path in given if is_data_set(path)]
        files = [path for path in given if path not in data_sets]
        if split is not None and not data_sets:
            raise ValueError(f"`split` is {split!r}, but files have no splits; it goes with data sets.")
        if not files and (chain_ids is not None or min_plddt is not None or as_complex or assembly is not None):
            raise ValueError(
                "`chain_ids` and `min_plddt` go with files; the chains of a data set are chosen already, and joined to "
                "complexes (`as_complex`, `assembly`)."
            )
        self.job, self.jobs = parse_shard(shard)
        self.names = [Path(path).name for path in given]
        self.settings = {"split": split, "chain_ids": chain_ids and list(chain_ids), "min_plddt": min_plddt}
        self._reading: dict[str, Any] = {"atoms": atoms, "optional_atoms": optional_atoms}
        self._reading |= {"min_plddt": min_plddt, "chain_ids": chain_ids}
        complexes = {"as_complex": as_complex or assembly is not None, "assembly": assembly}
        self.settings |= complexes
        self._reading |= complexes
        self.rejects: list[Reject] = []
        self._files: dict[str, str] = {}  # of the part that was read last, by id
        self._parts: list[list[Source] | _Rows] = []
        listed: list[Any] = []
        sources: list[Source] = []
        chains: Counter[str] = Counter()
        for path in data_sets:
            rows = open_chains(path, split)
            ids = list(map(str, rows["id"][:]))
            chains.update(ids)
            listed.append(hash_json(ids))
            mark = f"{len(listed)}." if len(data_sets) > 1 else ""
            for start in range(0, len(rows), entries_per_part):
                inside = range(start, min(start + entries_per_part, len(rows)))
                self._parts.append(_Rows(rows, inside, Path(path).name, mark))
        if twice := [name for name, count in chains.items() if count > 1]:
            what = f"{len(twice)} ids of {', '.join(map(str, data_sets))} stand for several chains, such as {twice[0]}"
            raise ValueError(f"{what}; give each chain its own.")
        if files:
            sources, self.rejects = list_sources(files, (*STRUCTURE_SUFFIXES, *SEQUENCE_SUFFIXES))
            sources = name_entries(sources)
            listed.append([[source.name, source.size] for source in sources])
            self._parts += _parts_of(sources, entries_per_part, cut=chain_ids is None)
        if not self._parts and not self.rejects:
            raise ValueError(why_no_chain(self, []))
        self.settings |= {"entries_per_part": entries_per_part, "inputs": hash_json(listed)}
        sequences = [has_suffix(source.name, SEQUENCE_SUFFIXES) or is_archive(source) for source in sources]
        self.may_repeat = len(self._parts) > 1 and bool(files) and (bool(data_sets) or any(sequences))

    def __len__(self) -> int:
        """Number of parts."""
        return len(self._parts)

    def name(self, number: int) -> str:
        """`00003-of-00079`, for files of a part."""
        return f"{number:05d}-of-{len(self):05d}"

    def describe(self, number: int) -> str:
        """What a part is read from, for messages: `a.pdb to k.pdb`."""
        part = self._parts[number]
        if isinstance(part, _Rows):
            return f"rows {part.inside.start} to {part.inside.stop - 1} of {part.name}"
        return " to ".join(dict.fromkeys((part[0].name, part[-1].name)))

    def hash(self, number: int) -> str:
        """SHA-256 of what the chains of a part are read from."""
        digest = hashlib.sha256()
        for _ in self._contents(number, [], digest):
            pass
        return digest.hexdigest()

    def read(self, number: int, rejects: list[Reject]) -> tuple[list[Record], str]:
        """The chains of a part, those of a data set as rows, and `hash`; what cannot be read goes to `rejects`."""
        digest = hashlib.sha256()
        contents = self._contents(number, rejects, digest)
        if isinstance(part := self._parts[number], _Rows):
            rows = [row for _, _, row in contents]
            self._files = dict.fromkeys(map(id_of, rows), part.name)
            return rows, digest.hexdigest()
        chains: list[Chain] = []
        names: list[str] = []
        for name, entry, data in contents:
            problems: list[tuple[str, str]] = []
            try:
                if isinstance(data, str):
                    raise ValueError(data)
                found = read_proteins(name, **self._reading, problems=problems, data=data, entry=entry)
                chains += found
                names += [name] * len(found)
            except (ValueError, OSError, RuntimeError) as error:
                problems.append(("", str(error).removeprefix(f"{name}: ")))
            rejects += [(name, chain_id, reason) for chain_id, reason in problems]
        sequences = [not chain.observed.any() for chain in chains]  # a structure has something that is observed
        for chain, chain_id in zip(chains, distinct_ids(list(map(id_of, chains)), names, sequences), strict=True):
            chain.id = chain_id
        self._files = dict(zip(map(id_of, chains), names, strict=True))
        return list(chains), digest.hexdigest()

    def file_of(self, chain: Record | str) -> str:
        """What a chain, or an id, of the part that was read last comes from, as tables call it in the column `file`.

        A file has its path below the folder that all inputs have in common, a member of an archive `archive/member`,
        and a row the name of its data set. So it is the same in every job, and in a run that goes on.
        """
        name = self._files.get(chain if isinstance(chain, str) else id_of(chain), "")
        return name.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8

    def read_all(self) -> list[Record]:
        """The chains of all parts.

        Raises:
            ValueError: not a single one could be read.
        """
        rejects = list(self.rejects)
        if not (chains := [chain for number in range(len(self)) for chain in self.read(number, rejects)[0]]):
            raise ValueError(why_no_chain(self, rejects))
        _warn_of_equal(map(id_of, chains))
        return chains

    def _contents(self, number: int, rejects: list[Reject], digest: Any) -> Iterator[tuple[str, str | None, Any]]:
        """Names, entries and contents of a part's files, or ids and rows, all of which go into `digest`."""
        part = self._parts[number]
        if isinstance(part, list):
            for source in part:
                for name, data in read_and_hash(source, rejects, digest):
                    yield name, source.entry, data
            return
        records = fetch_rows(part.rows, part.inside, names=True)
        for column in ("cluster", "scop_sccs"):
            if column in part.rows.column_names:
                values = part.rows[column][part.inside.start : part.inside.stop]
                for record, value in zip(records, values, strict=True):
                    marked = part.mark and column == "cluster" and value is not None
                    record[column] = f"{part.mark}{value}" if marked else value
        for record in records:
            words = {name: value for name, value in record.items() if name != "coords"}
            digest.update(json.dumps(words, default=np.ndarray.tolist).encode())
            digest.update(np.asarray(record["coords"], dtype=np.float32).tobytes())
            yield str(record["id"]), None, record


def _parts_of(sources: Sequence[Source], entries_per_part: int, cut: bool) -> Iterator[list[Source]]:
    """Sources in groups of so many entries; what is not cut is a part by itself: a compressed archive, a gzipped FASTA
    file, and without `cut` any FASTA file."""
    part: list[Source] = []
    entries = 0
    for source in sources:
        fasta = has_suffix(source.path, SEQUENCE_SUFFIXES) and source.offset is None
        if is_archive(source) or (fasta and (not cut or source.path.lower().endswith(".gz"))):
            yield [source]
            continue
        for piece, size in _pieces(source, entries_per_part) if fasta else [(source, 1)]:
            if part and entries + size > entries_per_part:
                yield part
                part, entries = [], 0
            part.append(piece)
            entries += size
    if part:
        yield part


def _pieces(source: Source, entries_per_part: int) -> Iterator[tuple[Source, int]]:
    """A FASTA file in pieces of so many sequences, each with its number of sequences."""
    try:
        with open(source.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            gzipped = content[:2] == b"\x1f\x8b"  # whatever its name says
            starts = [] if gzipped else [match.start() for match in re.finditer(rb"^>", content, re.MULTILINE)]
    except (OSError, ValueError):  # what is empty or not to be read says so in its turn
        starts = []
    bounds = [0, *starts[entries_per_part::entries_per_part], source.size]
    for number, (start, end) in enumerate(pairwise(bounds)):
        size = min(entries_per_part, len(starts) - number * entries_per_part)
        yield (replace(source, offset=start, size=end - start) if len(bounds) > 2 else source), max(size, 1)


@dataclass
class Outcome:
    """What the parts of a run came to.

    Attributes:
        records: of the parts that are there, in their order: what `work` returned, `chains`, `residues`, `rejected`.
        parts: how many there are in all.
        rejects: what was left out, of the parts that are there.
    """

    records: list[dict[str, Any]]
    parts: int
    rejects: list[Reject]

    @property
    def complete(self) -> bool:
        """Whether all parts are there: then what is made of all of them can be made."""
        return len(self.records) == self.parts

    def counts(self) -> dict[str, int]:
        """`chains`, `residues` and `rejected` (files or chains); while parts are missing also `parts` and `missing`."""
        counts = {name: sum(record[name] for record in self.records) for name in ("chains", "residues")}
        counts["rejected"] = len(self.rejects)
        return counts if self.complete else counts | {"parts": self.parts, "missing": self.parts - len(self.records)}

    def list_rejects(self, path: Path | None) -> None:
        """When all parts are there, say how much was left out, and write it to a file if there is one to write."""
        if not self.complete:
            return
        warn_of_rejects(self.rejects)
        if self.rejects and path is not None:
            write_rejects(path, self.rejects)
        elif path is not None:  # of a run before this one
            path.unlink(missing_ok=True)


def warn_of_rejects(rejects: Sequence[Reject]) -> None:
    """Say how much was left out, and of the first why."""
    if rejects:
        first = ": ".join(filter(None, rejects[0]))
        several = f"{len(rejects):,} files or chains were left out; the first"
        logger.warning("%s: %s", several if len(rejects) > 1 else "1 file or chain was left out", first)


def parse_shard(shard: str | None) -> tuple[int, int]:
    """`3/64` as (3, 64); None is (1, 1).

    Raises:
        ValueError: it is no such pair, or beyond its end.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", "1/1" if shard is None else shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"`shard` is {shard!r}; write the number of this job and that of all, from 1/64 to 64/64.")
    return int(match[1]), int(match[2])


def run_parts(
    inputs: Inputs, folder: str | Path, settings: Mapping[str, Any],
    work: Callable[[list[Record], str, list[Reject], tqdm], Mapping[str, Any]], progress: bool = True,
    finish: Callable[["Outcome"], None] | None = None,
) -> Outcome:  # fmt: skip
    """Read, predict and write the parts that are missing.

    Args:
        inputs, folder: what was given, and what gets `run.json` and `parts/`.
        settings: what decides the results besides the inputs; `NAMES` in it, those of weights, do not.
        work: takes the chains of a part, its name (`00003-of-00079`), the rejects, to which it may add, and the
            progress bar; predicts, writes the files of the part, and returns what the record of the part gets, as JSON:
            `file`, without which the part is made again, and `chains` and `residues`, where it left some out.
        progress: show a progress bar.
        finish: when all parts are there it may change the rejects, before anything is said of them.

    Raises:
        ValueError: `folder` is a file or holds another run, what a part was made of has changed since, or no chain
            could be used.
        OSError: a file could not be written, and the parts before it stay; or another run is writing to `folder`, see
            `lock_folder`.
    """
    with parts_in(folder, inputs):
        return _run_parts(inputs, Path(folder), settings, work, progress, finish)


def _run_parts(
    inputs: Inputs, folder: Path, settings: Mapping[str, Any], work: Any, progress: bool, finish: Any
) -> Outcome:
    """`run_parts` of a locked folder."""
    parts = folder / PARTS
    # Jobs of an array start together: of them, a run without a part is a run.
    begun = any(parts.glob("*.json")) or (inputs.jobs > 1 and (folder / RUN).exists())
    claimed = {**settings, **inputs.settings}
    begin_run(folder, claimed, holds_results=begun, passing=NAMES, defaults=UNSTATED)
    parts.mkdir(exist_ok=True)
    paths = [parts / f"{inputs.name(part)}.json" for part in range(len(inputs))]
    with tqdm(total=0, unit="chain", disable=not progress, smoothing=0, delay=1) as bar:  # soon done, no bar
        for part in range(inputs.job - 1, len(inputs), inputs.jobs):
            before = _read_record(paths[part]) if paths[part].exists() else None
            if before is not None and (folder / before.get("file", "")).exists():
                if before["contents"] != inputs.hash(part):
                    what = f"what part {inputs.name(part)} was made of, {inputs.describe(part)}, has changed since"
                    raise ValueError(f"{folder}: {what}; choose another output folder, or delete it.")
                bar.total += before["chains"]
                bar.update(before["chains"])
                continue
            rejects: list[Reject] = []
            chains, contents = inputs.read(part, rejects)
            bar.total += len(chains)
            bar.refresh()
            record: dict[str, Any] = {"contents": contents, "chains": len(chains)}
            record["residues"] = sum(map(residues_of, chains))
            if inputs.may_repeat:
                record["ids"] = list(map(id_of, chains))
            result = work(chains, inputs.name(part), rejects, bar) if chains else {}
            rejects = [(name or inputs.file_of(chain), chain, reason) for name, chain, reason in rejects]
            write_json(paths[part], {**record, "rejected": rejects, **result})
    records = [_read_record(path) for path in paths if path.exists()]
    rejected = [tuple(reject) for record in records for reject in record["rejected"]]
    outcome = Outcome(records, len(paths), inputs.rejects + rejected)
    if not outcome.complete:
        return outcome
    if finish is not None:
        finish(outcome)
    if not other_locks(folder, inputs.job, inputs.jobs):
        for leftover in (*folder.glob("*.tmp"), *folder.glob("*/*.tmp")):  # what a kill left
            leftover.unlink()
    if not outcome.counts()["chains"]:
        shutil.rmtree(parts, ignore_errors=True)
        write_rejects(folder / REJECTS, outcome.rejects)
        raise ValueError(why_no_chain(inputs, outcome.rejects))
    _warn_of_equal(chain_id for record in records for chain_id in record.pop("ids", ()))
    return outcome


def _warn_of_equal(ids: Iterable[str]) -> None:
    """Say which chains cannot be told apart by their ids."""
    if equal := [chain_id for chain_id, number in Counter(ids).items() if number > 1]:
        what = "1 id stands" if len(equal) == 1 else f"{len(equal):,} ids stand"
        logger.warning("%s for several chains, such as %s; rename them to tell them apart", what, ", ".join(equal[:3]))


def why_no_chain(inputs: Inputs, rejects: Sequence[Reject]) -> str:
    """Why there is none: the reason, or the first of several."""
    if not rejects:
        return f"There is no structure or FASTA file in {', '.join(inputs.names)}; give some."
    reasons = [": ".join(filter(None, reject)) for reject in rejects]
    if len(reasons) == 1:
        return reasons[0]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return f"No chain could be used: {'; '.join(reasons[:3])}{more}"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it, and its part is made again.") from error


@contextmanager
def parts_in(folder: str | Path, inputs: Inputs) -> Iterator[None]:
    """Keep other processes out of a folder, see `lock_folder`: a verb to the end of what it makes of all parts.

    Raises:
        ValueError: `folder` is a file.
        BlockingIOError: another run is writing there.
    """
    if Path(folder).is_file():
        raise ValueError(f"`output` is {folder}, which is a file; give a folder.")
    with lock_folder(folder, inputs.job, inputs.jobs):
        yield


@contextmanager
def parts_beside(output: str | Path | None, inputs: Inputs) -> Iterator[Path]:
    """Where the parts of a verb lie whose result is one file: in FILE.parts, which goes when the verb is done.

    The parts of an array of jobs stay, since another one may be reading them. Without a file they are temporary. Other
    processes are kept out, as by `parts_in`.
    """
    if output is None:
        if inputs.jobs > 1:
            raise ValueError("With `shard` the parts of all jobs have to meet; give `output`, too.")
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = Path(f"{output}.parts")
    with parts_in(folder, inputs):
        yield folder
        if inputs.jobs == 1:
            shutil.rmtree(folder, ignore_errors=True)


def check_file(path: str | Path | None, *suffixes: str) -> None:
    """Refuse a name that a verb's file cannot have, before hours of work, and make its folder.

    Raises:
        ValueError: it has another ending, or is a folder.
    """
    if path is None:
        return
    if (path := Path(path)).suffix not in suffixes or path.is_dir():
        raise ValueError(f"`output` is {path}; give the name of a file that ends in {' or '.join(suffixes)}.")
    path.parent.mkdir(parents=True, exist_ok=True)


def file_stems(folder: Path, part: str, chains: Sequence[Record]) -> list[Path]:
    """Names of files for the chains of a part, without endings: of several parts each has a folder.

    What some systems do not allow becomes `_`, a long name is cut off, and of equal names the later get -2, -3. A and
    a, two chains of a large complex, are equal: on some systems they are one file.
    """
    if not part.endswith("-of-00001"):
        folder = folder / part
        folder.mkdir(exist_ok=True)
    stems = {Path(REJECTS).stem: REJECTS}  # by what makes two of them equal
    for name in map(id_of, chains):
        name = re.sub(r'^\.*$|[<>:"/\\|?*\0]', "_", name.encode(errors="replace").decode())
        stem = first = name.encode()[:LONGEST_STEM].decode(errors="ignore")
        numbers = count(2)
        while stem.casefold() in stems:
            stem = f"{first}-{next(numbers)}"
        stems[stem.casefold()] = stem
    return [folder / stem for stem in stems.values()][1:]


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays, atomically, into a compressed file of numpy, which has no date in it."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy would add .npz to it
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def join_tables(paths: Sequence[Path], output: Path, renamed: Mapping[str, str] | None = None) -> None:
    """Write the CSV files of parts one after another.

    Parts that an older version wrote may be without some columns, which stay empty, or have `renamed` ones.
    """
    heads = []
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            heads.append(next(csv.reader(file), []))
    named = [[(renamed or {}).get(name, name) for name in head] for head in heads]
    today = max(named, key=len, default=[])

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as joined:
            rows = csv.DictWriter(joined, today, restval="", lineterminator="\n")
            rows.writeheader()
            for path, head in zip(paths, named, strict=True):
                with open(path, encoding="utf-8", newline="") as file:
                    next(csv.reader(file), None)
                    if head == today:
                        shutil.copyfileobj(file, joined)
                    else:
                        rows.writerows(csv.DictReader(file, head))

    write_atomically(output, write)
