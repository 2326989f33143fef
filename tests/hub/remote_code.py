"""An exported folder where the package cannot be imported: loaded, saved again, trained, and trained further.

`python -P tests/hub/remote_code.py RELOAD_CHECK.py FOLDER OUTPUT`, a chain on standard input, as `reload_check` reads
it. In OUTPUT appear `saved` (the reloaded model and processor, saved again), where accelerate is installed `trained` (a
run of `Trainer`, whose checkpoint-4 was reached once without and once with a stop), and the outputs of `reload_check`
on each folder, `NAME.safetensors`. Run by test_export.py here and in environments of their own.
"""

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def train(folder: str, output: Path, batch, resume: str | None = None) -> None:
    """Four updates of the masked language model, on one row."""
    transformers.set_seed(0)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    row = {name: values[0] for name, values in batch.items()} | {"labels": batch["input_ids"][0]}
    arguments = transformers.TrainingArguments(
        str(output), max_steps=4, save_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=[row] * 8, processing_class=processor)
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    sys.modules["coordformer"] = sys.modules["gemmi"] = None
    transformers.utils.logging.set_verbosity_error()
    reload = runpy.run_path(sys.argv[1])["reload"]
    folder, output, chain = sys.argv[2], Path(sys.argv[3]), json.load(sys.stdin)
    folders = {"folder": folder, "saved": str(output / "saved")}

    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(folders["saved"])
    processor.save_pretrained(folders["saved"])

    if importlib.util.find_spec("accelerate"):
        batch = processor(chain["sequence"], coords=chain["coords"])
        folders["trained"] = str(output / "trained" / "checkpoint-4")
        train(folder, output / "trained", batch)
        without_stop = load_file(output / "trained" / "checkpoint-4" / "model.safetensors")
        shutil.rmtree(folders["trained"])
        train(folder, output / "trained", batch, resume=str(output / "trained" / "checkpoint-2"))
        for name, weights in load_file(output / "trained" / "checkpoint-4" / "model.safetensors").items():
            torch.testing.assert_close(weights, without_stop[name])

    for name, each in folders.items():
        save_file(
            {key: values.contiguous() for key, values in reload(each, **chain).items()}, output / f"{name}.safetensors"
        )
