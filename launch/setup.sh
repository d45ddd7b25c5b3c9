# Sourced by demo.sh and test.sh: makes .venv with the tested set of packages, once, and puts it on PATH.
# An environment of your own is used instead if VIRTUAL_ENV is set and holds dist-scvi.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ] || ! "$VIRTUAL_ENV/bin/python" -c "import dist_scvi.launch" 2>/dev/null; then
    python=""
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "setup: Python 3.11 or newer is needed, found $(python3 --version 2>&1)" >&2
        exit 1
    fi
    stamp=.venv/installed-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
    if [ ! -f "$stamp" ]; then
        echo "setup: installing into .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
        .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[soma,pcodec,test]"
        touch "$stamp"
    fi
    export VIRTUAL_ENV=$PWD/.venv
fi
export PATH=$VIRTUAL_ENV/bin:$PATH
