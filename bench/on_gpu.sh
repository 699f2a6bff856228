#!/usr/bin/env bash
# The tables that want a GPU, one after the other. Usage: bench/on_gpu.sh DIR [DIFFUSERS]
#   DIR         for bases with random weights (18 GB) and run folders; what is there is not made again
#   DIFFUSERS   a clone of huggingface/diffusers, or its train_text_to_image_lora.py: without it no peer is trained
# A part that fails is told and does not keep the others from running; the status is then 1. Parts write into
# bench/results and their output into DIR/*.log. PYTHON names the interpreter, by default .venv's.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="$(realpath -m "$1")" diffusers="${2:-}" python="${PYTHON:-.venv/bin/python}" failed=0
mkdir -p "$work/pictures"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 DIFFUSION_LORA_CACHE="$work/cache"

part() {
    local name="$1" began=$SECONDS
    shift
    if timeout "${LIMIT:-300}" "$@" >"$work/$name.log" 2>&1; then
        echo "$name: $((SECONDS - began)) s"
    else
        echo "$name: FAILED after $((SECONDS - began)) s"
        tail -n 5 "$work/$name.log"
        failed=1
    fi
}

part train-step-sd15 "$python" bench/train_step.py --kind sd15 --device cuda --steps 20 --write
part train-step-sdxl "$python" bench/train_step.py --kind sdxl --device cuda --steps 10 --write
for dtype in bf16 fp32; do
    part "gate-cost-$dtype" "$python" bench/gate_cost.py step --device cuda --dtype $dtype --pairs 30 --write
done
part lora-layer "$python" bench/lora_layer.py --device cuda --write
part base "$python" -c "import sys; sys.path.insert(0, 'bench'); from pathlib import Path; import peers; print(peers.base('sd15', Path(sys.argv[1]))); peers.pictures(Path(sys.argv[1]))" "$work"
part preflight "$python" -m bench.preflight sd15-style --steps 60 --set "model.base=\"$work/sd15-random\"" \
    --set "dataset.path=\"$work/pictures\"" --set train.device=cuda --set preview.every=0 \
    --set train.batch_size=1 --write
if [[ -n "$diffusers" ]]; then
    part peers-make "$python" bench/peers.py make "$work" --diffusers "$diffusers" --here
    part peers "$python" bench/peers.py run "$work" --peer diffusers --device cuda --size 512 --steps 60 --pairs 3 --beside --write
fi
exit $failed
