#!/usr/bin/env bash
# Rerank a first-stage run from files, and measure how much better the new run is.
#
# usage: bash examples/rank_files.sh [MODEL [FOLDER]]
#
# MODEL is a folder or an id on the hub, by default BAAI/bge-reranker-v2-m3. FOLDER takes the output, by default the current
# one. Needs `pip install 'rerankd[eval]'`.
set -euo pipefail
model=${1:-BAAI/bge-reranker-v2-m3}
out=${2:-.}
data=$(dirname "$0")/data

# The candidates of each query, at most 100 of the first stage, in the model's order.
rerankd rank "$model" --queries "$data/queries.tsv" --corpus "$data/corpus.jsonl" --run "$data/first-stage.trec" --top-k 100 \
    -o "$out/reranked.trec"

# Both runs against the judgments. With --fail-under nDCG@10=0.7 the command exits with 1 where the new run is below that.
rerankd eval --qrels "$data/qrels.txt" --run "$data/first-stage.trec" "$out/reranked.trec" --metrics nDCG@10 RR@10 \
    --queries "$data/queries.tsv" --corpus "$data/corpus.jsonl"
