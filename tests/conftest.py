"""Real chains, and by way of `small_models.py` the models that the tests share."""

import gc
import importlib
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from coordformer.data.rows import SCHEMA
from coordformer.model.chain import Chain, Complex, join_chains

# One needs Transformers' own tests, and test_transformers_suite.py starts it; the others are run by hand.
collect_ignore = ["model/transformers_suite.py", "compare_readers.py", "fuzz_structures.py"]
STRUCTURES = Path(__file__).parent / "data" / "structures"
CHAINS = Path(__file__).parent.parent / "examples" / "data" / "chains.parquet"
# What takes torch and Transformers to make: the tests of files do not wait for these.
OF_MODELS = (
    *("HEADS", "VARIANTS", "ESM_2", "make_config", "make_model", "make_esm", "make_esm_batch", "make_labels"),
    *("random_chain", "pad_rows", "pack_rows", "outputs_of", "old_checkpoints", "train_adapter"),
)


def __getattr__(name: str):
    if name not in OF_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("small_models"), name)


def pytest_sessionstart():
    """What is imported stays: to look for garbage in it takes an eighth of the time to import it, and comes again."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def one_seed():
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_settings():
    """What a script's `main` sets for its whole process, verbosity and bars of Transformers, ends with its test."""
    yield
    # A test that does not import Transformers cannot change it, and need not wait for it.
    if logging := sys.modules.get("transformers.utils.logging"):
        logging.set_verbosity_warning()
        logging.enable_progress_bar()


def hear_ctrl_c() -> None:
    """`preexec_fn` of a process that is to be interrupted: what a shell runs in the background is deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def assert_same_geometry(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    """The two sets of points (n, 3) have the same pairwise distances, in Å."""
    for points in (actual, expected):
        assert np.isfinite(points).all()
    distances = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (actual, expected)]
    np.testing.assert_allclose(*distances, atol=tolerance)


def make_rows(lengths):
    import datasets

    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"chain {index}", "sequence": "".join(rng.choice(list("ACDEFGHIKL"), size=n)), "length": n,
            "observed": n, "atoms": ["CA"], "coords": rng.normal(size=3 * n).astype(np.float32), "b_factor": None,
            "method": None, "resolution": None, "source": None, "cluster": None, "split": None,
            "aliases": None,
        }
        for index, n in enumerate(lengths)
    ]  # fmt: skip
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=SCHEMA))


def _chain_on_a_line(name: str, sequence: str, numbers: tuple[str, ...] = ()) -> Chain:
    """Residues on a line, in frames that are far from each other."""
    coords = np.array([[3.8 * place, len(sequence), 0] for place in range(len(sequence))])[:, None]
    return Chain(name, sequence, coords, ("CA",), np.ones(len(sequence)), residue_numbers=numbers)


@pytest.fixture(scope="session")
def antibody() -> Complex:
    """Two chains with insertion codes and a negative number, and one without numbers."""
    heavy = _chain_on_a_line("x_H", "SSYAMSW", ("51", "52", "52A", "53", "54", "100", "-1"))
    light = _chain_on_a_line("x_L", "GWKM", ("51", "53", "54", "100A"))
    return join_chains("x", [heavy, light, _chain_on_a_line("x_C", "YYK")], ["H", "L", "C"])
