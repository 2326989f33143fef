"""What a verb may be given: files, folders that are searched for them, and tar archives of them.

An archive is read where it lies: nothing of it is ever written to the disk, and no bomb in it fills the memory.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..model.proteins import SEQUENCE_SUFFIXES, as_text, distinct_entries, find_files, has_suffix, peek_entry
from ..model.structure import MAX_BYTES, STRUCTURE_SUFFIXES
from .files import write_text

ARCHIVES = (".tar", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_EXPANSION = 200
"""A compressed archive that grows by more than this is refused: mmCIF shrinks to a fifth, a bomb to a thousandth."""
MAX_HEADER = 1024**2
"""Bytes between the contents of two members: names and the like have some hundred, and `tarfile` sets no bound."""

Reject = tuple[str, str, str]  # file, chain or "", reason


@dataclass(frozen=True)
class Source:
    """A file, a member of a tar archive, or a compressed archive as a whole, which only can be read from its start."""

    name: str  # path below the folder that all inputs have in common, as text; of a member `archive/member`
    path: str  # of the file or archive
    size: int  # bytes, of a member those of the member
    offset: int | None = None  # of a member, where its content begins in the archive
    entry: str | None = None  # what its ids begin with, where its own entry is also that of another source


def list_sources(
    inputs: Sequence[str | Path], suffixes: Sequence[str] = STRUCTURE_SUFFIXES
) -> tuple[list[Source], list[Reject]]:
    """List what there is to read.

    Args:
        inputs: files, which are taken whatever their names, tar archives, and folders that are searched for both, with
            all below them.
        suffixes: endings of the files that folders and archives are searched for, see `has_suffix`.

    Returns:
        The sources, each file once, sorted by path, in a plain archive as they lie there; and what cannot be read of
        the archives.

    Raises:
        FileNotFoundError: a path does not exist.
        StructureError: no file was found.
    """
    sources: list[Source] = []
    rejects: list[Reject] = []
    for name, path in find_files(inputs, (*suffixes, *ARCHIVES)):
        if has_suffix(path.name, ARCHIVES) and not _opener(path):
            for member in _members(path, name, suffixes, rejects):
                sources.append(Source(_below(name, member), str(path), member.size, member.offset_data))
        else:
            sources.append(Source(name, str(path), path.stat().st_size))
    return sources, rejects


def name_entries(sources: Sequence[Source]) -> list[Source]:
    """Give sources whose ids would be equal an `entry`: the shortest part of their path that tells them apart.

    `a/model.cif` and `b/model.cif` become `a/model` and `b/model`, files of different names their names, and
    `model.cif` and `model.pdb` of one folder keep their suffixes. The heads of all files decide, so every job, worker
    and resumed run names them alike. FASTA files have ids of their own, and nobody knows what is in a compressed
    archive: `distinct_ids` is for these.
    """
    if len(sources) < 2:
        return list(sources)
    own = [None if is_archive(each) else peek_entry(each.name, each.path, each.size, each.offset) for each in sources]
    entries = distinct_entries(own, [source.name for source in sources])
    return [
        source if entry == before else replace(source, entry=entry)
        for source, entry, before in zip(sources, entries, own, strict=True)
    ]


def is_archive(source: Source) -> bool:
    """Whether a source is a compressed archive, of many files."""
    return source.offset is None and has_suffix(source.path, ARCHIVES)


def read_contents(
    source: Source, rejects: list[Reject], suffixes: Sequence[str] = (*STRUCTURE_SUFFIXES, *SEQUENCE_SUFFIXES)
) -> Iterator[tuple[str, bytes | str]]:
    """Read a source, or all members of a compressed archive, one after another.

    Args:
        source: of `list_sources`.
        rejects, suffixes: of a compressed archive: gets what cannot be read; endings of the members that are read.

    Yields:
        Name and content, as it lies there (gzipped ones too), or as a string what is wrong with it.

    Raises:
        OSError: the folder of the file is gone, or its disk fails.
    """
    path = Path(source.path)
    if is_archive(source):
        for member, data in _members(path, source.name, suffixes, rejects):
            yield _below(source.name, member), data
        return
    try:
        if source.size > MAX_BYTES:
            yield source.name, f"larger than {MAX_BYTES} bytes; split the file"
            return
        with open(path, "rb") as file:
            file.seek(source.offset or 0)
            data = file.read(source.size)
    except (FileNotFoundError, PermissionError) as error:
        if not path.parent.exists():  # a file system that is away for a moment must not cost a part
            raise
        yield source.name, f"cannot be read ({error.strerror})"
        return
    yield source.name, data if len(data) == source.size else "cut off: the archive ends within it; get it again"


def read_and_hash(
    source: Source,
    rejects: list[Reject],
    digest: Any,
    suffixes: Sequence[str] = (*STRUCTURE_SUFFIXES, *SEQUENCE_SUFFIXES),
) -> Iterator[tuple[str, bytes | str]]:
    """`read_contents`; what decides its chains goes into `digest`: names and contents, and the entry if it has one."""
    if source.entry is not None:
        digest.update(json.dumps(source.entry).encode())
    for name, data in read_contents(source, rejects, suffixes):
        digest.update(json.dumps(name).encode())
        digest.update(data if isinstance(data, bytes) else data.encode())
        yield name, data


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write what was left out, a line for each file or chain, with the reason."""
    lines = [("file", "chain", "reason"), *rejects]
    text = "".join("\t".join(" ".join(value.split()) for value in line) + "\n" for line in lines)
    write_text(path, text.encode(errors="backslashreplace").decode())  # a file's name may be no UTF-8


