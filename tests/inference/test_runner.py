"""The way from inputs to files: what is read, stopped and resumed runs, arrays of jobs, and what is left out."""

import csv
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model, make_rows

from coordformer import CoordformerModel, CoordformerProcessor, read_chains
from coordformer.data.pack import write_pack
from coordformer.data.records import lock_folder
from coordformer.data.rows import load_rows
from coordformer.inference.annotate import annotate
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.contacts import contacts
from coordformer.inference.embed import embed
from coordformer.inference.embeddings import load_embeddings
from coordformer.inference.evaluate import evaluate
from coordformer.inference.runner import Inputs, parse_shard
from coordformer.inference.score import score
from coordformer.model.proteins import Record, id_of
from coordformer.model.structure import read_proteins

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def fasta(names, line: str = "\n", seed: int = 0) -> bytes:
    """Sequences of 3 to 30 residues, in lines of 10."""
    rng = np.random.default_rng(seed)
    text = ""
    for name in names:
        sequence = "".join(rng.choice(list(LETTERS), size=rng.integers(3, 31)))
        text += "\n".join([f">{name} a description", *(sequence[i : i + 10] for i in range(0, len(sequence), 10)), ""])
    return text.replace("\n", line).encode()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> list[Path]:
    """Structures, sequences, archives and data sets, some of which cannot be read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "files" / "deep").mkdir(parents=True)
    shutil.copy(STRUCTURES / "5i55.cif.gz", folder / "files" / "peptide.cif.gz")
    shutil.copy(STRUCTURES / "pdb1ubi_ca.pdb.gz", folder / "files" / "deep" / "ubiquitin.pdb.gz")
    (folder / "files" / "deep" / "broken.cif").write_text("data_broken\n")
    (folder / "files" / "few.fasta").write_bytes(fasta(["few1", "few2"]))
    with tarfile.open(folder / "plain.tar", "w") as archive:
        add(archive, "in/4x8u.pdbx.gz", (STRUCTURES / "4x8u.pdbx.gz").read_bytes())
        add(archive, "notes.txt", b"not read")
        add(archive, "in/a.fa", fasta(["tar1", "tar2", "tar3"], seed=1))
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as archive:
        add(archive, "z.faa", fasta(["gz1", "gz2"], seed=2) + b">odd\nM1K\n>few1\n\n")
        add(archive, "empty.pdb", b"")
    (folder / "many.fasta").write_bytes(fasta([f"many{number}" for number in range(8)], "\r\n", seed=3))
    (folder / "seqs.fasta.gz").write_bytes(gzip.compress(fasta([f"seq{number}" for number in range(5)], seed=4)))
    make_rows([5, 12, 1, 2]).to_parquet(folder / "rows.parquet")
    rows = make_rows([7, 9, 3])
    rows = rows.remove_columns("id").add_column("id", ["pack/1", "pack,2", "pack 3"])
    write_pack(rows, folder / "packed.safetensors", progress=False)
    return [folder / name for name in (
        "files", "plain.tar", "packed.tar.gz", "many.fasta", "seqs.fasta.gz", "rows.parquet", "packed.safetensors"
    )]  # fmt: skip


REJECTED = [
    ("files/deep/broken.cif", "", "an mmCIF without atoms"),
    ("packed.tar.gz/z.faa", "odd", "letters '1' in the sequence"),
    ("packed.tar.gz/z.faa", "few1", "the sequence is empty"),
    ("packed.tar.gz/empty.pdb", "", "empty file"),
]
IDS = {
    *("chain 0", "chain 1", "chain 2", "chain 3", "pack/1", "pack,2", "pack 3"),
    *("few1", "few2", "tar1", "tar2", "tar3", "gz1", "gz2"),
    *(f"many{number}" for number in range(8)),
    *(f"seq{number}" for number in range(5)),
}


# --- inputs ----------------------------------------------------------------------------------------------------------


def read(inputs: Inputs) -> tuple[list[list[Record]], list]:
    """The chains of each part, and what cannot be read."""
    rejects = list(inputs.rejects)
    return [inputs.read(number, rejects)[0] for number in range(len(inputs))], rejects


@pytest.mark.parametrize("entries", [1, 3, 1000])
def test_everything_a_verb_may_be_given(mixture, entries):
    inputs = Inputs(mixture, entries_per_part=entries)
    parts, rejects = read(inputs)
    ids = [id_of(chain) for part in parts for chain in part]
    assert len(set(ids)) == len(ids) and set(ids) > IDS
    structures = {"peptide.cif.gz": "5i55.cif.gz", "ubiquitin": "pdb1ubi_ca.pdb.gz", "4x8u": "4x8u.pdbx.gz"}
    chains = {chain.sequence: chain for name in structures.values() for chain in read_chains(STRUCTURES / name)}
    found = {chain.sequence: chain for part in parts for chain in part if not isinstance(chain, dict)}
    for sequence, chain in chains.items():
        np.testing.assert_array_equal(found[sequence].coords, chain.coords)
    assert len(ids) == len(IDS) + len(chains)
    assert sorted((name, chain) for name, chain, _ in rejects) == sorted((name, chain) for name, chain, _ in REJECTED)
    reasons = {(name, chain): reason for name, chain, reason in rejects}
    assert all(text in reasons[name, chain] for name, chain, text in REJECTED)
    # A compressed file of several entries is one part.
    whole = {"gz1", "gz2"}, {f"seq{number}" for number in range(5)}
    assert all(any(each <= set(map(id_of, part)) for part in parts) for each in whole)
    sizes = [len(part) for part in parts if not set(map(id_of, part)) & set.union(*whole)]
    assert max(sizes) <= entries + 2  # a FASTA file in an archive is one entry
    assert inputs.names == [path.name for path in mixture]
    assert [inputs.name(number) for number in (0, len(inputs) - 1)] == [
        f"00000-of-{len(inputs):05d}", f"{len(inputs) - 1:05d}-of-{len(inputs):05d}"
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["\n", "\r\n"])
@pytest.mark.parametrize("entries", [1, 2, 3, 4, 7, 8, 100])
def test_a_fasta_file_is_read_in_pieces(tmp_path, line, entries):
    """Of so many sequences, whose letters are those of the whole; also with text that begins with an empty line."""
    data = line.encode() + fasta([f"s{number}" for number in range(7)], line)
    (tmp_path / "many.fasta").write_bytes(data)
    whole = read_proteins(tmp_path / "many.fasta")
    inputs = Inputs(tmp_path / "many.fasta", entries_per_part=entries)
    parts, rejects = read(inputs)
    assert [len(part) for part in parts] == [min(entries, 7 - start) for start in range(0, 7, entries)] and not rejects
    assert [(chain.id, chain.sequence) for part in parts for chain in part] == [
        (chain.id, chain.sequence) for chain in whole
    ]


def test_sequences_are_chosen_wherever_they_are_in_a_file(tmp_path):
    (tmp_path / "many.fasta").write_bytes(fasta([f"s{number}" for number in range(7)]))
    parts, rejects = read(Inputs(tmp_path / "many.fasta", entries_per_part=2, chain_ids=["s1", "s6"]))
    assert [chain.id for part in parts for chain in part] == ["s1", "s6"] and not rejects
    _, rejects = read(Inputs(tmp_path / "many.fasta", entries_per_part=2, chain_ids=["s1", "s9"]))
    (reject,) = rejects
    assert reject[0] == "many.fasta" and "no sequence s9; the file has s0, s1" in reject[2]


def test_odd_fasta_files(tmp_path):
    """Empty ones, one without a name, one that is no text; bare headers, and a header alone at the end."""
    for name, data in (
        ("a.fasta", b""), ("b.fasta", b"MKV\n"), ("c.fasta", b">x\nMKV\n>\nMKW\n>x y\nMK\n>z"),
        ("d.fasta", b"\xff\xfe>\n"), ("e.fasta", b"\n\n"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    (tmp_path / "f.fasta").write_bytes("\ufeff>bom1\nMK\n>bom2\nMKW\n".encode())
    packed = gzip.compress(fasta([f"s{number}" for number in range(50)]), compresslevel=0)  # lines can be seen in it
    (tmp_path / "g.fasta").write_bytes(packed)
    for entries in (1, 2, 1000):
        parts, rejects = read(Inputs(tmp_path, entries_per_part=entries))
        chains = [chain for part in parts for chain in part]
        assert "".join(chain.sequence for chain in chains).startswith("MKVMKW")
        assert [chain.id for chain in chains[-52:]] == ["bom1", "bom2", *(f"s{number}" for number in range(50))]
        assert {(name, chain) for name, chain, _ in rejects} >= {
            ("a.fasta", ""), ("b.fasta", ""), ("c.fasta", "z"), ("d.fasta", ""), ("e.fasta", "")
        }  # fmt: skip
    assert ("c.fasta", "x", "two sequences have this id; rename one") in rejects


def test_equal_ids_are_told_apart(tmp_path):
    """Structures before they are read, so in all parts; members of a compressed archive and sequences within a part."""
    (tmp_path / "a").mkdir()
    for name in ("a/x", "y"):
        shutil.copy(STRUCTURES / "1orc.pdb.gz", tmp_path / f"{name}.pdb.gz")
    (tmp_path / "s.fasta").write_bytes(fasta(["one", "two"]))
    (tmp_path / "a" / "s.fa").write_bytes(fasta(["two", "three"], seed=1))
    with tarfile.open(tmp_path / "z.tgz", "w:gz") as archive:
        for name in ("p/model.pdb.gz", "q/model.pdb.gz"):
            add(archive, name, (STRUCTURES / "pdb1ubi_ca.pdb.gz").read_bytes())
        add(archive, "t.fa", fasta(["three"], seed=2))
    archived = ["p/model_A", "q/model_A", "three"]
    whole = [["a/s/two", "three", "x_A", "s.fasta/two", "one", "y_A"], archived]
    cut = [["two", "three", "x_A"], ["one", "two", "y_A"], archived]
    for entries, wanted in ((1000, whole), (4, cut)):
        parts, rejects = read(Inputs(tmp_path, entries_per_part=entries))
        assert not rejects and sorted(sorted(map(id_of, part)) for part in parts) == sorted(map(sorted, wanted))


def test_one_bad_sequence_costs_no_other(tmp_path):
    """It is named; blank lines, at the start and between sequences, are no fault, wherever a file is cut into parts."""
    text = "\n  \n>good_1 first\nMKV\n\nLA\n\n>gap\nMK-V\n>stop\nMK*VL\n\n>empty\n\n>good_2\n\nGGS\n\n"
    (tmp_path / "mixed.fasta").write_text(text)
    (tmp_path / "packed.fasta.gz").write_bytes(gzip.compress(text.replace("\n", "\r\n").encode()))
    for entries in (1, 2, 3, 1000):
        for name in ("mixed.fasta", "packed.fasta.gz"):
            parts, rejects = read(Inputs(tmp_path / name, entries_per_part=entries))
            assert [chain.id + chain.sequence for part in parts for chain in part] == ["good_1MKVLA", "good_2GGS"]
            assert [(file, chain) for file, chain, _ in rejects] == [(name, each) for each in ("gap", "stop", "empty")]


def test_options_reach_the_reader(tmp_path):
    (part,), _ = read(Inputs(STRUCTURES / "1BD2.cif.gz", chain_ids=["C", "1BD2_E"], atoms=("N", "CA")))
    assert [(chain.id, chain.atoms) for chain in part] == [("1BD2_C", ("N", "CA")), ("1BD2_E", ("N", "CA"))]
    _, rejects = read(Inputs(STRUCTURES / "1BD2.cif.gz", min_plddt=70))
    assert "min_plddt=70 needs a predicted model" in rejects[0][2]
    rows = load_rows(CHAINS, "valid").select(range(4))
    rows = rows.remove_columns("split").add_column("split", ["a", "b", "a", "a"])
    rows.to_parquet(tmp_path / "chains.parquet")
    parts, _ = read(Inputs(tmp_path / "chains.parquet", split="a", entries_per_part=2))
    assert [[chain["id"] for chain in part] for part in parts] == [[rows["id"][0], rows["id"][2]], [rows["id"][3]]]
    assert len(Inputs([tmp_path / "chains.parquet", STRUCTURES / "1orc.pdb.gz"], split="b", chain_ids=["A"])) == 2


def test_rows_bring_what_reports_are_grouped_by():
    rows = load_rows(CHAINS, "valid")
    inputs = Inputs(CHAINS, split="valid", entries_per_part=300)
    (first, second), _ = read(inputs)
    assert [row["cluster"] for row in first + second] == list(rows["cluster"]) and len(second) == 100
    np.testing.assert_array_equal(second[7]["coords"], np.float32(rows[307]["coords"]))


def test_the_hash_is_of_all_that_is_read(mixture, tmp_path):
    """As of `read`; of names and contents of files, of ids, letters, atoms, clusters and coordinates of rows."""
    inputs = Inputs(mixture, entries_per_part=3)
    hashes = [inputs.hash(number) for number in range(len(inputs))]
    assert hashes == [inputs.read(number, [])[1] for number in range(len(inputs))] and len(set(hashes)) == len(hashes)
    assert hashes == [Inputs(mixture, entries_per_part=3).hash(number) for number in range(len(inputs))]

    rows = make_rows([5, 12]).remove_columns("cluster").add_column("cluster", [0, 1])
    seen = set()
    for change in (
        {}, {"id": ["chain 0", "y"]}, {"sequence": ["AAAAA", rows["sequence"][1]]}, {"atoms": [["CB"], ["CA"]]},
        {"cluster": [0, None]}, {"coords": [rows["coords"][0], [1.0] * 36]},
    ):  # fmt: skip
        table = rows
        for name, values in change.items():
            table = table.remove_columns(name).add_column(name, values)
        table.to_parquet(tmp_path / "rows.parquet")
        seen.add(Inputs(tmp_path / "rows.parquet").hash(0))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "There is nothing to read; give structure or FASTA files, folders, archives or data sets"),
        (["nowhere.cif"], {}, "nowhere.cif: no such file or folder; check the path"),
        (["nowhere.parquet"], {}, "No Parquet file at nowhere.parquet"),
        (["nowhere.safetensors"], {}, "nowhere.safetensors"),
        (["empty"], {}, "empty: no structure file found; give files, or folders with names that end in .cif"),
        (["notes.tar"], {}, "There is no structure or FASTA file in .*notes.tar; give some"),
        (["few.fasta"], {"entries_per_part": 0}, "`entries_per_part` is 0; it must be at least 1"),
        (["few.fasta"], {"split": "valid"}, "`split` is 'valid', but files have no splits; it goes with data sets"),
        (["rows.parquet"], {"split": "valid"}, "No row of .*rows.parquet is in split 'valid'"),
        (["rows.parquet"], {"chain_ids": ["A"]}, "`chain_ids` and `min_plddt` go with files; the chains of a data set"),
        (["rows.parquet"], {"min_plddt": 70.0}, "`chain_ids` and `min_plddt` go with files"),
        (["rows.parquet", "again.parquet"], {}, "4 ids of .*rows.parquet, .*again.parquet stand for several chains"),
        (["few.fasta"], {"shard": "0/3"}, "`shard` is '0/3'; write the number of this job and that of all, from 1/64"),
        (["few.fasta"], {"shard": "4/3"}, "`shard` is '4/3'"),
        (["few.fasta"], {"shard": "1/0"}, "`shard` is '1/0'"),
        (["few.fasta"], {"shard": "x"}, "`shard` is 'x'"),
        (["few.fasta"], {"shard": "-1/3"}, "`shard` is '-1/3'"),
        (["few.fasta"], {"shard": ""}, "`shard` is ''"),
    ],
)
def test_what_cannot_be_given(mixture, tmp_path, monkeypatch, inputs, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "few.fasta").write_bytes(fasta(["a"]))
    for name in ("rows", "again"):
        shutil.copy(mixture[0].parent / "rows.parquet", tmp_path / f"{name}.parquet")
    with tarfile.open(tmp_path / "notes.tar", "w") as archive:
        add(archive, "notes.txt", b"not read")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        Inputs(inputs, **options)


def test_jobs_of_an_array_have_numbers():
    assert [parse_shard(text) for text in (None, "1/1", "3/64", "64/64")] == [(1, 1), (1, 1), (3, 64), (64, 64)]


def test_all_chains_at_once(mixture, tmp_path):
    chains = Inputs(mixture, entries_per_part=2).read_all()
    assert set(map(id_of, chains)) > IDS
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / f"{name}.cif").write_text("data_broken\n")
    with pytest.raises(ValueError, match=r"^a.cif: an mmCIF without atoms .*; give one with coordinates$"):
        Inputs(tmp_path / "a.cif").read_all()
    message = r"^No chain could be used: a.cif: an mmCIF .*; b.cif: an mmCIF .*; c.cif: an mmCIF .*; and 2 more$"
    with pytest.raises(ValueError, match=message):
        Inputs(tmp_path).read_all()


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = make_model(contact_head=True)
    torch.nn.init.normal_(model.coordformer.contact_head.weight, std=30.0)
    labels = {number: f"GO:{number} term {number}" for number in range(4)}
    classifier = make_model("multi_label", id2label=labels, label2id={name: number for number, name in labels.items()})
    for name, each in (("model", model), ("classifier", classifier)):
        each.save_pretrained(folder / name)
        CoordformerProcessor().save_pretrained(folder / name)
    return {"model": folder / "model", "classifier": folder / "classifier"}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Pictures, a second each, and weights that are read again and again are tested elsewhere."""
    for place in ("score.plot_scan", "contacts.plot_contacts", "evaluate.plot_recovery"):
        monkeypatch.setattr(
            f"coordformer.inference.{place}",
            lambda *arguments: next(each for each in arguments if isinstance(each, Path)).write_text("a picture"),
        )
    for verb in VERBS:
        monkeypatch.setattr(f"coordformer.inference.{verb}.load_checkpoint", load_once)


