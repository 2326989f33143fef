#!/usr/bin/env bash
# Version:  transformers 5.23.0, torch 2.13.0
# Behavior: (1) Once a checkpoint conversion mapping is registered for a model type, save_pretrained writes the OLD names
#           of the mapping, even of a model that was never loaded from an old checkpoint. save_original_format=False
#           writes the model's own. (2) Trainer resumes past the mapping: its load_state_dict(strict=False) finds none of
#           the renamed weights of an old checkpoint, warns, and goes on with those that are random.
# A guess:  the mapping serves loading alone; a resumed training starts from the checkpoint.
# Why:      a project that renames its layers and registers the renaming keeps writing the old names for ever, and loses
#           the weights of a training that was stopped before the renaming.
# Source:   PreTrainedModel.save_pretrained and core_model_loading.revert_weight_conversion;
#           Trainer._load_from_checkpoint; the output below.
# Run:      bash findings/transformers_renamed_weights_are_saved_under_old_names.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 \
    2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming


class Config(PretrainedConfig):
    model_type = "renamed"


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.sender = nn.Linear(2, 2)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x, labels=None):
        return {"loss": self.sender(x).square().mean()}


register_checkpoint_conversion_mapping("renamed", [WeightRenaming("tells.", "sender.")])
model = Model(Config())
model.save_pretrained("default")
model.save_pretrained("own", save_original_format=False)
default, own = sorted(load_file("default/model.safetensors")), sorted(load_file("own/model.safetensors"))
print("saved by default:               ", default)
print("with save_original_format=False:", own)
assert default == ["tells.bias", "tells.weight"] and own == ["sender.bias", "sender.weight"]

old = Model(Config())
nn.init.constant_(old.sender.weight, 7.0)
loaded = Model.from_pretrained("default")
assert torch.equal(loaded.sender.weight, model.sender.weight), "from_pretrained renames"
trainer = Trainer(model=Model(Config()), args=TrainingArguments("out", report_to="none", use_cpu=True))
save_file({"tells.weight": old.sender.weight.data, "tells.bias": old.sender.bias.data}, "default/model.safetensors")
trainer._load_from_checkpoint("default")
kept = bool((trainer.model.sender.weight == 7.0).any())
print("weights of the old checkpoint after Trainer's loading:", kept)
assert not kept, "Trainer renames the weights now"
PYTHON
# Output seen:
#   saved by default:                ['tells.bias', 'tells.weight']
#   with save_original_format=False: ['sender.bias', 'sender.weight']
#   weights of the old checkpoint after Trainer's loading: False
