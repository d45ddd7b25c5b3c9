# shellcheck shell=bash
# Sourced by demo.sh and test.sh. `use_environment EXTRAS` puts an environment on PATH that holds this checkout, its
# dependencies and those of the extras (separated by commas). An active virtual or conda environment is used if it holds
# all of them; otherwise .venv is made with the tested versions, by uv where it is installed and by pip elsewhere.
#
#   PYTHON=python3.12          the Python of a new .venv; by default the first of python3, python3.11, 3.12 and 3.13 that fits
#
# It runs in the bash 3.2 of macOS, and in the directory of the checkout.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf 'setup: %s\n' "$*" >&2; }

# use_environment EXTRAS [VENV CONSTRAINTS PYTHONS]: of a VENV that is named, no active environment takes the place.
use_environment() {
    local extras=$1 venv=${2:-.venv} constraints=${3:-constraints.txt} active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    local pythons=${4:-python3 python3.11 python3.12 python3.13} lacks
    if [ $# -eq 1 ] && [ -n "$active" ] && [ "$active" != "$PWD/$venv" ]; then
        # -P: a checkout in the current directory is no proof that the environment holds it.
        if lacks=$("$active/bin/python" -P launch/check_environment.py "$extras" 2>&1); then
            export PATH=$active/bin:$PATH
            return
        fi
        say "the active environment $active is left as it is and $venv is used: $(tail -n 1 <<<"$lacks")"
    fi
    if command -v flock >/dev/null; then # demo.sh and test.sh may be started side by side
        exec 9<.
        flock -n 9 || { say "waiting for another set-up of this checkout" && flock 9; }
    fi
    install_environment "$extras" "$venv" "$constraints" "$pythons" || exit 1
    exec 9<&-
    unset PYTHONHOME
    export VIRTUAL_ENV=$PWD/$venv PATH=$PWD/$venv/bin:$PATH
}

install_environment() {
    local extras=$1 venv=$2 constraints=$3 pythons=$4 stamp python
    stamp=$venv/installed-${extras//,/-}-$(cat pyproject.toml "$constraints" | cksum | cut -d' ' -f1)
    if [ -f "$stamp" ] && "$venv/bin/python" -c "" 2>/dev/null; then return; fi
    if ! "$venv/bin/python" -c "" 2>/dev/null; then
        if [ -d "$venv" ] && ! ls "$venv"/installed-* >/dev/null 2>&1; then
            say "$PWD/$venv is there and holds no Python that runs: remove it, then start again" && return 1
        fi
        python=$(find_python "$pythons") || return 1
        make_venv "$python" "$venv" || return 1
    fi
    local target=.${extras:+[$extras]} log=$venv/install.log
    say "installing $target into $venv with $("$venv/bin/python" --version) and $(installer); this log: $log"
    announce_size "$venv" "$constraints"
    if installer_is_uv; then
        with_progress "$venv" "$log" uv pip install --python "$venv/bin/python" --constraint "$constraints" --editable "$target"
    else
        with_progress "$venv" "$log" pip_of "$venv" install --no-compile --progress-bar off --constraint "$constraints" --editable "$target"
    fi || return 1
    touch "$stamp"
}

# uv does not read the settings of pip: an index, a folder of wheels or a certificate of this site has to be passed on.
if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}; fi
if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi

installer_is_uv() { command -v uv >/dev/null; }
installer() { if installer_is_uv; then uv --version; else echo pip; fi; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-$1}; do
        if "$candidate" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null; then
            command -v "$candidate" && return
        fi
    done
    if [ -z "${PYTHON:-}" ] && installer_is_uv; then # uv fetches the Python as well
        echo "3.${1##*3.}" && return
    fi
    say "Python 3.11, 3.12 or 3.13 is needed, tried ${PYTHON:-$1}: install one, or uv, which brings it along"
    return 1
}

make_venv() {
    local python=$1 venv=$2
    if installer_is_uv; then
        uv venv --quiet --clear --python "$python" "$venv"
    elif ! "$python" -m venv --clear "$venv" >/dev/null 2>&1; then
        # Debian's Python without python3-venv has no pip for a new environment; the one of the system can fill it.
        if ! "$python" -m venv --clear --without-pip "$venv" || ! "$python" -m pip --python "$venv/bin/python" --version >/dev/null 2>&1; then
            rm -rf "$venv"
            say "$python cannot make an environment with pip: install python3-venv or python3-pip, or uv"
            return 1
        fi
    fi
}

pip_of() {
    local venv=$1 && shift
    if "$venv/bin/python" -c "import pip" 2>/dev/null; then
        PIP_USER=0 "$venv/bin/python" -m pip "$@"
    else
        PIP_USER=0 "$(base_python "$venv")" -m pip --python "$venv/bin/python" "$@"
    fi
}

base_python() { "$1/bin/python" -c "import sys; print(sys._base_executable)"; }

# Say what is coming before it comes: the CUDA build of torch is ten times the size of the one for CPUs.
announce_size() {
    local venv=$1 constraints=$2 torch cpu
    torch=$(grep '^torch==' "$constraints")
    if installer_is_uv; then
        cpu="UV_TORCH_BACKEND=cpu"
        torch=$(uv pip install --python "$venv/bin/python" --dry-run --no-deps "$torch" 2>&1)
    else
        cpu="PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
        torch=$(pip_of "$venv" install --quiet --dry-run --no-deps --report - "$torch" 2>/dev/null | grep '"url"')
    fi
    case $torch:$(uname -sm) in
    *cpu*:* | *:Darwin*) say "about 1.7 GB on disk, 1 to 5 minutes" ;;
    *torch*:Linux*) say "about 5.5 GB on disk and 3 GB to download, 5 to 15 minutes: torch comes with CUDA. Without an NVIDIA GPU, stop this and start it with $cpu: 1.7 GB" ;;
    esac
}

# with_progress VENV LOG COMMAND...: the output goes to LOG, and where it stands is shown every few seconds. The command
# stays in the foreground, where Ctrl-C reaches it.
with_progress() {
    local venv=$1 log=$2 beat code=0 && shift 2
    show_progress "$venv" "$log" &
    beat=$!
    "$@" >"$log" 2>&1 || code=$?
    kill "$beat" 2>/dev/null && wait "$beat" 2>/dev/null
    [ -t 2 ] && printf '\r\033[K' >&2
    if [ "$code" -ne 0 ]; then
        tail -n 20 "$log" >&2
        say "the installation failed with exit code $code; all of it: $log"
        return 1
    fi
    say "installed in $((SECONDS / 60)) min $((SECONDS % 60)) s, $(du -sm "$venv" | cut -f1) MB in $venv"
}

show_progress() {
    local line
    exec 9<&-
    while sleep 10 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        line="setup: $((SECONDS / 60)) min $((SECONDS % 60)) s, $(du -sm "$1" 2>/dev/null | cut -f1) MB: $(tail -n 1 "$2" | tr -d '\r')"
        if [ -t 2 ]; then printf '\r\033[K%.79s' "$line" >&2; else printf '%.120s\n' "$line" >&2; fi
    done
}
