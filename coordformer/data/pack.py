"""A data set in one safetensors file: what a training machine reads that has torch, transformers and accelerate alone.

Tensors: `tokens` (residues,) uint8, ids of the built-in vocabulary; `coords` (residues, atoms, 3), hundredths of an Å
relative to the center of the chain, int16 or, where a chain is wider than 650 Å, int32, the least number of the type
where not observed; `offsets` (chains + 1,) int64, the residues before each chain; `names` uint8, the ids in UTF-8, and
`name_offsets` (chains + 1,) int64; `splits` (chains,) uint8, numbers of the names in the metadata. If a chain has gaps
or a row is a complex also `positions` (residues,) int32, along the chain, and `chain_index` (residues,) uint16, the
chain of a complex, and if some chains have fewer atoms than others `held` (chains, atoms) uint8, which each has.
"""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ..model.chain import VOCABULARY, chain_arrays, chain_layout
from .batching import fetch_rows
from .files import write_atomically
from .records import counted

FORMAT, OLD_FORMAT = "coordformer packed chains 1", "coordformer bundle 1"
UNIT = 0.01  # Å
TENSORS = ("tokens", "coords", "offsets", "names", "name_offsets", "splits")
LAYOUT: dict[str, Any] = {"positions": np.int32, "chain_index": np.uint16}
_LETTERS = np.array([ord(token) if len(token) == 1 else 0 for token in VOCABULARY], dtype=np.uint8)
_TOKENS = np.zeros(256, dtype=np.uint8)
_TOKENS[_LETTERS] = np.arange(len(VOCABULARY))


