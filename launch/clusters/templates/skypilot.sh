# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
. "$HOME/dist-scvi/venv/bin/activate"
# SkyPilot runs a Ray of its own as the same user: this one has another port and folder, and is ended by its process,
# because ray stop would end both.
unset RAY_ADDRESS
first=$(printf '%s\n' "$SKYPILOT_NODE_IPS" | head -n 1)
ray=(ray start --block "--num-cpus=$cpus_per_node" "--num-gpus=$gpus_per_node")
if [ "$SKYPILOT_NODE_RANK" -ne 0 ]; then
    until (exec 3<> "/dev/tcp/$first/$port") 2> /dev/null || [ "$SECONDS" -gt "$start_s" ]; do sleep 2; done
    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=$drain_s "${ray[@]}" --address="$first:$port"
    exit 0 # the exit code of the first node is that of the run
fi
RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 "${ray[@]}" --head --port="$port" --node-ip-address="$first" \
    --include-dashboard=false --temp-dir=/tmp/ray_dist_scvi &
head=$!
trap 'kill "$head" 2> /dev/null; wait "$head"' EXIT
python -m dist_scvi.launch.clusters.wait_for_nodes "$first:$port" "$SKYPILOT_NUM_NODES" "$start_s" || exit "$again"
dist-scvi train "$HOME/dist-scvi/run.yaml" "${train_options[@]}" --address "$first:$port"
exit_unless_unfinished "$?"
exit "$again"
