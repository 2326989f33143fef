"""A checkpoint as a folder that is ready to push to the Hub: `coordformer export`."""

import configparser
import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from ..data.training_sequences import FILE
from ..inference.checkpoints import load_checkpoint, training_sequences_of
from ..model import pipeline_coordformer
from ..model.chain import AMINO_ACIDS
from ..model.processing_coordformer import CoordformerProcessor
from ..training.from_proteinmpnn import LICENSE as PROTEINMPNN_LICENSE
from ..training.from_proteinmpnn import LICENSE_FILE
from . import reload_check
from .card import AUTO_CLASSES, check_card, make_card, read_evaluation, recorded_base, training_facts

DTYPES = ("float32", "bfloat16")
PACKAGES = ("torch", "transformers", "gemmi")  # that a folder's code imports, the last one only to read structures
TRAINING_LOG = "log.csv"


def _checkout() -> Path | None:
    """The folder of the repository, where the package runs from it and is perhaps not installed."""
    folder = Path(__file__).parents[2]
    setup = folder / "setup.cfg"
    return folder if setup.exists() and "\nname = coordformer\n" in setup.read_text(encoding="utf-8") else None


def read_license() -> str:
    """The license of the code, as it lies in the repository or was installed with the package."""
    if (folder := _checkout()) is not None:
        return (folder / "LICENSE").read_text(encoding="utf-8")
    for record in importlib.metadata.distributions(name="coordformer"):
        if text := record.read_text("licenses/LICENSE"):
            return text
    raise FileNotFoundError("LICENSE was not installed with coordformer; install it again.")


