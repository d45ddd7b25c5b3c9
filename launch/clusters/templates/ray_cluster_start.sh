# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
. "$HOME/dist-scvi/venv/bin/activate"
ulimit -n 65536
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=$drain_s
if [ "$is_head" = yes ]; then
    options=(--head --port=6379 --dashboard-host=127.0.0.1 "--autoscaling-config=$HOME/ray_bootstrap_config.yaml")
else
    options=("--address=$RAY_HEAD_IP:6379")
fi
# Ray drains a node on SIGTERM only under --block, and the command of the cluster launcher has to return.
setsid nohup ray start --block "${options[@]}" > "$HOME/dist-scvi/ray.log" 2>&1 < /dev/null &
