"""Load a saved folder with every Auto class and without the package, in a process of its own.

`export` runs this file as a script, and tests run it where nothing but torch and transformers is installed: it imports
nothing else. `python -P reload_check.py FOLDER OUTPUTS.safetensors` reads a chain from standard input, as JSON with
`sequence` and `coords`.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import save_file

AUTO_MODELS = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification",
               "AutoModelForTokenClassification")  # fmt: skip


@torch.no_grad()
def predict(model, batch) -> dict[str, torch.Tensor]:
    """What a model with any head makes of a batch: `last_hidden_state`, `logits` and `contacts`, if it has them."""
    outputs = {"last_hidden_state": model.base_model(**batch).last_hidden_state}
    if model.base_model is not model:
        outputs["logits"] = model(**batch).logits
    head = model.base_model.contact_head
    if head is not None and head.weight.any():  # one that was never trained predicts nothing
        outputs["contacts"] = model.predict_contacts(**batch)
    return outputs


def reload(folder: str, sequence: str, coords) -> dict[str, torch.Tensor]:
    """Outputs of the folder's processor, tokenizer and models in float32, named after their Auto classes.

    Heads that the folder has no weights of are new: their logits are random.
    """
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(sequence, coords=coords)
    loaded = {f"AutoProcessor.{name}": values for name, values in batch.items()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    loaded["AutoTokenizer.input_ids"] = tokenizer(sequence, return_tensors="pt")["input_ids"]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for name in AUTO_MODELS:
        load = getattr(transformers, name).from_pretrained
        model = load(folder, config=config, trust_remote_code=True, dtype=torch.float32).eval()
        loaded |= {f"{name}.{output}": values for output, values in predict(model, batch).items()}
    return loaded


if __name__ == "__main__":
    # Neither may be found, even where they are installed.
    sys.modules["coordformer"] = sys.modules["gemmi"] = None  # type: ignore[assignment]
    transformers.utils.logging.set_verbosity_error()
    outputs = reload(sys.argv[1], **json.load(sys.stdin))
    save_file({name: values.contiguous() for name, values in outputs.items()}, sys.argv[2])
