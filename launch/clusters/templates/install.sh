# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
set -e
# uv installs a Python as well: the one in the images of clouds is often too old.
export PATH="$HOME/.local/bin:$PATH"
command -v uv > /dev/null || curl -LsSf "https://astral.sh/uv/$uv_version/install.sh" | sh
python=$HOME/dist-scvi/venv/bin/python
[ -x "$python" ] || uv venv --python "$python_version" "$HOME/dist-scvi/venv"
# A run continues only with the versions it was started with, and machines are replaced in the course of weeks.
uv pip install --python "$python" --constraint "$HOME/dist-scvi/constraints.txt" "${packages[@]}"
