#!/usr/bin/env bash
# Parity and speed of the CUDA backend, on a machine with a GPU and no network: nothing is installed or fetched.
# usage: benchmarks/gpu/run.sh [FOLDER for the figures]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-.}}
nvidia-smi --query-gpu=name,memory.used,utilization.gpu --format=csv
PYTHONPATH=src python -m benchmarks.gpu.check --output "$out/gpu.json"
