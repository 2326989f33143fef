"""Perplexity and recovery as an `evaluate` module, which loads offline.

Examples:
    >>> import evaluate
    >>> import coordformer.masked_residues
    >>> recovery = evaluate.load(coordformer.masked_residues.__file__, "recovery")
    >>> recovery.compute(predictions=["A", "L", "L"], references=["A", "L", "G"])["recovery_by_residue"]["L"]
    1.0
"""

import datasets
import evaluate
import numpy as np


class MaskedResidues(evaluate.Metric):
    """`"perplexity"`: from the log-likelihood (nats) of each true residue. `"recovery"`: from letters, in all and by
    residue."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "perplexity":
            features = datasets.Features({"predictions": datasets.Value("float64")})
        elif self.config_name == "recovery":
            features = datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            )
        else:
            raise ValueError(f"There is no metric {self.config_name!r}; choose 'perplexity' or 'recovery'.")
        return evaluate.MetricInfo(
            description="Prediction of masked residues.",
            citation="Ellmen et al., TMLR 2025, arXiv 2502.01533",
            inputs_description=self.__doc__,
            features=features,
        )

    def _compute(self, predictions, references=None) -> dict:
        if self.config_name == "perplexity":
            return {"perplexity": float(np.exp(-np.mean(predictions)))}
        truth = np.asarray(references)
        correct = np.asarray(predictions) == truth
        return {
            "recovery": float(correct.mean()),
            "recovery_by_residue": {str(each): float(correct[truth == each].mean()) for each in np.unique(truth)},
        }
