#!/usr/bin/env bash
# Runs the Python tests in the environment that .ci/python.lock pins; those that need vLLM are test-vllm.sh's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(.ci/python-env)
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
for folder in tests/python trainer/pytorch; do
  "$python" -m pytest -q -p no:cacheprovider --durations=5 \
    --ignore tests/python/test_three_engines.py --ignore tests/python/test_model_import.py \
    --ignore tests/python/test_recipes.py "$folder"
done
# The wire between the coordinator and the PyTorch trainer, from the Go side: one process, two ranks, a killed rank.
UADT_PYTHON="$python" go test -count=1 -tags pytorch -run PyTorch ./trainer/remote
