"""Structure files with random damage: each is read, or refused with `StructureError` or `ValueError`. No part of CI.

    python tests/fuzz_structures.py [FOLDER ...] [--count 100000] [--seed 0] [--first 0]

Files of tests/data/structures and of further folders are cropped, changed and read. What is read must be whole: ids and
positions of chains, numbers of residues. Everything else is a fault: another exception, more than 5 s of CPU, more than
2 GiB of memory, a crash. Each is printed with the number of its case, which `--first NUMBER --save FILE` makes again,
with the same folders and seed. 100,000 cases take 3 to 10 minutes of one core.
"""

from __future__ import annotations

import argparse
import gzip
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np

from coordformer.model.chain import StructureError
from coordformer.model.structure import read_complex, read_proteins

HOME = Path(__file__).parent / "data" / "structures"
SECONDS, MEMORY = 5, 2 * 1024**3
BACKBONE, OTHER_ROWS = (b"N", b"CA", b"C"), 40  # atoms, and rows of other categories, that are kept
ODD = (
    rb"? . nan NaN inf -inf 1e999 1e-999 -0 0x1A --1 1.2.3 ***** -999.999 9999999999999999999999 2147483647 "
    rb"-2147483648 ' ; # _ data_ loop_ save_ stop_ HOH MSE GLY UNK QQQ CA N A AA 0 1 -5 52A (1-60) (X0)(1,2) 1,2,3 $ ["
).split()
ODD += [b"", b'"', b"\0", b"A" * 300, b"\xc3\xa9", b"\xff\xfe"]
RECORDS = (
    b"TER/END/ENDMDL/MODEL        1/MODEL     junk/ANISOU/CONECT*****/SEQRES/REMARK 350/HEADER/DBREF2/ATOM/HETATM/"
    b"loop_/data_x/#/;/_atom_site.id/_entity.id/stray/"
).split(b"/")
RESIDUES = b"GLYA/LYSH/NALA/HOH /TIP3/MSE /QQQ /  CA/ DA /ALA /    /LYN ".split(b"/")


def crop(data: bytes) -> bytes:
    """A small file of the same kind, so that many can be read: two models, no side chains, no long tables."""
    if not re.match(rb"(?:\s|#[^\n]*\n)*data_", data):
        lines = []
        counts: Counter[bytes] = Counter()
        for line in b"\nENDMDL".join(data.split(b"\nENDMDL")[:2]).splitlines(keepends=True):
            counts[line[:6]] += 1
            atom = line.startswith((b"ATOM", b"HETATM", b"ANISOU"))
            if (line[12:16].strip() in BACKBONE) if atom else counts[line[:6]] <= OTHER_ROWS:
                lines.append(line)
        return b"".join(lines)
    document = gemmi.cif.read_string(data)
    for item in document[0]:
        loop = item.loop
        if loop is None or "poly_seq" in loop.tags[0]:
            continue
        rows = [*range(min(loop.length(), OTHER_ROWS))]
        if loop.tags[0].startswith("_atom_site."):
            name, model = loop.tags.index("_atom_site.label_atom_id"), loop.tags.index("_atom_site.pdbx_PDB_model_num")
            rows = [
                row
                for row in range(loop.length())
                if loop[row, name].encode() in BACKBONE and loop[row, model] in ("1", "2")
            ]
        loop.set_all_values([[loop[row, column] for row in rows] for column in range(loop.width())])
    return document.as_string().encode()


# --- Damage ------------------------------------------------------------------------------------------------------