def requirements() -> str:
    """What the code of a folder needs, as the package states it."""
    if (folder := _checkout()) is not None:
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(folder / "setup.cfg", encoding="utf-8")
        stated = setup["options"]["install_requires"].split("\n")
    else:
        stated = importlib.metadata.requires("coordformer") or []
    found = {re.split(r"[^\w-]", line, maxsplit=1)[0]: line for line in stated if "extra ==" not in line}
    return "".join(f"{found[name]}\n" for name in PACKAGES)


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    evaluations: Sequence[str | Path] = (),
    name: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    dtype: str | None = None,
    check: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a folder that is ready to push: weights, configs, code, license, requirements, and a card with its sources.

    Args:
        checkpoint: folder or Hub name of a Coordformer with any head or none, or folder of an adapter of PEFT, which is
            merged into the model that it was trained on.
        output: the folder to make; it appears when it is whole and checked.
        evaluations: reports of `coordformer evaluate` on the checkpoint, the card's numbers; the folder gets copies,
            and one of the training's log and of the record of its sequences (`data.training_sequences`).
        name: of the model on its card, which the code there loads: the repository's; default: the folder's.
        license, datasets, base_model: see `make_card`; default of the last one: what is recorded of the checkpoint.
        dtype: `"float32"` or `"bfloat16"`; default: the checkpoint's. What is computed in float32 stays in it. The
            folder loads in float32 in any case, to be fine-tuned.
        check: load the folder in a fresh process without the package, with every Auto class, and compare.
        progress: say on standard error what is going on.

    Returns:
        `output`, `model` (its class), `parameters`, `dtype`, `files` (names), and `checked` (Auto classes).

    Raises:
        ValueError: an argument is unusable, or the reloaded model does not compute the same.
        OSError: the folder could not be written.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} exists already; delete it or give the name of a new folder.")
    if license == "":
        raise ValueError("`license` is empty; give the Hub's name of one, such as apache-2.0, or other.")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"`dtype` is {dtype!r}; choose one of {', '.join(DTYPES)}, or leave it out.")
    reports = [read_evaluation(path, checkpoint) for path in evaluations]
    # What the card says, as it was recorded.
    records = {str(path): f"evaluation{f'_{number}' if number else ''}.json" for number, path in enumerate(evaluations)}
    log = Path(checkpoint) / TRAINING_LOG
    if log.exists():
        records[str(log)] = TRAINING_LOG
    training = training_sequences_of(checkpoint)
    model, processor = load_checkpoint(checkpoint, dtype or _saved_dtype(checkpoint), any_head=True)
    model.cpu().eval()
    card = make_card(
        model, name or output.resolve().name, evaluations=reports, training=training_facts(checkpoint),
        log=TRAINING_LOG if log.exists() else None, license=license, datasets=datasets,
        base_model=base_model or recorded_base(checkpoint),
    )  # fmt: skip
    summary: dict[str, Any] = {"output": str(output), "model": type(model).__name__}
    summary |= {"parameters": model.num_parameters(), "dtype": str(model.dtype).removeprefix("torch.")}
    temporary = output.with_name(f"{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        # Each brings its code, and the map of Auto classes to it (`_auto_class`, `AUTO_MAP`).
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        # `from_pretrained` loads the weights in this dtype, whatever they are saved in: in bfloat16 most updates of a
        # fine-tuning are too small to change one.
        config["dtype"] = "float32"
        # Only here: with `custom_pipelines` in its config a folder needs `trust_remote_code` for every pipeline.
        config["custom_pipelines"] = pipeline_coordformer.CUSTOM_PIPELINES
        texts = {"config.json": json.dumps(config, indent=2) + "\n", "README.md": f"{card}\n"}
        texts |= {"LICENSE": read_license(), "requirements.txt": requirements()}
        if model.config.encoder_type == "proteinmpnn":
            texts[LICENSE_FILE] = PROTEINMPNN_LICENSE
        for file, text in texts.items():
            (temporary / file).write_text(text, encoding="utf-8")
        check_card(temporary / "README.md")
        code = str(pipeline_coordformer.__file__)
        files = {path: Path(path).name for path in (code, *get_relative_import_files(code))} | records
        for source, file in files.items():
            shutil.copy(source, temporary / file)
        if training is not None:
            training.write(temporary / FILE)
        if check and progress:
            print("Loading the folder in a fresh process without the package ...", file=sys.stderr)
        if check:
            check_reload(temporary, model, processor)
        summary["files"] = sorted(path.name for path in temporary.iterdir())
        summary["checked"] = list(reload_check.AUTO_MODELS) if check else []
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        fix = "make room" if getattr(error, "errno", None) in (None, errno.ENOSPC) else "mend that or give another name"
        raise OSError(f"{output} could not be written ({error}); {fix} and run again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summary


def _saved_dtype(checkpoint: str | Path) -> str:
    """In which dtype the weights lie, for `load_checkpoint`: the config names the one to load them in."""
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        path = cached_file(str(checkpoint), SAFE_WEIGHTS_NAME, **missing)
        if path is None:  # in several files, or an adapter
            return "auto"
        with safe_open(path, framework="pt") as weights:
            halves = any(weights.get_slice(name).get_dtype() == "BF16" for name in weights.keys())  # noqa: SIM118
    except (OSError, ValueError, SafetensorError):  # of which `load_checkpoint` says what is wrong
        return "auto"
    return "bfloat16" if halves else "auto"


def check_reload(folder: str | Path, model: PreTrainedModel, processor: CoordformerProcessor) -> None:
    """Load a folder in a fresh process, where the package cannot be imported, and compare its outputs with the model's.

    In float32, on a chain of the twenty amino acids along a random walk of 3.8 Å steps, with a gap. The model is left
    in float32.

    Raises:
        ValueError: a class cannot be loaded, or gives other values (`torch.testing.assert_close`).
    """
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(len(AMINO_ACIDS), len(processor.coordinate_atoms), processor.coordinate_dim))
    coords = (3.8 * steps / np.linalg.norm(steps, axis=-1, keepdims=True)).cumsum(axis=0)
    coords[5:8] = np.nan
    if len(processor.coordinate_atoms) == 1:
        coords = coords[:, 0]
    loaded = _reload_elsewhere(folder, {"sequence": AMINO_ACIDS, "coords": coords.tolist()})
    batch = processor(AMINO_ACIDS, coords=coords)
    expected = {f"AutoProcessor.{name}": values for name, values in batch.items()}
    expected["AutoTokenizer.input_ids"] = batch["input_ids"]
    for output, values in reload_check.predict(model.float(), batch).items():
        # Of all heads but the saved one the weights are new.
        names = [AUTO_CLASSES.get(type(model).__name__)] if output == "logits" else reload_check.AUTO_MODELS
        expected |= {f"{name}.{output}": values for name in names if name is not None}
    for name, values in expected.items():
        try:
            torch.testing.assert_close(loaded.get(name), values, equal_nan=True)
        except AssertionError as error:
            what = f"Loaded without the package, {name} differs ({' '.join(str(error).split())})"
            raise ValueError(f"{what}; check=False keeps the folder.") from error


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    checked = "loads with and without the package" if summary["checked"] else "not checked"
    return f"{summary['model']} of {summary['parameters']:,} parameters in {summary['dtype']}: {checked}"


def _reload_elsewhere(folder: str | Path, chain: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What `reload_check` makes of a folder and a chain, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs.safetensors"
        command = [sys.executable, "-P", reload_check.__file__, str(Path(folder).resolve()), str(outputs)]
        environment = {**os.environ, "HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
        options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": scratch, "env": environment}
        process = subprocess.run(command, input=json.dumps(chain), **options)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"The folder does not load without the package ({reason}); check=False keeps it.")
        return load_file(outputs)
