#!/usr/bin/env bash
# Parity and speed of the CUDA backend, on a machine with a GPU and no network: nothing is installed or fetched.
# usage: benchmarks/gpu/run.sh [FOLDER for the figures]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-.}}
export PYTHONPATH=src PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.used,utilization.gpu --format=csv
small=qwen3-0.6b,bge-v2-m3,minilm-l6
python3 -m benchmarks.gpu.check --output "$out/small.json" --models $small \
    --steps limits,attention,speed,profile,scores,kernels,parity
python3 -m benchmarks.gpu.check --output "$out/large.json" --models qwen3-8b,qwen3-4b --steps limits,speed
python3 -m benchmarks.gpu.check --output "$out/peers.json" --models $small --steps peers
python3 -m benchmarks.gpu.check --output "$out/fp8.json" --models qwen3-8b --steps limits,fp8
