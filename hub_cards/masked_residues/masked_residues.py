# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Perplexity and recovery of masked residues: a module of Hugging Face `evaluate`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "How well a protein language model predicts masked residues: their perplexity, or the share recovered."
_CITATION = """\
@article{ellmen2025transformers,
    title={Transformers trained on proteins can learn to attend to Euclidean distance},
    author={Ellmen, Isaac and Schneider, Constantin and Raybould, Matthew I. J. and Deane, Charlotte M.},
    journal={Transactions on Machine Learning Research},
    year={2025}
}
"""
_INPUTS = """
Args:
    log_likelihoods: for "perplexity": of the true residue at each masked position, in nats.
    predictions, references: for "recovery": the predicted and the true residue at each masked position, as letters.
Returns:
    perplexity: exp of the mean negative log-likelihood.
    recovery: share of the positions at which both letters are the same; recovery_by_residue: the same by true letter.
Examples:
    >>> recovery = evaluate.load("hub_cards/masked_residues", "recovery")
    >>> recovery.compute(predictions=["A", "L", "L"], references=["A", "L", "G"])["recovery_by_residue"]
    {'A': 1.0, 'G': 0.0, 'L': 1.0}
"""
# No two share a name: `evaluate.combine` hands all inputs to each of them.
_FEATURES = {
    "perplexity": {"log_likelihoods": datasets.Value("float64")},
    "recovery": {"predictions": datasets.Value("string"), "references": datasets.Value("string")},
}


class MaskedResidues(evaluate.Metric):
    """`"perplexity"` or `"recovery"`, as the second argument of `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in _FEATURES:
            raise ValueError(
                f"There is no metric {self.config_name!r}; give 'perplexity' or 'recovery' as the second argument of "
                "evaluate.load."
            )
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(_FEATURES[self.config_name]),
            reference_urls=["https://arxiv.org/abs/2502.01533"],
        )

    def _compute(self, predictions=(), references=(), log_likelihoods=()) -> dict:
        if self.config_name == "perplexity":
            _refuse_nothing(log_likelihoods, "log_likelihoods")
            return {"perplexity": float(np.exp(-np.mean(log_likelihoods)))}
        _refuse_nothing(references, "references")
        truth = np.asarray(references)
        correct = np.asarray(predictions) == truth
        return {
            "recovery": float(correct.mean()),
            "recovery_by_residue": {str(each): float(correct[truth == each].mean()) for each in np.unique(truth)},
        }


def _refuse_nothing(values, name: str) -> None:
    if len(values) == 0:
        raise ValueError(f"`{name}` is empty; give a value for each masked residue.")
