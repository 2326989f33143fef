#!/usr/bin/env bash
# Make hub_cards/coordformer-8M-backbone again: from nothing, and from these chains alone.
#
#   train_backbone.sh CHAINS.parquet BACKBONES.parquet OUTPUT [OPTIONS OF coordformer train]
#
# CHAINS.parquet has C-alphas, BACKBONES.parquet is of join_backbone.py --keep_all. Stopped, the same command goes on. The first
# stage takes six minutes on an H200 and a day on one core of a CPU, the other three half an hour, one and two hours of
# one core. START=hub_cards/coordformer-7M-pdb begins with the last one. HELD_OUT is the file whose split `valid` the card is
# about, by default BACKBONES.parquet; of join_backbone.py without --keep_all all its chains have a backbone.
#
# On a GPU that is there for ten minutes at a time; torch, transformers and accelerate suffice to train. The card is made
# where the chains are, by the same command with the Parquet files:
#
#   coordformer pack CHAINS.parquet chains.safetensors; coordformer pack BACKBONES.parquet backbones.safetensors   # before
#   SHIP=no timeout 580 train_backbone.sh chains.safetensors backbones.safetensors OUTPUT --use_cpu false \
#       --max_shard_size 15MB
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,18s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
chains=$1 backbones=$2 output=$3
shift 3
presets=$here/../pretraining
options=("$@")
longer=(--use_cpu true --hidden_dropout_prob 0.1 --token_budget 4096 --learning_rate 1.2e-3 --warmup_steps 20
    --weight_decay 0.1)

train() { # a preset, data, a folder, options
    coordformer train "$presets/$1" --data "$2" --output_dir "$output/$3" "${@:4}" "${options[@]}"
}

start=${START:-}
if [ -z "$start" ]; then
    train pdb.yaml "$chains" first
    train pdb.yaml "$chains" second --init_from "$output/first" "${longer[@]}" --seed 1 --max_steps 650
    train pdb.yaml "$chains" third --init_from "$output/second" "${longer[@]}" --hidden_dropout_prob 0.15 --seed 3 \
        --max_steps 950
    start=$output/third
fi
train backbone.yaml "$backbones" run --init_from "$start" --seed 5
if [ "${SHIP:-}" != no ] && ! [ -e "$output/coordformer-8M-backbone/README.md" ]; then
    python "$here/../ship.py" "$output/run" "$output/coordformer-8M-backbone" --temperature 1.09 \
        --data "${HELD_OUT:-$backbones}"
fi
echo "The model: $output"
