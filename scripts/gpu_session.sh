#!/usr/bin/env bash
# Run device tests, GPU benchmarks and a training on a GPU that is available for a few minutes. Resumable.
#
#   scripts/gpu_session.sh --data DATA --run RUN [--minutes 10] [--out RESULTS.json] [-- TRAIN OPTIONS ...]
#
# Needs no network and no installation of this package: only Python 3.11 or newer with PyTorch and the package's
# dependencies, installed or unpacked into a folder on PYTHONPATH (pip install --target). Run the same command again to
# continue: phases that succeeded are skipped, and the training resumes. Set PYTHON to choose an interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" scripts/gpu_session.py "$@"