@cache
def load_once(checkpoint: Path, dtype: str, any_head: bool = False, noise_level: float | None = None):
    return load_checkpoint(checkpoint, dtype, any_head, noise_level)


PARTS = 9  # of the mixture, with four entries each
REJECTS = {"annotate": "terms.rejected.tsv", "evaluate": "report.rejected.tsv"}
VERBS = ("embed", "score", "contacts", "annotate", "evaluate")
OTHERS = {
    "embed": ({"pooling": "cls"}, "pooling: 'mean' -> 'cls'"),
    "score": ({"method": "masked_marginal"}, "method: 'wild_type_marginal' -> 'masked_marginal'"),
    "contacts": ({"window": 21}, "window: 20 -> 21"),
    "annotate": ({"top": 3}, "top: 10 -> 3"),
    "evaluate": ({"num_mask_samples": 2}, "num_mask_samples: 1 -> 2"),
}


def run(verb: str, checkpoints, inputs, folder: Path, **options) -> dict:
    """A verb into a folder; windows are shorter than some chains, and batches hold a few."""
    options = {"entries_per_part": 4, "window": 20, "token_budget": 100, "progress": False, **options}
    folder.mkdir(exist_ok=True)
    model, classifier = checkpoints["model"], checkpoints["classifier"]
    if verb == "embed":
        return embed(model, inputs, folder, **{"pooling": "mean", **options})
    if verb == "score":
        return score(model, inputs, folder, **{"method": "wild_type_marginal", **options})
    if verb == "contacts":
        return contacts(model, inputs, folder, **options)
    if verb == "annotate":
        return annotate(classifier, inputs, output=folder / "terms.tsv", threshold=0, **options)
    options = {"num_mask_samples": 1, "protocols": ["paper"], **options}
    return evaluate(model, inputs, output=folder / "report.json", **options)