def change_bytes(data: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        place = rng.randrange(len(changed) + 1)
        new = bytes([rng.choice((rng.randrange(256), rng.randrange(32, 127)))]) * rng.choice((0, 1, 1, 1, 2))
        changed[place : place + rng.choice((0, 1, 1))] = new
    return bytes(changed)


def change_lines(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(lines) + 1)
        block = lines[start : start + rng.choice((1, 1, 2, 10, 40))]
        changed = (
            [],
            block * rng.choice((2, 2, 3, 30)),
            block[::-1],
            rng.sample(block, len(block)),
            [*block, rng.choice(RECORDS) + b"\n"],
            [line[: rng.randrange(len(line) + 1)] + b"\n" for line in block],
            [line.rstrip(b"\n") for line in block],
        )
        lines[start : start + len(block)] = rng.choice(changed)
    return b"".join(lines)


def change_columns(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    start = rng.randrange(len(lines))
    end = rng.choice((start + 1, start + 8, start + 60, len(lines)))
    column = rng.choice((rng.randrange(85), 12, 16, 17, 20, 21, 22, 26, 30, 38, 46, 54, 60, 72, 76))
    width = rng.choice((1, 1, 2, 3, 4, 5, 6, 8))
    text = rng.choice(
        (
            b" " * width,
            b"*" * width,
            b"9" * width,
            rng.choice(b"ABXZ0129-+.?' ").to_bytes(1, "big") * width,
            rng.choice(ODD),
            rng.choice(RESIDUES),
            b"",  # everything behind moves to the left
            b" " * (width + 1),  # or to the right
        )
    )
    every = rng.choice((1, 1, 2, 7))
    for index in range(start, min(end, len(lines)), every):
        line = lines[index]
        if len(line) > column + width:
            lines[index] = line[:column] + text + line[column + width :]
    return b"".join(lines)


def change_values(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Words between blanks; of a whole column of mmCIF every tenth time."""
    if rng.random() < 0.1:
        lines = data.splitlines(keepends=True)
        field, text = rng.randrange(21), rng.choice(ODD)
        for index, line in enumerate(lines):
            words = line.split(b" ")
            if line.startswith((b"ATOM", b"HETATM")) and field < len(words):
                words[field] = text
                lines[index] = b" ".join(words)
        return b"".join(lines)
    words = re.split(rb"(\s+)", data)
    for _ in range(rng.choice((1, 1, 2, 5, 50))):
        place = rng.randrange(len(words))
        words[place] = rng.choice((rng.choice(ODD), words[rng.randrange(len(words))], words[place] * 2))
    return b"".join(words)


def change_tags(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A column or category of mmCIF under another name, or twice; of a PDB file a kind of record."""
    names = sorted(set(re.findall(rb"^(_\S+|[A-Z]+)", data, re.MULTILINE))) or [b"x"]
    old = rng.choice(names)
    new = rng.choice((old + b"x", rng.choice(names), old[:-1], old.lower(), old.upper(), rng.choice(RECORDS)))
    return data.replace(b"\n" + old, b"\n" + new, rng.choice((-1, -1, 1)))


def cut(data: bytes, rng: random.Random, other: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return rng.choice((data[:place], data[:place], data[:place] + b"\n", data[place:]))


def swap_blocks(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    a, b, c, d = sorted(rng.randrange(len(lines) + 1) for _ in range(4))
    if rng.random() < 0.6:
        return b"".join((*lines[:a], *lines[c:d], *lines[b:c], *lines[a:b], *lines[d:]))
    strange = other.splitlines(keepends=True)
    start = rng.randrange(len(strange) + 1)
    return b"".join((*lines[:a], *strange[start : start + rng.choice((1, 5, 50, 400))], *lines[b:]))


DAMAGES = (change_bytes, change_lines, change_columns, change_values, change_tags, cut, swap_blocks)


def case(files: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes, random.Random]:
    rng = random.Random(f"{seed}/{number}")
    name, data = rng.choice(files)
    damages = rng.choices(DAMAGES, k=rng.choice((1, 1, 1, 2, 3)))
    for damage in damages:
        data = damage(data, rng, rng.choice(files)[1])
    return f"{name} ({', '.join(damage.__name__ for damage in damages)})", data, rng


# --- Reading -----------------------------------------------------------------------------------------------------


def read(data: bytes, rng: random.Random) -> str:
    """The outcome in a word; raises what is a fault."""
    atoms = rng.choice((("CA",), ("CA",), ("N", "CA", "C")))
    problems: list[tuple[str, str]] | None = rng.choice((None, []))
    least = rng.choice((None, None, None, None, None, None, None, None, 50.0, 0.5))
    try:
        if rng.random() < 0.1:
            whole = read_complex("some.pdb", assembly=rng.choice((None, 1)), atoms=atoms, min_plddt=least, data=data)
            chains, ids = whole.chains, [*whole.chain_names]
            assert sum(map(len, chains)) == len(whole)
        else:
            chains = read_proteins("some.pdb", atoms, least, problems=problems, data=data)
            ids = [chain.id for chain in chains]
    except StructureError as error:
        assert "\n" not in str(error), "a message of several lines"
        return "refused"
    except ValueError as error:
        assert type(error) is ValueError and "some.pdb" in str(error), f"another ValueError: {error!r}"
        return "refused as an argument"
    assert len(set(ids)) == len(ids), f"equal ids: {ids}"
    for chain in chains:
        length = len(chain.sequence)
        assert chain.coords.shape == (length, len(atoms), 3) and chain.coords.dtype == np.float32
        assert chain.positions.dtype == np.int32 and chain.positions[0] == 0 and (np.diff(chain.positions) > 0).all()
        assert len(chain.residue_numbers) in (0, length)
        assert all(re.fullmatch(r"(-?\d+.?)?", each, re.DOTALL) for each in chain.residue_numbers), (
            chain.residue_numbers
        )
        assert not np.isinf(chain.coords).any() and not np.isinf(chain.b_factor).any()
    return "read"


def work(files: list[tuple[str, bytes]], seed: int, first: int, last: int, state: mmap.mmap) -> None:
    """Cases in a process of their own; `state` holds the number of the case, and counts of outcomes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # also ends what never comes back to Python
    for number in range(first, last):
        name, data, rng = case(files, seed, number)
        state[:8] = struct.pack("q", number)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcome = read(data, rng)
        except Exception:
            outcome = "fault"
            print(f"case {number}, seed {seed}: {name}\n{traceback.format_exc()}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        place = 8 + 8 * OUTCOMES.index(outcome)
        state[place : place + 8] = struct.pack("q", struct.unpack("q", state[place : place + 8])[0] + 1)


OUTCOMES = ("read", "refused", "refused as an argument", "fault")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write the first case into this file, and read none")
    options = parser.parse_args()
    files = []
    for folder in (HOME, *options.folders):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.name.removesuffix(".gz")
            if name.endswith((".cif", ".pdb", ".pdbx", ".ent", ".fasta")):
                data = path.read_bytes()
                data = gzip.decompress(data) if path.suffix == ".gz" else data
                files.append((str(path), data if name.endswith(".fasta") else crop(data)))
    print(f"{len(files)} files, {sum(len(data) for _, data in files) // len(files)} bytes on average", flush=True)
    if options.save:
        name, data, _ = case(files, options.seed, options.first)
        print(name)
        options.save.write_bytes(data)
        return
    begin, number, last, deaths = time.monotonic(), options.first, options.first + options.count, 0
    state = mmap.mmap(-1, 8 + 8 * len(OUTCOMES))
    while number < last:
        if not (child := os.fork()):
            work(files, options.seed, number, last, state)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not status:
            break
        (number,) = struct.unpack("q", state[:8])
        cause = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
        cause = f"more than {SECONDS} s" if cause == "SIGPROF" else cause
        print(f"case {number}, seed {options.seed}: {case(files, options.seed, number)[0]}\n{cause}\n", flush=True)
        deaths, number = deaths + 1, number + 1
    counts = dict(zip(OUTCOMES, struct.unpack(f"{len(OUTCOMES)}q", state[8:]), strict=True))
    print(counts | {"crashed or too slow": deaths}, f"{time.monotonic() - begin:.0f} s")
    sys.exit(bool(counts["fault"] or deaths))


if __name__ == "__main__":
    main()
