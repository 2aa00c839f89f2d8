#!/usr/bin/env bash
# Parity and speed of the CUDA backend, on a machine with a GPU and no network: nothing is installed or fetched.
# The most important comes first: a run that is cut short has told it.
# usage: benchmarks/gpu/run.sh [FOLDER for the figures] [PART ...]
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-.}}
shift || true
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.used,utilization.gpu --format=csv

part() {  # NAME MODELS STEPS: a process of its own, so that a fault of the device ends no other part
    python3 -m benchmarks.gpu.check --output "$out/$1.json" --models "$2" --steps "$3" 2>>"$out/errors" || tail -5 "$out/errors"
}
for name in ${*:-small text parity large vision peers scores fp8 kernels}; do
    case $name in
    small) part small qwen3-0.6b,bge-v2-m3,minilm-l6 limits,speed,profile ;;
    kernels) part kernels "" kernels ;;
    large) part large qwen3-8b,qwen3-4b limits,speed ;;
    vision) part vision qwen3-vl-8b,qwen3-vl-2b limits,vision ;;
    text) part text qwen3-0.6b,minilm-l6,bge-v2-m3 text ;;
    scores) part scores qwen3-0.6b,bge-v2-m3,minilm-l6 scores ;;
    parity) part parity "" attention,parity ;;
    peers) part peers qwen3-0.6b,bge-v2-m3,minilm-l6 peers ;;
    fp8) part fp8 qwen3-0.6b,qwen3-8b limits,fp8 ;;
    esac
done