def parts_of(verb: str, folder: Path) -> Path:
    beside = {"annotate": "terms.tsv.parts", "evaluate": "report.json.parts"}
    return folder / beside[verb] / "parts" if verb in beside else folder / "parts"


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a finished run; an array of jobs leaves its parts beside a file."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if ".parts/" not in name}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory) -> tuple[Path, dict[str, dict[str, bytes]]]:
    return tmp_path_factory.mktemp("whole"), {}


@pytest.fixture(params=VERBS)
def verb(request) -> str:
    return request.param


@pytest.fixture
def whole(verb, mixture, checkpoints, whole_runs) -> dict[str, bytes]:
    """The files of one run that nobody stopped."""
    folder, done = whole_runs
    if verb not in done:
        run(verb, checkpoints, mixture, folder / verb)
        done[verb] = contents(folder / verb)
    return done[verb]


def test_a_run_has_the_files_of_its_verb(verb, mixture, whole):
    rejects = [line.split("\t") for line in whole[REJECTS.get(verb, "rejected.tsv")].decode().splitlines()[1:]]
    assert sorted((name, chain) for name, chain, _ in rejects) == sorted((name, chain) for name, chain, _ in REJECTED)
    assert not any(name.endswith(".tmp") for name in whole)
    if verb in REJECTS:  # nothing but the file, its picture and what was left out
        files = {"annotate": {"terms.tsv"}, "evaluate": {"report.json", "report.png"}}
        assert set(whole) == {REJECTS[verb], *files[verb]}
    else:
        records = {f"parts/{Inputs(mixture, entries_per_part=4).name(number)}.json" for number in range(PARTS)}
        assert {"run.json", "rejected.tsv", *records} < set(whole)
    if verb == "score":
        ids = {row[0] for row in csv.reader(whole["scan.csv"].decode().splitlines())}
        assert ids > IDS and len(whole["scan.csv"].decode().split("id,file,position")) == 2
    if verb == "annotate":
        assert {line.split("\t")[0] for line in whole["terms.tsv"].decode().splitlines()} > IDS


