# shellcheck shell=bash disable=SC2154 # assigned before this text when it is rendered
# Exit unless starting again would continue the run. The exit code of the training command is not enough: launchers
# replace the codes of what they start. The final manifest of the run decides.
exit_unless_unfinished() { # CODE
    "${status[@]}" --exit-code
    local run_state=$?
    if [ "$run_state" -eq 0 ]; then exit 0; fi
    if [ "$1" -eq "$mistake" ]; then exit "$mistake"; fi # the input has to be changed: starting again does not help
    if [ "$run_state" -ne "$again" ]; then exit "$run_state"; fi
}

# Print the step of the newest checkpoint, or "none".
saved_step() {
    local step
    step=$("${status[@]}" --json | sed -n 's/.*"saved_step": *\([0-9]*\).*/\1/p')
    echo "${step:-none}"
}
