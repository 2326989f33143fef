"""`coordformer prepare` on Dask: workers read the parts of a plan, then the data set is assembled here.

    pip install "dask[distributed]==2026.8.0"
    python examples/pretraining/prepare_on_dask.py FOLDER_OF_STRUCTURES --output runs/chains

It is for several machines: on one, `coordformer prepare` needs no scheduler.

The shards are, byte for byte, those of `coordformer prepare`. On a cluster:

    dask scheduler                                                # on one machine
    dask worker tcp://HEAD:8786 --nworkers auto --nthreads 1      # on each of the others
    python examples/pretraining/prepare_on_dask.py /shared/afdb --output /shared/chains --scheduler tcp://HEAD:8786

All machines must have the same coordformer and see the same files under the same paths: inputs are read, and parts are
written to OUTPUT/reading, by the workers. Dask gives the parts of a lost worker to others. Stopped, the same command
goes on with the parts that are not there yet. So does `coordformer prepare` with the same options.
"""

import argparse
import json
import os
import sys
import uuid
from pathlib import Path

from dask.distributed import CancelledError, Client, KilledWorker, as_completed
from tqdm import tqdm

from coordformer.data.prepare import PrepareSettings, assemble, begin, part_path, plan, read_part


def read(part, settings, path):
    """One part, on a worker. Two may read it at once, where Dask took one for lost: each writes a file of its own."""
    if path.exists():
        return  # read by a worker that was lost later
    for needed in {path.parent, *(Path(source.path) for source in part)}:
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is not there on a worker; all workers must see the same file system")
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    read_part(part, settings, own)
    os.replace(own, path)


def read_all(client, parts, settings, output):
    """Read the parts that are not there yet."""
    paths = [part_path(output, number) for number in range(len(parts))]
    left = [number for number, path in enumerate(paths) if not path.exists()]
    total, missing = sum(map(len, parts)), sum(len(parts[number]) for number in left)
    print(f"{len(left)} of {len(parts)} parts to read", file=sys.stderr)
    arguments = [parts[n] for n in left], [settings] * len(left), [paths[n] for n in left]
    futures = client.map(read, *arguments, pure=False, retries=2, batch_size=1000)
    numbers = {future.key: number for future, number in zip(futures, left, strict=True)}
    with tqdm(total=total, initial=total - missing, unit="file") as bar:
        for future in as_completed(futures):
            part = parts[numbers[future.key]]
            try:
                future.result()
            except KilledWorker as error:
                raise OSError(f"workers were lost again and again over {part[0].name} to {part[-1].name}, perhaps for "
                              "want of memory; give them more and run again") from error  # fmt: skip
            bar.update(len(part))
    if unseen := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(f"a worker wrote {unseen[0]}, which is not there here; all must see the same files")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="PATH", help="structure files, tar archives, or folders of them")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster; default: one on this machine")
    parser.add_argument("--workers", type=int, default=2, help="processes without --scheduler; default: %(default)s")
    parser.add_argument("--min_plddt", type=float, help="residues of predicted structures below it are not observed")
    parser.add_argument("--min_length", type=int, default=1, help="reject shorter chains, in residues")
    parser.add_argument("--splits", metavar="NAME=SHARE,...", help="as train=0.9,valid=0.1; needs MMseqs2 here alone")
    parser.add_argument("--chains_per_shard", type=int, default=5000, help="default: %(default)s")
    options = parser.parse_args()
    if min(options.workers, options.chains_per_shard) < 1:
        parser.error("--workers and --chains_per_shard are at least 1")
    try:
        splits = None
        if options.splits:
            pairs = [each.partition("=") for each in options.splits.split(",")]
            splits = {name: float(share or "nan") for name, _, share in pairs}
        settings = PrepareSettings(
            min_plddt=options.min_plddt, min_length=options.min_length, splits=splits,
            chains_per_shard=options.chains_per_shard,
        )  # fmt: skip
        parts, rejects = plan([Path(path).resolve() for path in options.inputs])
        output = options.output.resolve()
        if begin(output, settings, parts):
            local = {"n_workers": options.workers, "threads_per_worker": 1, "dashboard_address": None}
            with Client(options.scheduler, timeout=30, **({} if options.scheduler else local)) as client:
                try:
                    client.wait_for_workers(1, timeout=60)
                except TimeoutError:
                    raise OSError(f"no worker came to {client.scheduler.address} in a minute; start some") from None
                read_all(client, parts, settings, output)
            assemble(output, settings, rejects)
        print(json.dumps(json.loads((output / "datasheet.json").read_text(encoding="utf-8"))["counts"]))
    except (ValueError, OSError, CancelledError) as error:
        sys.exit(f"prepare_on_dask: {error or 'the scheduler was lost; run again'}")


if __name__ == "__main__":
    main()