def write_pack(rows: Any, path: str | Path, progress: bool = True) -> dict[str, int]:
    """Write chains into one file of 7 bytes for a residue with one atom; while it is written, all are held in memory.

    Coordinates are rounded to 0.01 Å and moved to the center of their chain, which a Coordformer does in any case.

    Args:
        rows: a `datasets.Dataset` with the columns of `rows.SCHEMA`.
        path: ends in `.safetensors`.
        progress: show a progress bar.

    Returns:
        Counts of `chains`, `residues` and `bytes`.

    Raises:
        ValueError: the path has another ending; there are no chains, or one has an atom that the longest list lacks.
        OSError: the file could not be written; nothing is left of it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"The packed file is to be {path}; give a name that ends in .safetensors.")
    if not len(rows):
        raise ValueError("There are no chains to pack; give a data set that has some.")
    splits = list(rows["split"][:]) if "split" in rows.column_names else [None] * len(rows)
    split_names = sorted({split for split in splits if split is not None})
    tokens, coords, names, held = [], [], [], []
    layouts: list[Any] = []
    for start in tqdm(range(0, len(rows), 1000), unit="k chains", disable=not progress):
        for row in fetch_rows(rows, range(start, min(start + 1000, len(rows)))):
            sequence, xyz = chain_arrays(row, row["atoms"])
            if odd := "".join(sorted(set(sequence) - set(VOCABULARY))):
                raise ValueError(f"Chain {row['id']} has the letters {odd}; write X for unknown residues.")
            observed = ~np.isnan(xyz).any(axis=-1)
            center = xyz[observed].mean(axis=0, dtype=np.float64) if observed.any() else 0.0
            units = np.where(observed[..., None], np.nan_to_num(np.rint((xyz - center) / UNIT)), -(2**31))
            tokens.append(_TOKENS[np.frombuffer(sequence.encode("latin-1"), dtype=np.uint8)])
            coords.append(units.astype(np.int32))
            names.append(str(row["id"]).encode())
            layouts.append(chain_layout(row))
            held.append(tuple(row["atoms"]))
    atoms = max(held, key=len)
    for number, own in enumerate(held):
        if others := [atom for atom in own if atom not in atoms]:
            what = f"Chain {names[number].decode()} has {', '.join(others)}, and others have {', '.join(atoms)}"
            raise ValueError(f"{what}; prepare all chains with the same --atoms, or some with a part of them.")
        if own != atoms:
            short, coords[number] = coords[number], np.full((len(coords[number]), len(atoms), 3), -(2**31), np.int32)
            coords[number][:, [atoms.index(atom) for atom in own]] = short
    flat = np.concatenate(coords)
    missing = flat == -(2**31)
    if np.abs(flat, where=~missing, out=np.zeros_like(flat)).max(initial=0) < 2**15:
        flat = np.where(missing, -(2**15), flat).astype(np.int16)
    arrays: dict[str, np.ndarray] = {
        "tokens": np.concatenate(tokens),
        "coords": flat,
        "offsets": np.cumsum([0, *map(len, tokens)], dtype=np.int64),
        "names": np.frombuffer(b"".join(names), dtype=np.uint8),
        "name_offsets": np.cumsum([0, *map(len, names)], dtype=np.int64),
        "splits": np.array([255 if each is None else split_names.index(each) for each in splits], dtype=np.uint8),
    }
    if len(set(held)) > 1:
        arrays["held"] = np.array([[atom in own for atom in atoms] for own in held], dtype=np.uint8)
    if any(layouts):
        zero = (np.arange(len(each)) for each in tokens), (np.zeros(len(each)) for each in tokens)
        for (name, dtype), defaults, number in zip(LAYOUT.items(), zero, (0, 1), strict=True):
            values = [each[number] if each else default for each, default in zip(layouts, defaults, strict=True)]
            arrays[name] = np.concatenate(values).astype(dtype)
    metadata = {"format": FORMAT, "atoms": json.dumps(atoms), "splits": json.dumps(split_names)}
    metadata["unit"] = f"{UNIT} angstrom"
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        try:
            save_file(arrays, temporary, metadata)
        except SafetensorError as error:  # what it makes of an error of the operating system
            raise OSError(errno.EIO, str(error)) from error

    write_atomically(path, write)
    return {"chains": len(rows), "residues": len(flat), "bytes": path.stat().st_size}


class PackedChains:
    """The chains of a file that `write_pack` made; `len`, columns by name (`id`, `length`, `split`) and `fetch`.

    With a `split` only its chains. A ValueError says that the file is broken or holds no packed chains, or that the
    split is empty.
    """

    column_names = ("id", "length", "split")

    def __init__(self, path: str | Path, split: str | None = None):
        self.path = Path(path)
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") not in (FORMAT, OLD_FORMAT) or not set(TENSORS) <= set(file.keys()):
                    raise ValueError(f"{path} holds no packed chains; make one with `coordformer pack`.")
                arrays = {name: file.get_tensor(name) for name in TENSORS}
                self._layout = {name: file.get_tensor(name) for name in LAYOUT.keys() & set(file.keys())}
                self._held = file.get_tensor("held").astype(bool) if "held" in file.keys() else None  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}); copy or make it again.") from error
        self.atoms = tuple(json.loads(metadata["atoms"]))
        self._tokens, self._coords, self._offsets, self._names, self._name_offsets, self._splits = arrays.values()
        if self._offsets[-1] != len(self._tokens) or len(self._coords) != len(self._tokens):
            raise ValueError(f"{path} is inconsistent: {len(self._tokens)} tokens for {self._offsets[-1]} residues.")
        self._split_names = dict(enumerate(json.loads(metadata["splits"])))
        self._rows = np.arange(len(self._offsets) - 1)
        if split is not None:
            self._rows = np.flatnonzero([name == split for name in self["split"]])
            if len(self._rows) == 0:
                found = f"it has: {', '.join(self._split_names.values())}" if self._split_names else "leave it out"
                raise ValueError(f"No chain of {path} is in split {split!r}; {found}.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, column: str) -> Any:
        if column == "length":
            return np.diff(self._offsets)[self._rows]
        if column == "id":
            return [self._name(row) for row in self._rows]
        if column == "split":
            return [self._split_names.get(number) for number in self._splits[self._rows].tolist()]
        raise KeyError(
            f"{column!r} is no column of packed chains; {', '.join(self.column_names)} are, `fetch` gives the rest."
        )

    def _name(self, row: np.integer) -> str:
        return self._names[self._name_offsets[row] : self._name_offsets[row + 1]].tobytes().decode()

    def fetch(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows at `indices` with what a collator reads."""
        return [self._row(self._rows[index]) for index in indices]

    def _row(self, row: np.integer) -> dict[str, Any]:
        inside = slice(self._offsets[row], self._offsets[row + 1])
        coords, atoms = self._coords[inside], self.atoms
        if self._held is not None:
            coords = coords[:, self._held[row]]
            atoms = tuple(atom for atom, there in zip(atoms, self._held[row], strict=True) if there)
        missing = coords == np.iinfo(coords.dtype).min
        packed = {
            "id": self._name(row),
            "sequence": _LETTERS[self._tokens[inside]].tobytes().decode(),
            "atoms": atoms,
            "coords": np.where(missing, np.float32("nan"), coords * np.float32(UNIT)).reshape(-1),
        }
        if self._layout:
            packed["positions"] = self._layout["positions"][inside]
            packed["chain_lengths"] = np.bincount(self._layout["chain_index"][inside]).tolist()
        return packed


def open_chains(path: str | Path, split: str | None = None) -> Any:
    """A `datasets.Dataset`, as of `rows.load_rows`, or of a packed file (`.safetensors`) the `PackedChains`."""
    if Path(path).suffix == ".safetensors":
        return PackedChains(path, split)
    from .rows import load_rows  # a packed file is read without pyarrow and datasets

    return load_rows(path, split)


def pack(data: str | Path, output: str | Path, *, split: str | None = None, progress: bool = True) -> dict[str, int]:
    """Write a data set, or one split of it, into one file: `coordformer pack`; see `write_pack`."""
    return write_pack(open_chains(data, split), output, progress=progress)


def describe(counts: Mapping[str, int]) -> str:
    """The counts of `write_pack` as a short text."""
    megabytes = counts["bytes"] / 1e6
    return f"{counted(counts['chains'], 'chain')} with {counted(counts['residues'], 'residue')}, {megabytes:,.1f} MB"
