#!/usr/bin/env bash
# Prints the numbers of the goals that need no GPU, as JSON lines with name, value, unit, goal and machine.
#
#   scripts/bench.sh [--only program|controller|bus|fleet|native]... [LENGTHS]
#
# LENGTHS is a file of response lengths for the controller, one integer a line, five lines a question, so that a
# peer can be run on the same; without it 2,560 lengths are drawn from a lognormal distribution with mean 611.
# With VERL_PACKAGES, a folder that verl 0.9.1 and ray are installed in, verl's driver is measured after ours.
# Every ratio is between two things measured in this run, one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$(.ci/python-env)" tests/python/bench.py "$@"
