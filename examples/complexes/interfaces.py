"""What a model gains at interfaces when it sees the other chains of a complex.

    python examples/complexes/interfaces.py hub_cards/coordformer-7M-pdb complexes.parquet --output results/7M.json

Of each complex 15 % of the residues of all chains are masked, drawn by its id, and predicted twice: in the complex,
and in their chain alone, with the same residues masked. A residue is of the interface if its C-alpha is less than 8 Å
from one of another chain. Intervals are a bootstrap over the clusters of the complexes where the data has them. In a
complex of equal chains the copy shows most of the letters that are asked for; so these are listed apart. What
--output has of a noise is not measured again.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from coordformer.data.files import write_json
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.masked import chain_generator
from coordformer.inference.metrics import interval, resample
from coordformer.inference.runner import Inputs
from coordformer.model.chain import AMINO_ACIDS, Complex
from coordformer.model.predict import Row, model_processor, predict
from coordformer.model.processing_coordformer import letter_ids
from coordformer.model.proteins import as_chain, cluster_of

CONTACT = 8.0  # Å
SHARE = 0.15
NOISE = (0.0, 0.1, 0.2)  # Å


def interface(protein: Complex) -> np.ndarray:
    """Which residues have a C-alpha within 8 Å of one of another chain: bool (L,)."""
    alpha, chains = protein.coords[:, protein.atoms.index("CA")], protein.chain_index
    known = np.flatnonzero(~np.isnan(alpha[:, 0]))
    pairs = cKDTree(alpha[known]).query_pairs(CONTACT, output_type="ndarray")
    pairs = known[pairs[chains[known[pairs[:, 0]]] != chains[known[pairs[:, 1]]]]]
    return np.isin(np.arange(len(protein)), pairs)


def masked_rows(model: Any, tokenizer: Any, proteins: list[Complex], noise: float) -> Iterator[Row]:
    """Rows of whole complexes and of their chains, with the same residues masked; the tag says which residues."""
    processor = model_processor(model, tokenizer)
    for number in sorted(range(len(proteins)), key=lambda number: -len(proteins[number])):
        protein = proteins[number]
        rng = chain_generator(protein.id, 2)
        known = protein.observed.any(axis=1) & (np.array(list(protein.sequence)) != "X")
        masked = known & (rng.random(len(protein)) < SHARE)
        moved = protein.coords + (noise * rng.normal(size=protein.coords.shape)).astype(np.float32)
        whole = vars(protein) | {"coords": moved}
        parts = [(whole, np.arange(len(protein)))]
        for chain in range(len(protein.chain_lengths)):
            inside = np.flatnonzero(protein.chain_index == chain)
            positions = protein.positions[inside] - protein.positions[inside[0]]
            sequence = "".join(protein.sequence[place] for place in inside)
            alone = {"id": protein.id, "atoms": protein.atoms, "sequence": sequence, "coords": moved[inside]}
            parts.append((alone | {"positions": positions}, inside))
        for part, (record, inside) in enumerate(parts):
            arrays = processor.encode_protein(record)
            places = np.flatnonzero(masked[inside]) + 1  # <cls> is in front
            if len(places):
                arrays["input_ids"][places] = tokenizer.mask_token_id
                yield Row(
                    number, 0, arrays, places, ("alone" if part else "complex", inside[places - 1]), last=not part
                )


def measure(model: Any, tokenizer: Any, proteins: list[Complex], noise: float, bar: Any) -> list[np.ndarray]:
    """Of each complex (2, L): negative log-likelihoods of the masked residues alone and in the complex, else NaN."""
    tables = [np.full((2, len(protein)), np.nan) for protein in proteins]
    letters = list(letter_ids(tokenizer).values())

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).logits[..., letters].float().log_softmax(dim=-1)

    rows = sorted(masked_rows(model, tokenizer, proteins, noise), key=lambda row: -len(row.inputs["input_ids"]))
    for row, logits in predict(model, rows, forward, bar=bar):
        where, residues = row.tag
        truth = [AMINO_ACIDS.index(proteins[row.chain].sequence[residue]) for residue in residues]
        tables[row.chain][int(where == "complex"), residues] = -logits[np.arange(len(truth)), truth]
    return tables


def summarize(tables: list[np.ndarray], chosen: list[np.ndarray], clusters: list[Any] | None) -> dict[str, Any]:
    """Perplexity alone and in the complex over the chosen residues, their ratio, and intervals."""
    sums = np.array(
        [
            [*np.nansum(table[:, inside], axis=1), (~np.isnan(table[0, inside])).sum()]
            for table, inside in zip(tables, chosen, strict=True)
        ]
    )
    kept = sums[:, 2] > 0
    sums = sums[kept]
    groups = None if clusters is None else [each for each, keep in zip(clusters, kept, strict=True) if keep]

    def perplexities(total: np.ndarray) -> dict[str, np.ndarray]:
        alone, together = (np.exp(total[..., number] / total[..., 2]) for number in (0, 1))
        return {"alone": alone, "complex": together, "ratio": together / alone}

    drawn = perplexities(resample(sums, clusters=groups))
    report: dict[str, Any] = {"complexes": len(sums), "residues": int(sums[:, 2].sum())}
    for name, value in perplexities(sums.sum(axis=0)).items():
        report |= {name: float(value), f"{name}_interval": interval(drawn[name])}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="Parquet file of complexes")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--first", type=int, help="only so many complexes")
    parser.add_argument("--noise", type=float, nargs="+", default=NOISE, help="Å (default: 0, 0.1 and 0.2)")
    arguments = parser.parse_args()
    model, processor = load_checkpoint(arguments.checkpoint)
    records = Inputs(arguments.data, atoms=processor.coordinate_atoms).read_all()[: arguments.first]
    proteins: Any = [as_chain(record) for record in records]
    clusters = [cluster_of(record) for record in records]
    equal = [len(set(chain.sequence for chain in protein.chains)) < len(protein.chain_lengths) for protein in proteins]
    faces = [interface(protein) for protein in proteins]
    report: dict[str, Any] = {"checkpoint": Path(arguments.checkpoint).name, "weights": digest_weights(model)}
    report |= {"data": Path(arguments.data).name, "complexes": len(proteins)}
    lines = []
    if arguments.output.exists():  # goes on where it was stopped
        before = json.loads(arguments.output.read_text())
        lines = before.pop("results")
        if before != report:
            parser.error(f"{arguments.output} is of other weights or data; delete it, or choose another file.")
    noises = [noise for noise in arguments.noise if noise not in {line["noise"] for line in lines}]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(noises) * len(proteins), unit="complex") as bar:
        for noise in noises:
            tables = measure(model, processor.tokenizer, proteins, noise, bar)
            for kind, wanted in (("different chains", False), ("equal chains", True)):
                here = [number for number, each in enumerate(equal) if each == wanted]
                if not here:
                    continue
                for place, inside in (("interface", faces), ("elsewhere", [~face for face in faces])):
                    chosen = [tables[number] for number in here], [inside[number] for number in here]
                    result = summarize(*chosen, None if None in clusters else [clusters[number] for number in here])
                    lines.append({"noise": noise, "chains": kind, "residues": place} | {"measured": result})
            write_json(arguments.output, report | {"results": lines})
    for line in lines:
        result = line["measured"]
        print(f"{line['noise']:.1f} Å  {line['chains']:17}{line['residues']:10}", end="")
        print(
            "  ".join(
                f"{name} {result[name]:.3f} ({', '.join(f'{x:.3f}' for x in result[f'{name}_interval'])})"
                for name in ("alone", "complex", "ratio")
            )
        )


if __name__ == "__main__":
    main()
