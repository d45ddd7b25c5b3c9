# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
. "$HOME/dist-scvi/venv/bin/activate"
export RAY_AUTH_MODE=token
exec >> "$HOME/dist-scvi/train.log" 2>&1
restarts=0 old_saved=
while :; do
    dist-scvi train "$HOME/dist-scvi/run.yaml" "${train_options[@]}" --address auto
    exit_unless_unfinished "$?"
    saved=$(saved_step)
    if [ "$saved" != "$old_saved" ]; then restarts=0; fi
    old_saved=$saved
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "$max_restarts" ]; then
        echo "dist-scvi: $max_restarts restarts without a new checkpoint: find the cause, then start it again" >&2
        exit "$again"
    fi
done
