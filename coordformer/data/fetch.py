"""Structure files by id: of the Protein Data Bank from RCSB, predicted models from the AlphaFold Database."""

import contextlib
import gzip
import json
import math
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import requests
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError
from urllib3.util import Retry

from ..model.structure import MAX_BYTES
from .records import lock_folder, package_version

CHUNK = 2**16  # bytes
MAX_WAIT = 120.0  # seconds between two attempts, whatever the server asks for
MIN_RATE = 1024  # bytes per second, on average; a slower body counts as stalled

_PDB_ID = re.compile(r"(?:PDB_0000)?([1-9][A-Z0-9]{3})")
_EXTENDED_PDB_ID = re.compile(r"PDB_[A-Z0-9]{8}")
# https://www.uniprot.org/help/accession_numbers
_ACCESSION = re.compile(r"[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2}")
_MODEL = re.compile(r"AF-([A-Z0-9]+)-F(\d{1,4})-model_v(\d{1,4})\.cif(?:\.gz)?", re.ASCII)
_MODEL_URL = re.compile(rf"https?://[^\s?#]+/{_MODEL.pattern}", re.ASCII)


class _Failure(Exception):
    """Why a file was not fetched; `wait` is how many seconds later it may be, None if asking again is no use."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def parse_ids(entries: Sequence[str]) -> list[str]:
    """Ids out of what a user writes.

    Args:
        entries: each one an id, a list of ids with commas or spaces between them, or the path of a text file with one
            id per line, where `#` starts a comment. What reads as ids is never taken for a path; write `./1ABC` for
            a file of that name. PDB ids are `1ABC` or `pdb_00001abc`, the others UniProt accessions.

    Returns:
        The ids in their order, each once, as `fetch` names files by them: in upper case, `pdb_00001abc` as `1ABC`
        (the wwPDB gives every entry of four characters both names), and longer ids as the wwPDB writes them,
        `pdb_10021abc`.

    Raises:
        ValueError: an entry or a line is neither id nor file, a file is no text, or there is no id at all.
    """
    ids: dict[str, None] = {}
    for entry in entries:
        places = {"": entry}
        if not all(map(_normalize, _words(entry))) and os.path.isfile(entry):
            try:
                lines = Path(entry).read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{entry} is no text file ({error}); give a file with one id per line.") from error
            places = {f"{entry}, line {number}: ": line.partition("#")[0] for number, line in enumerate(lines, 1)}
        ids |= dict.fromkeys(_require_id(word, place) for place, text in places.items() for word in _words(text))
    if not ids:
        raise ValueError(f"no id in {', '.join(map(repr, entries)) or 'an empty list'}; give ids such as 1ABC, P12345.")
    return list(ids)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]


def _normalize(text: str) -> str | None:
    """The id as files are named, None if it is none."""
    upper = text.upper()
    if match := _PDB_ID.fullmatch(upper):
        return match[1]
    if _EXTENDED_PDB_ID.fullmatch(upper):
        return upper.lower()
    return upper if _ACCESSION.fullmatch(upper) else None


def _require_id(text: str, place: str = "") -> str:
    if name := _normalize(text):
        return name
    raise ValueError(
        f"{place}{text!r} is neither a PDB id (1ABC, pdb_00001abc) nor a UniProt accession (P12345)"
        f"{'' if place else ' nor a file'}; correct it or leave it out."
    )


def fetch(
    ids: Iterable[str],
    folder: str | os.PathLike[str],
    *,
    rcsb_url: str = "https://files.rcsb.org/download",
    alphafold_url: str = "https://alphafold.ebi.ac.uk/api/prediction",
    requests_per_second: float = 10.0,
    attempts: int = 5,
    timeout: float = 30.0,
    connections: int = 4,
    backoff: float = 1.0,
    progress: bool = True,
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Download structure files, as mmCIF.

    A file appears whole or not at all, and one that lies in the folder is not asked for again: called again after a
    stop, this fetches what is missing. PDB entries become `1ABC.cif.gz`, AlphaFold models keep their names,
    `AF-P12345-F1-model_v6.cif`; of those that lie there the newest version counts. Of a protein in several fragments
    (F1, F2, ...), which overlap, all are fetched, or none. Isoforms are left out.

    Connection errors, stalls, bodies that are cut off or no mmCIF, and the answers 429 and 5xx are tried again, as by
    `urllib3.util.Retry`: at once, then after waits that double, or that the server sets, but at most 120 seconds.

    Args:
        ids: PDB ids and UniProt accessions, see `parse_ids`.
        folder: where the files go; made if need be.
        rcsb_url: files are `<rcsb_url>/1ABC.cif.gz`.
        alphafold_url: `<alphafold_url>/P12345` is a JSON list of models, with the address of the file in `cifUrl`.
        requests_per_second: at most so many over all connections; attempts and the AlphaFold API count.
        attempts: for each file, the first one included.
        timeout: seconds without data after which an attempt is given up. So it is when the body has brought less than
            1 KiB per second on average, not counting the first `timeout` seconds.
        connections: at most so many at a time.
        backoff: seconds; twice as many before the third attempt, 4 before the fourth, ..., and up to 1 more at random.
        progress: show a progress bar.

    Returns:
        The paths of the files, in the order of the ids, and the ids that failed, with the reason.

    Raises:
        ValueError: an argument is out of range, or an id is none.
        OSError: a file cannot be written, as on a full disk, and files fetched before stay; or another process is
            fetching into the folder.
    """
    for name, value, least in (("attempts", attempts, 1), ("connections", connections, 1), ("backoff", backoff, 0)):
        if not least <= value < math.inf:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    for name, value in (("requests_per_second", requests_per_second), ("timeout", timeout)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` is {value}; it must be above 0.")
    for name, url in (("rcsb_url", rcsb_url), ("alphafold_url", alphafold_url)):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"`{name}` is {url!r}; it must start with http:// or https://.")
    ids = list(dict.fromkeys(map(_require_id, ids)))
    folder = Path(folder)
    reasons: dict[str, str] = {}
    client = _Client(1 / requests_per_second, attempts, timeout, backoff)
    fetch_id = partial(_fetch_id, client, folder, rcsb_url.rstrip("/"), alphafold_url.rstrip("/"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(folder))
        found = _find_files(ids, folder)
        bar = stack.enter_context(tqdm(total=len(ids), initial=len(found), unit="id", disable=not progress))
        pool = ThreadPoolExecutor(connections, initializer=client.open_session)
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(client.stop.set)
        futures = {pool.submit(fetch_id, name): name for name in ids if name not in found}
        for future in as_completed(futures):
            try:
                found[futures[future]] = future.result()
            except _Failure as failure:
                reasons[futures[future]] = str(failure)
            bar.update()
    paths = [path for name in ids for path in found.get(name, ())]
    return paths, [(name, reasons[name]) for name in ids if name in reasons]


def _find_files(ids: Iterable[str], folder: Path) -> dict[str, list[Path]]:
    """What lies in the folder already."""
    models: dict[str, dict[int, dict[int, Path]]] = {}
    for path in sorted(folder.iterdir()):
        if match := _MODEL.fullmatch(path.name):
            models.setdefault(match[1], {}).setdefault(int(match[3]), {})[int(match[2])] = path
    found = {}
    for name in ids:
        if name in models:
            newest = models[name][max(models[name])]
            found[name] = [newest[fragment] for fragment in sorted(newest)]
        elif not _ACCESSION.fullmatch(name) and (path := folder / f"{name}.cif.gz").is_file():
            found[name] = [path]
    return found


def _fetch_id(client: "_Client", folder: Path, rcsb_url: str, alphafold_url: str, name: str) -> list[Path]:
    urls = [f"{rcsb_url}/{name}.cif.gz"]
    if _ACCESSION.fullmatch(name):
        urls = _model_urls(client.get(f"{alphafold_url}/{name}", _read_json), name)
    paths = [folder / url.rpartition("/")[2] for url in urls]
    temporaries = [path.with_name(f"{path.name}.tmp") for path in paths]
    try:
        for url, temporary in zip(urls, temporaries, strict=True):
            client.get(url, partial(_save, temporary))
        # Moved when all are here: one fragment alone would pass for the whole protein.
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    return paths


def _model_urls(entries: Any, accession: str) -> list[str]:
    """Addresses of a protein's fragments, out of the answer of the AlphaFold API."""
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    listed = [str(entry.get("cifUrl")) for entry in found if entry.get("uniprotAccession") == accession]
    # The name of the file comes from outside: only one that this module finds again is let into the folder.
    matches = [match for url in listed if (match := _MODEL_URL.fullmatch(url)) and match[1] == accession]
    if not matches:
        raise _Failure(
            f"the AlphaFold Database lists no file AF-{accession}-F1-model_v*.cif, but {', '.join(listed) or 'none'}; "
            "look the accession up on its site"
        )
    return [url for _, url in sorted({int(match[2]): match[0] for match in matches}.items())]


class _Client:
    """Requests that keep to the rate and are tried again; threads share it."""

    def __init__(self, interval: float, attempts: int, timeout: float, backoff: float):
        self.interval, self.attempts, self.timeout = interval, attempts, timeout
        self._retries = Retry(
            attempts - 1, backoff_factor=backoff, backoff_jitter=backoff, status_forcelist={429, *range(500, 600)}
        )
        self.stop = threading.Event()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._next_turn = 0.0

    def open_session(self) -> None:
        """Called once in each thread."""
        self._local.session = requests.Session()
        # Not compressed on the way: a file is stored as it lies on the server.
        headers = {"User-Agent": f"coordformer/{package_version()}", "Accept-Encoding": "identity"}
        self._local.session.headers.update(headers)

    def get(self, url: str, read: Callable[[Iterator[bytes]], Any]) -> Any:
        """What `read` makes of the body; it raises `_Failure` when the body is not right."""
        retries, last = self._retries, f"attempt {self.attempts} of {self.attempts}; run again later"
        while True:  # not mounted on the session, where it would end with the headers: bodies fail, too
            try:
                return read(self._body(url))
            except _Failure as failure:
                if failure.wait is None:
                    raise _Failure(f"{url}: {failure}") from failure
                try:
                    retries = retries.increment("GET", url, error=failure)
                except MaxRetryError:
                    raise _Failure(f"{url}: {failure}, {last}") from failure
                self._sleep(min(MAX_WAIT, max(failure.wait, retries.get_backoff_time())))

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise _Failure("stopped")

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_turn)
            self._next_turn = turn + self.interval
        self._sleep(turn - now)

    def _body(self, url: str) -> Iterator[bytes]:
        self._wait_for_turn()
        try:
            with self._local.session.get(url, stream=True, timeout=self.timeout) as answer:
                self._check_status(answer)
                received, start = 0, time.monotonic()
                # `iter_content` would wait until a chunk is full, however slowly it fills.
                while chunk := answer.raw.read1(CHUNK, decode_content=False):
                    received += len(chunk)
                    seconds = time.monotonic() - start
                    if received > MAX_BYTES:
                        raise _Failure(f"the body has more than {MAX_BYTES} bytes; no structure is so large")
                    if received < MIN_RATE * (seconds - self.timeout):
                        raise _Failure(f"the body stalls ({received} bytes in {seconds:.0f} s)", wait=0.0)
                    self._sleep(0)
                    yield chunk
        except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
            raise _Failure(_origin(error), wait=0.0) from error
        except OSError as error:  # what else requests raises, such as a wrong address
            raise _Failure(_origin(error)) from error

    def _check_status(self, answer: requests.Response) -> None:
        status = f"the server answers {answer.status_code} {answer.reason}"
        if self._retries.is_retry("GET", answer.status_code):
            wait = None
            with contextlib.suppress(InvalidHeader):
                wait = self._retries.get_retry_after(answer.raw)
            raise _Failure(status, wait=wait or 0.0)
        if answer.status_code != 200:
            raise _Failure(f"{status}; check the id, the entry may be obsolete")


def _origin(error: BaseException) -> str:
    """What went wrong at the bottom of what requests and urllib3 wrap around it."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__} ({error})"


def _read_json(chunks: Iterator[bytes]) -> Any:
    try:
        return json.loads(b"".join(chunks))
    except (ValueError, RecursionError) as error:
        raise _Failure(f"the answer is no JSON ({error})", wait=0.0) from error


def _save(path: Path, chunks: Iterator[bytes]) -> None:
    """Write the chunks and check that they are one whole file."""
    try:
        with open(path, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno, f"{path} cannot be written ({error.strerror}); make room, or choose another folder"
        ) from error
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    if path.stem.endswith(".gz") and not gzipped:
        raise _Failure("the body is not gzipped", wait=0.0)
    try:
        with gzip.open(path) if gzipped else open(path, "rb") as file:
            part = file.read(CHUNK)
            if b"data_" not in part:
                raise _Failure("the body is no mmCIF", wait=0.0)
            size = 0
            while part:
                size += len(part)
                if size > MAX_BYTES:
                    raise _Failure(f"the file has more than {MAX_BYTES} bytes once decompressed; is it a gzip bomb?")
                part = file.read(CHUNK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _Failure(f"the gzip is cut off or broken ({error})", wait=0.0) from error
