# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
state=$HOME/.dist-scvi/slurm-$SLURM_JOB_ID # kept while this job is queued again
mkdir -p "$state" && chmod 700 "$state" && rm -f "$state/pid" || exit 1
trap 'rm -rf "$state"' EXIT
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=$drain_s
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH") || exit 1

launch=(srun "--cpus-per-task=$SLURM_CPUS_PER_TASK")
if [ "$elastic" = yes ]; then launch+=(--no-kill); fi
if [ "$nodes" -gt 1 ]; then
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
    node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # To decide: on a site with several networks, the address of this node in the fastest one.
    head=$(getent ahostsv4 "$node" | awk '$1 !~ /^127\./ { print $1; exit }')
    head=${head:-$(hostname -I | awk '{ print $1 }')}
    # A port of its own for each job: Ray of another user may run on this node.
    launch+=(ray symmetric-run --address "$head:$((20000 + SLURM_JOB_ID % 10000))" --min-nodes "$SLURM_JOB_NUM_NODES"
        "--num-cpus=$cpus_per_node" "--num-gpus=$gpus_per_node" --)
    train_options+=(--address auto)
fi

# Only the training process receives the signal: if Slurm sends it to the step, it ends Ray before anything is saved.
step='' cancelled=''
stop() { # CANCELLED
    cancelled=$1
    echo "dist-scvi: stopping: saving a checkpoint" >&2
    if [ -s "$state/pid" ]; then kill -TERM "$(cat "$state/pid")"; else kill -TERM "$step"; fi
}
# shellcheck disable=SC2016 # expanded by the bash that becomes the training process
with_pid='echo "$$" > "$1"; shift; exec "$@"'
trap 'stop ""' USR1 # the time limit is near
trap 'stop yes' TERM # cancelled, or preempted: Slurm itself queues a preempted job again
"${launch[@]}" bash -c "$with_pid" with_pid "$state/pid" dist-scvi train "$config" "${train_options[@]}" &
step=$!
# A trap ends wait before the command has ended.
while wait "$step"; code=$?; [ "$code" -gt 128 ] && kill -0 "$step" 2> /dev/null; do :; done
trap '' USR1 TERM

exit_unless_unfinished "$code"
if [ "$cancelled" ]; then exit "$again"; fi
# Starting again is useful while it leads to new checkpoints: restarts without one are counted.
saved=$(saved_step)
restarts=${SLURM_RESTART_COUNT:-0}
read -r old_saved old_restarts 2> /dev/null < "$state/progress" || old_saved=
if [ "$saved" != "$old_saved" ]; then
    old_restarts=$restarts
    echo "$saved $restarts" > "$state/progress"
fi
if [ $((restarts - old_restarts)) -ge "$max_restarts" ]; then
    echo "dist-scvi: $max_restarts restarts without a new checkpoint: find the cause, then submit again" >&2
    exit "$again"
fi
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT # the rest of the state is for the next start
scontrol requeue "$SLURM_JOB_ID" || {
    echo "dist-scvi: the job could not be queued again: submit it again to continue" >&2
    exit "$again"
}