def _below(archive: str, member: tarfile.TarInfo) -> str:
    return f"{archive}/{as_text(member.name)}"


def _opener(path: Path) -> Any:
    """What opens a compressed archive; its content says which, None where it is not compressed."""
    with open(path, "rb") as file:
        magic = file.read(6)
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    return next((opener for start, opener in openers.items() if magic.startswith(start)), None)


class _Allowance:
    """A decompressed stream that gives out no more than `left` bytes."""

    def __init__(self, file: Any):
        self.file, self.left = file, MAX_HEADER

    def read(self, size: int) -> bytes:
        data: bytes = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER} bytes, a bomb?")
        return data


def _members(path: Path, name: str, suffixes: Sequence[str], rejects: list[Reject]) -> Iterator[Any]:
    """The files in a tar archive whose names end in `suffixes`.

    Yields the headers, or of a compressed archive, which is read as a stream, pairs of a header and the bytes.
    """
    opener, limit, last = _opener(path), MAX_EXPANSION * path.stat().st_size, "its start"
    try:
        with contextlib.ExitStack() as stack:
            stream: Any = None if opener is None else _Allowance(stack.enter_context(opener(path)))
            archive: Any = stack.enter_context(tarfile.open(path, "r|" if stream else "r:", stream))
            while (member := archive.next()) is not None:
                archive.members = []  # or it keeps the headers of millions
                if stream is not None:
                    if member.offset_data + member.size > limit:
                        reason = f"{as_text(member.name)} brings it beyond {MAX_EXPANSION} times its size; a bomb?"
                        rejects.append((name, "", reason))
                        return
                    stream.left = member.size + MAX_HEADER
                if not has_suffix(member.name, suffixes):
                    continue
                last = as_text(member.name)
                if not member.isreg() or member.issparse():
                    rejects.append((_below(name, member), "", "a link or special file; only plain files are read"))
                elif member.size > MAX_BYTES:
                    rejects.append((_below(name, member), "", f"larger than {MAX_BYTES} bytes; split the file"))
                else:
                    yield member if opener is None else (member, archive.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        rejects.append((name, "", f"broken or cut off after {last} ({error}); get the archive again"))
