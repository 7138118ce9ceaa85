#!/usr/bin/env bash
# Both chains of the demo: pull, finetune, evaluate, export, run, each command shown before it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
export ZOO_HOME="$PWD/demo/.zoo"
mkdir -p demo/out

run() {
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

printf '== Support tickets: four classes, a frozen MiniLM, 30 %% of the rows held out\n'
run zoo pull all-minilm-l6-v2
run zoo finetune all-minilm-l6-v2 demo/tickets.csv --val 0.3 -o demo/out/tickets
run zoo evaluate ./demo/out/tickets demo/tickets.csv --held-out --fail-under 0.90
run python demo/baselines.py words demo/tickets.csv demo/out/tickets
run zoo export ./demo/out/tickets -o demo/out/tickets-onnx
run zoo run ./demo/out/tickets-onnx "my statement shows the same amount twice" "nobody rang the bell and it went back to the depot" --top 2

printf '\n== Surfaces: fourteen photographs, trained on their left halves, evaluated on their right halves\n'
run zoo pull efficientnet_lite0
run python demo/surfaces.py demo/out/surfaces
run zoo finetune efficientnet_lite0 demo/out/surfaces/train --val demo/out/surfaces/heldout -o demo/out/surfaces-model
run zoo evaluate ./demo/out/surfaces-model demo/out/surfaces/heldout --fail-under 0.93
run python demo/baselines.py pixels demo/out/surfaces/train demo/out/surfaces/heldout
run zoo export ./demo/out/surfaces-model -o demo/out/surfaces-onnx
run zoo run ./demo/out/surfaces-onnx demo/out/surfaces/heldout/gravel/00.png demo/out/surfaces/heldout/coins/00.png --top 2

printf '\n== Both models are plain ONNX files: demo/out/tickets-onnx/model.onnx and demo/out/surfaces-onnx/model.onnx\n'
