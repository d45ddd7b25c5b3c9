# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
set -e
mkdir -p "$HOME/dist-scvi"
for i in "${!file_names[@]}"; do printf %s "${file_texts[$i]}" > "$HOME/dist-scvi/${file_names[$i]}"; done
