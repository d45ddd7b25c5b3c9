# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
dist-scvi train "$config" "${train_options[@]}" --address auto
exit_unless_unfinished "$?"
exit "$again"
