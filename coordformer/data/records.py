"""What a run leaves beside its results: its settings, the contents it read by hash, the code and command it ran.

Two guards for every verb that fills a folder: `begin_run` writes `run.json`, and refuses a folder of another run;
`lock_folder` refuses one that another process is writing to.
"""

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .files import write_json

RUN = "run.json"


@contextmanager
def lock_folder(folder: str | Path, job: int = 1, jobs: int = 1) -> Iterator[None]:
    """Keep other processes from writing the same files, and from taking half-written ones for what a kill left.

    The lock is the operating system's, so it goes with the process, however that ends. Its file `.K-of-N.lock` goes at
    the end; one that a kill left holds nobody up. Jobs of an array may share the folder unless they do the same part:
    job k of n and job l of m, where k = l modulo the greatest common divisor of n and m.

    Args:
        folder: is made if there is none.
        job, jobs: number of this job, and of all.

    Raises:
        BlockingIOError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{job}-of-{jobs}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock_file(path))
            for other, k, n in other_locks(folder, job, jobs):
                if (job - k) % math.gcd(jobs, n) == 0:
                    with _lock_file(other):
                        pass  # what a kill left, which goes
        except Timeout:
            fix = "wait for its end, or choose another output folder"
            raise BlockingIOError(f"{folder}: another run is writing there; {fix}") from None
        except OSError:
            if os.access(folder, os.W_OK):  # who may not write there needs no lock
                raise
        yield


def other_locks(folder: Path, job: int = 1, jobs: int = 1) -> list[tuple[Path, int, int]]:
    """Lock files of jobs other than this one, each with the number of its job and of all; a kill may have left them."""
    found = [(path, re.fullmatch(r"\.(\d+)-of-(\d+)\.lock", path.name)) for path in sorted(folder.glob(".*.lock"))]
    numbered = [(path, int(match[1]), int(match[2])) for path, match in found if match]
    return [(path, k, n) for path, k, n in numbered if (k, n) != (job, jobs)]


@contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    """Hold a lock file, which is removed; a `filelock.Timeout` says that another process does.

    A thread may hold it several times: a verb to its end, and what it calls.
    """
    # For a second: jobs that start together may all look at one that a kill left.
    lock = FileLock(path, timeout=1, is_singleton=True)
    outermost = not lock.is_locked
    with lock:
        try:
            yield
        finally:
            # Where a file system has no locks, it is of another kind by now, which removes its file itself.
            if outermost and type(lock) is FileLock:
                with suppress(OSError):  # Windows removes no file that is open
                    path.unlink()  # while it is held, or it could be the lock of the next process


def begin_run(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    holds_results: bool,
    passing: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> bool:
    """Claim a folder for a run, or find that it goes on with one.

    Args:
        folder: is made if there is none.
        settings: what decides the results, as JSON has it; mappings in it are compared value by value.
        holds_results: whether the folder has anything that another run would spoil; without, its `run.json` is
            written anew.
        passing: names of settings that may differ, such as where the same data lies.
        defaults: values of settings that one of the two runs may not have, by name: a `run.json` of an older version
            does not, nor runs in which something was not asked for.
        upgrade: makes today's settings of those of an older version; a ValueError or KeyError says that it cannot.

    Returns:
        Whether the folder held this run already.

    Raises:
        ValueError: the folder holds results of another run, or of one without `run.json`.
    """
    folder, wanted = Path(folder), _as_json(settings)
    path = folder / RUN
    if not holds_results:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return False
    fix = "choose another output folder, or delete it"
    try:
        before = dict(_flat(_as_json(upgrade(json.loads(path.read_text(encoding="utf-8"))))))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds results without a {RUN}, of nobody knows which run; {fix}.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {fix}.") from error
    defaults = _as_json(defaults or {})
    now = dict(_flat(wanted))
    changed = []
    for name in (*now, *(name for name in before if name not in now and name.rpartition(".")[2] in defaults)):
        default = defaults.get(name.rpartition(".")[2])
        was, value = before.get(name, default), now.get(name, default)
        if name.rpartition(".")[2] not in passing and was != value:
            hashed = any(re.search("[0-9a-f]{16}", str(each)) for each in (was, value))
            changed.append(f"other {name.removesuffix('.sha256')}" if hashed else f"{name}: {was!r} -> {value!r}")
    if changed:
        raise ValueError(f"{folder} holds another run ({'; '.join(changed)}); {fix}.")
    return True


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(values: Any) -> str:
    """SHA-256 of what JSON makes of `values`, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hash_data(path: str | Path) -> str:
    """SHA-256 of a data set: of its file, or of a folder's datasheet, which has those of its shards; else empty."""
    file = Path(path, "datasheet.json") if Path(path).is_dir() else Path(path)
    return hash_file(file) if file.is_file() else ""


def describe_command(verb: str, options: Sequence[str]) -> str:
    """A command line for the record: paths outside the folder in which it was run by their names, no token."""
    words, secret = ["coordformer", verb], False
    for option in options:
        # `--data=/home/me/x` holds a path as `--data /home/me/x` does.
        name, equals, value = option.partition("=") if option.startswith("-") else ("", "", option)
        value = Path(value).name if value.startswith(("/", "..")) else value
        words.append("..." if secret else re.sub("token=.*", "token=...", name + equals + value))
        secret = option.endswith("token")
    return shlex.join(words)


def package_version() -> str:
    """`coordformer.__version__`, of the code that runs: it need not be installed."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def current_commit() -> str:
    """Commit of the repository that the package runs from, `-dirty` where files differ; empty where it is installed."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[1])]
    questions = ("rev-parse HEAD", "ls-files __init__.py", "status --porcelain --untracked-files=no .")
    try:
        commit, inside, changed = (
            subprocess.run([*git, *words.split()], capture_output=True, text=True, check=True).stdout.strip()
            for words in questions
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return (commit + "-dirty" * bool(changed)) if inside else ""


def counted(number: int, noun: str) -> str:
    """`1 chain`, `2,000 chains`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_ones(texts: Sequence[str], most: int, sign: str = ", ") -> str:
    """The first texts in a line, and `...` where there are more."""
    return sign.join([*texts[:most], *["..."] * (len(texts) > most)])


def first_lines(lines: Sequence[str], most: int = 20) -> str:
    """Lines of a text for people: of thousands of chains the first ones."""
    return "\n".join([*lines[:most], *[f"... and {len(lines) - most:,} more; --json has all"] * (len(lines) > most)])
