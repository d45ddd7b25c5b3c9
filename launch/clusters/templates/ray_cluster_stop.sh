# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
. "$HOME/dist-scvi/venv/bin/activate"
ray stop || true
