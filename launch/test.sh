#!/usr/bin/env bash
# Lint, types and the whole test suite, set-up included. Arguments go to pytest, for example: bash launch/test.sh -k plan
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
