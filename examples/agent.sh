#!/bin/sh
# Writes texts in capital letters, one a step: a harness in POSIX sh and jq, and a template for your own.
#
# Agent (agents.toml):
#
#     [agents.shell]
#     harness = "command"
#     command = ["examples/agent.sh"]          # found from the worker's current folder
#
# Job input:
#
#     {"texts": ["one", "two"]}                one step for each text
#     "delay_s": 1                             optional: wait before each step, to try out a stop
#
# The worker writes one line of JSON to stdin (the order) and reads lines of JSON from stdout. Each checkpoint holds
# all that its step has changed, and the next attempt begins where the last checkpoint ended. So SIGTERM and SIGKILL may end
# this program at any moment: at most the step under way is done again.
# Print nothing else to stdout; stderr goes to the worker's log. The whole contract is in worker/command/src/lib.rs.
set -eu

order=$(cat)

# ask [OPTIONS] FILTER: what jq finds in the order.
ask() {
    printf '%s\n' "$order" | jq "$@"
}

if ! ask --exit-status '.job.input | (.texts | type == "array" and all(type == "string")) and (.delay_s // 0 | type == "number")' >/dev/null; then
    echo '{"type": "error", "message": "input: expected {\"texts\": [text, …]}, and delay_s a number if it is there"}'
    exit 0
fi
total=$(ask '.job.input.texts | length')
delay_s=$(ask '.job.input.delay_s // 0')
# What this job has done already, in whichever attempt and on whichever machine.
texts=$(ask --compact-output '.session.feature_progress[env.HARNESS_JOB_ID].texts // []')
step=$(printf '%s\n' "$texts" | jq length)

while [ "$step" -lt "$total" ]; do
    sleep "$delay_s"
    text=$(ask --raw-output ".job.input.texts[$step]" | tr '[:lower:]' '[:upper:]')
    # shellcheck disable=SC2016 # the variable is jq's
    texts=$(printf '%s\n' "$texts" | jq --compact-output --arg text "$text" '. + [$text]')
    printf '%s\n' "$texts" | jq --compact-output '{
        type: "checkpoint",
        feature_progress: {(env.HARNESS_JOB_ID): {texts: .}},
        context_window: [{role: "assistant", content: last}]
    }'
    step=$((step + 1))
done
printf '%s\n' "$texts" | jq --compact-output '{type: "result", output: {texts: .}}'
