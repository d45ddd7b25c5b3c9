#!/usr/bin/env bash
# Lint, types and the test suite, set-up included. Arguments go to pytest:
#   bash launch/test.sh [-k plan]
# The suite on other versions than the tested ones, each in an environment of its own:
#   bash launch/test.sh --newest [-k plan]    constraints-newest.txt, Python 3.12, in .venv-newest
#   bash launch/test.sh --lowest [-k plan]    constraints-lowest.txt, Python 3.11, in .venv-lowest
# Build the sdist and the wheel, install the wheel into an empty environment, run the tests of the sdist:
#   bash launch/test.sh --packaging
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
extras=soma,pcodec,test

case ${1:-} in
--newest) shift && use_environment "$extras" .venv-newest constraints-newest.txt python3.12 && exec python -m pytest "$@" ;;
--lowest) shift && use_environment "$extras" .venv-lowest constraints-lowest.txt python3.11 && exec python -m pytest "$@" ;;
--packaging) shift && use_environment "$extras" && exec python -m pytest -m packaging tests/packaging "$@" ;;
esac
use_environment "$extras"
ruff check .
ruff format --check .
mypy
if (($#)); then
    python -m pytest "$@"
else
    # One thread each: two processes with two spinning threads would fight for two cores.
    OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile tests/loaders tests/dist_scvi
    # Alone: clusters, servers and killed processes have time limits that a busy machine exceeds.
    python -m pytest --ignore tests/loaders --ignore tests/dist_scvi
fi
