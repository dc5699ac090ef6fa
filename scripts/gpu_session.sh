#!/usr/bin/env bash
# Use a GPU that is at hand for a few minutes: device tests, GPU benchmarks and a training, in one command, resumable.
#
#   scripts/gpu_session.sh --data DATA --run RUN [--minutes 10] [--out RESULTS.json] [-- TRAIN OPTIONS ...]
#
# It needs no network and no installed package: only Python 3.11 or newer with PyTorch, and the package's dependencies,
# installed or unpacked into a folder on PYTHONPATH (pip install --target). Run it again to go on: what has succeeded
# is not done again, and the training resumes. Set PYTHON to choose an interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" scripts/gpu_session.py "$@"