def test_an_array_of_jobs_makes_the_files_of_one_run(verb, mixture, checkpoints, whole, tmp_path):
    """Disjoint parts, together all of them; the last job joins them, and a second round finds nothing to do."""
    order = {"embed": (1, 2, 3), "score": (3, 1, 2)}.get(verb, (2, 3, 1))
    seen: set[str] = set()
    for job in order:
        result = run(verb, checkpoints, mixture, tmp_path / "out", shard=f"{job}/3")
        found = {path.stem for path in parts_of(verb, tmp_path / "out").glob("*.json")}
        mine = {f"{number:05d}-of-{PARTS:05d}" for number in range(job - 1, PARTS, 3)}
        assert found - seen == mine
        seen = found
        if verb != "annotate":
            assert ("missing" in result) == (job != order[-1])
            assert result.get("missing", 0) == PARTS - len(found)
        if job != order[-1]:
            joined = {"embed": "-", "score": "scan.csv", "contacts": "contacts.json"}
            assert joined.get(verb, REJECTS.get(verb)) not in contents(tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    times = {path: path.stat().st_mtime_ns for path in parts_of(verb, tmp_path / "out").iterdir()}
    again = [run(verb, checkpoints, mixture, tmp_path / "out", shard=shard) for shard in ("2/3", None)]
    assert again == [result] * 2 and contents(tmp_path / "out") == whole
    if verb not in REJECTS:
        assert times == {path: path.stat().st_mtime_ns for path in parts_of(verb, tmp_path / "out").iterdir()}
    else:  # a run of one job cleans up behind it
        assert not parts_of(verb, tmp_path / "out").parent.exists()


def stop_in_part(monkeypatch, parts: Path, number: int, error: BaseException) -> None:
    """Raise from inside the model as soon as so many parts are done."""
    forward = CoordformerModel.forward

    def stopping(self, *arguments, **options):
        if len(list(parts.glob("*.json"))) == number:
            raise error
        return forward(self, *arguments, **options)

    monkeypatch.setattr(CoordformerModel, "forward", stopping)


def test_a_stopped_run_goes_on(verb, mixture, checkpoints, whole, tmp_path, monkeypatch):
    """Twice; what is done is not predicted again, and what a kill leaves is cleaned up."""
    folder, parts = tmp_path / "out", parts_of(verb, tmp_path / "out")
    times: dict[Path, int] = {}
    for done, error in ((2, RuntimeError("the device is gone")), (5, KeyboardInterrupt())):
        with monkeypatch.context() as patch:
            stop_in_part(patch, parts, done, error)
            with pytest.raises(type(error)):
                run(verb, checkpoints, mixture, folder)
        assert len(list(parts.glob("*.json"))) == done
        assert all(path.stat().st_mtime_ns == before for path, before in times.items())
        times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        times = {path: time for path, time in times.items() if path.name != "run.json"}
    for name in ("x.tmp", "parts/x.json.tmp", "00007-of-00009/x.npz.tmp"):
        leftover = parts.parent / name
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("what a kill leaves")
    predicted = []
    forward = CoordformerModel.forward
    monkeypatch.setattr(
        CoordformerModel, "forward", lambda self, *_, **batch: predicted.append(batch) or forward(self, **batch)
    )
    run(verb, checkpoints, mixture, folder)
    assert contents(folder) == whole
    if verb in REJECTS:
        assert not parts.parent.exists()
    else:
        assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    resumed = len(predicted)
    run(verb, checkpoints, mixture, tmp_path / "again")
    assert 0 < resumed < len(predicted) - resumed


def test_other_settings_are_refused(verb, mixture, checkpoints, whole, tmp_path, monkeypatch):
    stop_in_part(monkeypatch, parts_of(verb, tmp_path / "out"), 1, RuntimeError("stopped"))
    options, message = OTHERS[verb]
    for given in ({}, {"token_budget": 50}):  # the budget is of no consequence
        with pytest.raises(RuntimeError, match="stopped"):
            run(verb, checkpoints, mixture, tmp_path / "out", **given)
    with pytest.raises(ValueError, match=rf"holds another run \({message}\); choose another output folder, or delete"):
        run(verb, checkpoints, mixture, tmp_path / "out", **options)
    with pytest.raises(ValueError, match=r"holds another run \(.*other inputs\)"):
        run(verb, checkpoints, mixture[:-1], tmp_path / "out")
    (parts_of(verb, tmp_path / "out").parent / "run.json").unlink()
    with pytest.raises(ValueError, match="holds results without a run.json"):
        run(verb, checkpoints, mixture, tmp_path / "out")


def test_another_verb_in_the_same_folder_is_refused(mixture, checkpoints, tmp_path):
    """Both have the same inputs, weights and options."""
    run("score", checkpoints, mixture[:1], tmp_path)
    with pytest.raises(ValueError, match="holds another run .*verb: 'score' -> 'contacts'.*; choose another output"):
        run("contacts", checkpoints, mixture[:1], tmp_path)


def test_jobs_with_other_settings_are_refused_before_a_part_is_done(mixture, checkpoints, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_part(patch, tmp_path / "out" / "parts", 0, RuntimeError("stopped"))
        with pytest.raises(RuntimeError):
            run("embed", checkpoints, mixture, tmp_path / "out", shard="1/3")
    with pytest.raises(ValueError, match="holds another run .pooling: 'mean' -> 'cls'."):
        run("embed", checkpoints, mixture, tmp_path / "out", shard="2/3", pooling="cls")
    assert run("embed", checkpoints, mixture, tmp_path / "out", shard="5/9")["missing"] == 8


def test_a_file_that_changes_in_between_is_named(checkpoints, tmp_path):
    """Of the same size, since another size is another input; of a part of several, the first and the last."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.fasta").write_bytes(fasta([f"{name}{number}" for number in range(3)]))
    for name, entries, part, which in (
        ("a", 2, "00000-of-00006", "a.fasta"),
        ("b", 6, "00000-of-00002", "a.fasta to b.fasta"),
        ("c", 6, "00001-of-00002", "c.fasta"),
    ):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        options = {"inputs": folder, "folder": tmp_path / "out", "entries_per_part": entries}
        run("embed", checkpoints, **options)
        text = (folder / f"{name}.fasta").read_text()
        (folder / f"{name}.fasta").write_text(text.replace("a description", "A description", 1))
        with pytest.raises(ValueError, match=f"out: what part {part} was made of, {which}, has changed since; choose"):
            run("embed", checkpoints, **options)
    (folder / "a.fasta").write_text(">a\nMKV\n")
    with pytest.raises(ValueError, match=r"holds another run \(other inputs\)"):
        run("embed", checkpoints, **options)


def test_what_changes_while_a_part_is_predicted_is_found(checkpoints, tmp_path, monkeypatch):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKVLA\n")
    forward = CoordformerModel.forward

    def changing(self, **batch):
        path.write_text(">a\nMKVLG\n")
        return forward(self, **batch)

    with monkeypatch.context() as patch:
        patch.setattr(CoordformerModel, "forward", changing)
        run("embed", checkpoints, path, tmp_path / "out")
    with pytest.raises(ValueError, match="a.fasta, has changed since"):
        run("embed", checkpoints, path, tmp_path / "out")


@pytest.mark.parametrize(
    ("verb", "what", "file"),
    [("score", "join_tables", "scan.csv"), ("contacts", "write_json", "contacts.json"),
     ("annotate", "write_text", "terms.tsv"), ("evaluate", "write_json", "report.json")],
)  # fmt: skip
def test_an_interrupted_join_is_made_up_for(verb, what, file, mixture, checkpoints, whole, tmp_path, monkeypatch):
    """All parts are done, and the file of all of them is not: nothing is predicted again."""

    def fail(*arguments):
        assert tmp_path / "out" / file in arguments
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(f"coordformer.inference.{verb}.{what}", fail)
        with pytest.raises(OSError, match="no space"):
            run(verb, checkpoints, mixture, tmp_path / "out")
    stop_in_part(monkeypatch, parts_of(verb, tmp_path / "out"), PARTS, RuntimeError("predicted again"))
    run(verb, checkpoints, mixture, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


@contextmanager
def process(*command):
    """A process that is killed at the end, and where the test fails."""
    command = [sys.executable, *map(str, command)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running, ExitStack() as stack:
        stack.callback(running.kill)
        yield running


def test_a_folder_that_another_process_holds(verb, mixture, checkpoints, whole, tmp_path):
    """Nothing is read or written until it ends, and the lock of a process that was killed is none."""
    folder = parts_of(verb, tmp_path / "out").parent
    folder.mkdir(parents=True)
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True)"
    with process("-c", f"{hold}; __import__('time').sleep(600)", folder / ".1-of-1.lock") as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"^{folder}: another run is writing there; wait for its end, or"):
            run(verb, checkpoints, mixture, tmp_path / "out")
        assert [path.name for path in folder.iterdir()] == [".1-of-1.lock"]
    run(verb, checkpoints, mixture, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_two_processes_of_one_run(checkpoints, tmp_path):
    """One stands still within its work: the same job is refused, another works beside it, a kill is made up for."""
    inputs, parts = tmp_path / "many.fasta", tmp_path / "out" / "parts"
    inputs.write_bytes(fasta([f"many{number}" for number in range(100)]))
    command = ["-m", "coordformer", "embed", checkpoints["model"], inputs, "--output", tmp_path / "out"]
    command += ["--entries_per_part", "1", "--window", "20", "--token_budget", "100", "--quiet", "--shard", "1/2"]
    given = {"inputs": inputs, "folder": tmp_path / "out", "entries_per_part": 1}
    with process(*command) as other:
        while other.poll() is None and not list(parts.glob("*.json")):
            time.sleep(0.002)
        other.send_signal(signal.SIGSTOP)
        assert 1 <= len(list(parts.glob("*.json"))) < 50
        with pytest.raises(BlockingIOError, match=f"^{tmp_path / 'out'}: another run is writing there"):
            run("embed", checkpoints, **given, shard="1/2")
        assert run("embed", checkpoints, **given, shard="2/2")["missing"] > 0
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".1-of-2.lock"]
    run("embed", checkpoints, **given)
    run("embed", checkpoints, inputs, tmp_path / "whole", entries_per_part=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_another_job_is_writing_is_left_alone(mixture, checkpoints, tmp_path):
    """Job 2 has come to the end, and job 1, whose parts were done before, is writing the files of all."""
    run("embed", checkpoints, mixture, tmp_path)
    (half := tmp_path / "rejected.tsv.12345678.tmp").touch()
    with lock_folder(tmp_path, 1, 2):
        run("embed", checkpoints, mixture, tmp_path, shard="2/2")
    assert half.exists()
    run("embed", checkpoints, mixture, tmp_path, shard="2/2")
    assert not half.exists() and not list(tmp_path.glob(".*"))


def test_a_part_whose_record_is_broken_is_named(mixture, checkpoints, tmp_path):
    run("embed", checkpoints, mixture, tmp_path)
    record = sorted((tmp_path / "parts").glob("*.json"))[3]
    record.write_text('{"contents": ')
    with pytest.raises(ValueError, match="00003-of-00009.json cannot be read .*; delete it, and its part is made"):
        run("embed", checkpoints, mixture, tmp_path)
    record.unlink()
    run("embed", checkpoints, mixture, tmp_path)
    assert set(load_embeddings(tmp_path)[0]) > IDS


def test_ids_that_several_parts_have_are_said_at_the_end(checkpoints, tmp_path, caplog):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.fasta").write_bytes(fasta(["same", name, "third"]))
    message = "2 ids stand for several chains, such as same, third; rename them to tell them apart"
    for shard, said in (("1/2", 0), ("2/2", 1), (None, 2)):
        run("embed", checkpoints, tmp_path, tmp_path / "out", entries_per_part=3, shard=shard)
        assert caplog.text.count(message) == said
    assert load_embeddings(tmp_path / "out")[0] == [each for name in "abc" for each in ("same", name, "third")]
    run("embed", checkpoints, tmp_path / "a.fasta", tmp_path / "one", entries_per_part=1)
    assert caplog.text.count("stand for") == 2


# --- what is left out ------------------------------------------------------------------------------------------------


def test_what_was_left_out_is_said(verb, mixture, checkpoints, tmp_path, caplog):
    result = run(verb, checkpoints, mixture, tmp_path)
    assert f"{len(REJECTED)} files or chains were left out; the first: " in caplog.text
    if verb != "annotate":
        assert result["rejected"] == len(REJECTED)


def test_a_single_broken_file_gives_its_own_reason(verb, checkpoints, tmp_path):
    (tmp_path / "broken.cif").write_text("data_broken\n")
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "one.fasta").write_text(">one\nM1V\n")
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    for name, message in (
        ("broken.cif", "^broken.cif: an mmCIF without atoms"),
        ("broken.tar", "^broken.tar: broken or cut off after its start"),
        ("one.fasta", "^one.fasta: one: letters '1' in the sequence"),
        ("empty.tar.gz", "^There is no structure or FASTA file in .*empty.tar.gz"),
    ):
        with pytest.raises(ValueError, match=message):
            run(verb, checkpoints, tmp_path / name, tmp_path / "out")
    # The folder is as good as new.
    (tmp_path / "one.fasta").write_text(">one\nMKV\n")
    run(verb, checkpoints, tmp_path / "one.fasta", tmp_path / "out", window=9)


def test_nothing_readable_at_all(verb, checkpoints, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c", "d"):
        (tmp_path / "in" / f"{name}.cif").write_text("data_broken\n")
    message = "^No chain could be used: a.cif: an mmCIF .*; b.cif: an mmCIF .*; c.cif: an mmCIF .*; and 1 more$"
    for entries in (1000, 1):
        with pytest.raises(ValueError, match=message):
            run(verb, checkpoints, tmp_path / "in", tmp_path / "out", entries_per_part=entries)
    # The job of an array that finds all parts done says it.
    run(verb, checkpoints, tmp_path / "in", tmp_path / "array", entries_per_part=1, shard="1/2")
    with pytest.raises(ValueError, match=message):
        run(verb, checkpoints, tmp_path / "in", tmp_path / "array", entries_per_part=1, shard="2/2")


def test_parts_without_a_chain(verb, checkpoints, tmp_path):
    """In the middle and at the ends."""
    (tmp_path / "in").mkdir()
    for name in "abcdef":
        (tmp_path / "in" / f"{name}.fasta").write_text(f">{name}\nMKVA\n" if name in "bd" else f">{name}\n\n")
    result = run(verb, checkpoints, tmp_path / "in", tmp_path / "out", entries_per_part=1)
    if verb == "embed":
        assert result == {"chains": 2, "residues": 8, "shards": 2, "rejected": 4}
        assert load_embeddings(tmp_path / "out")[0] == ["b", "d"]
    elif verb == "annotate":
        assert list(result) == ["b", "d"]
    elif verb == "evaluate":
        assert (result["chains"], result["residues"], result["rejected"]) == (2, 8, 4)
    else:
        assert [each.get("id", each.get("chain")) for each in result["chains"]] == ["b", "d"]
        assert (result["residues"], result["rejected"]) == (8, 4)


def test_names_that_are_no_utf8(verb, checkpoints, tmp_path):
    """Of a file that cannot be read, and of one whose name is that of its chain."""
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    for name, data in ((b"a\xff.cif", b"data_broken\n"), (b"b\xff.pdb.gz", ubiquitin())):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    run(verb, checkpoints, tmp_path / "in", tmp_path / "out")
    assert "a\\udcff.cif\t" in contents(tmp_path / "out")[REJECTS.get(verb, "rejected.tsv")].decode()
    if verb == "embed":
        assert load_embeddings(tmp_path / "out")[0] == ["b\\udcff_A"]


def ubiquitin() -> bytes:
    """76 residues in a file that has no name for them."""
    return (STRUCTURES / "pdb1ubi_ca.pdb.gz").read_bytes()


def test_short_and_unknown_chains(verb, checkpoints, tmp_path):
    """Shorter than the window of 2, nowhere observed, of X alone, and with ids of all kinds; alone as in the batch."""
    rows = make_rows([1, 1, 2, 3, 40])
    coords = [np.full_like(each, np.nan) if number in (1, 3) else each for number, each in enumerate(rows["coords"][:])]
    ids = ["../../a", 'a,b"c', "..", "é\tx y", 300 * "long"]
    sequences = ["M", "X", "XX", "KVA", rows["sequence"][4]]
    for name, values in (("coords", coords), ("id", ids), ("sequence", sequences)):
        rows = rows.remove_columns(name).add_column(name, [np.asarray(v).tolist() for v in values])
    rows.to_parquet(tmp_path / "rows.parquet")
    options = {"window": 2, "token_budget": 7}
    (tmp_path / "deep").mkdir()
    result = run(verb, checkpoints, tmp_path / "rows.parquet", tmp_path / "deep" / "out", **options)
    known = [name for name, sequence in zip(ids, sequences, strict=True) if set(sequence) != {"X"}]
    assert not (tmp_path / "a.npz").exists() and {path.name for path in tmp_path.iterdir()} == {"rows.parquet", "deep"}
    if verb == "embed":
        found, vectors = load_embeddings(tmp_path / "deep" / "out")
        assert found == ids and np.isfinite(vectors).all()
    elif verb == "score":
        assert [each["chain"] for each in result["chains"]] == known and result["rejected"] == 2
        with open(tmp_path / "deep" / "out" / "scan.csv", newline="") as file:
            assert [row["id"] for row in csv.DictReader(file)] == [ids[0], *[ids[3]] * 3, *[ids[4]] * 40]
    elif verb == "contacts":
        assert [each["id"] for each in result["chains"]] == ids
        for each, sequence in zip(result["chains"], sequences, strict=True):
            assert len(np.load(tmp_path / "deep" / "out" / f"{each['file']}.npz")["probabilities"]) == len(sequence)
    elif verb == "annotate":
        assert list(result) == ids and all(0 <= each["probability"] <= 1 for terms in result.values() for each in terms)
    else:
        assert result["chains"] == 5 and np.isfinite(result["paper"]["perplexity"])


def test_an_id_that_two_parts_have(checkpoints, tmp_path):
    """Nothing of the one overwrites the other."""
    for name, sequence in (("a", "MKVLA"), ("b", "GGGG")):
        (tmp_path / f"{name}.fasta").write_text(f">same\n{sequence}\n")
    inputs = [tmp_path / "a.fasta", tmp_path / "b.fasta"]
    found = run("contacts", checkpoints, inputs, tmp_path / "contacts", entries_per_part=1)["chains"]
    assert [len(np.load(tmp_path / "contacts" / f"{each['file']}.npz")["contacts"]) for each in found] == [5, 4]
    run("score", checkpoints, inputs, tmp_path / "score", entries_per_part=1)
    assert len(list((tmp_path / "score").glob("*/same.png"))) == 2
    run("embed", checkpoints, inputs, tmp_path / "embed", entries_per_part=1)
    ids, vectors = load_embeddings(tmp_path / "embed")
    assert ids == ["same", "same"] and not np.allclose(*vectors)


def test_an_output_that_cannot_be(verb, checkpoints, mixture, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "terms.tsv").mkdir()
    (tmp_path / "report.json").mkdir()
    if verb in REJECTS:
        with pytest.raises(ValueError, match="`output` is .*; give the name of a file that ends in"):
            run(verb, checkpoints, mixture, tmp_path)
        shutil.rmtree(tmp_path / "terms.tsv")
        shutil.rmtree(tmp_path / "report.json")
        parts_of(verb, tmp_path).parent.touch()
        with pytest.raises(ValueError, match=r"`output` is .*.parts, which is a file; give a folder"):
            run(verb, checkpoints, mixture, tmp_path)
    else:
        function = {"embed": embed, "score": score, "contacts": contacts}[verb]
        with pytest.raises(ValueError, match="`output` is .*file, which is a file; give a folder"):
            function(checkpoints["model"], mixture, tmp_path / "file", progress=False)
