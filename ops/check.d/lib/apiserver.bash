# shellcheck shell=bash
# A Kubernetes API server of one's own, from the folder KUBEBUILDER_ASSETS: sourced by the checks that want one, in the repository's root.
#
# Afterwards `work` is a folder, `kube` is kubectl with all rights, "$work/kinds" has what this `version` knows, and `processes` are ended
# with the check. Nothing else of the machine is used.

# shellcheck source=ops/dev/lib/process.bash
source ops/dev/lib/process.bash
complain() {
    printf '%s\n' "$*"
}

work=$(mktemp -d)
processes=()
stop() {
    local code=$?
    trap '' INT TERM HUP
    # The API server before its etcd: it waits long for one that has gone.
    for ((at = ${#processes[@]} - 1; at >= 0; at--)); do kill -KILL "${processes[at]}" 2>/dev/null || true; done
    rm -rf "$work"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

etcd=$(pick_port) peers=$(pick_port) api=$(pick_port)
printf 'token,admin,admin,system:masters\n' >"$work/tokens"
openssl genrsa -out "$work/accounts.key" 2048 2>"$work/openssl.log"
"$KUBEBUILDER_ASSETS/etcd" --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$etcd" --advertise-client-urls "http://127.0.0.1:$etcd" \
    --listen-peer-urls "http://127.0.0.1:$peers" --unsafe-no-fsync >"$work/etcd.log" 2>&1 &
processes+=($!)
"$KUBEBUILDER_ASSETS/kube-apiserver" --etcd-servers "http://127.0.0.1:$etcd" --bind-address 127.0.0.1 --secure-port "$api" --cert-dir "$work" \
    --token-auth-file "$work/tokens" --authorization-mode RBAC --service-cluster-ip-range 10.0.0.0/24 --disable-admission-plugins ServiceAccount \
    --service-account-key-file "$work/accounts.key" --service-account-signing-key-file "$work/accounts.key" --service-account-issuer https://local \
    >"$work/api.log" 2>&1 &
processes+=($!)
cat >"$work/kubeconfig" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "https://127.0.0.1:$api", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: token}}]
contexts: [{name: local, context: {cluster: local, user: admin}}]
current-context: local
KUBECONFIG

kube() {
    command kubectl --kubeconfig "$work/kubeconfig" --request-timeout 20s "$@"
}
api_is_ready() {
    [[ $(kube get --raw /readyz 2>/dev/null) == ok ]]
}
wait_until 120 api_is_ready || { complain "the API server is not ready within 120 s: $(tail -n 3 "$work/api.log")" && exit 1; }
# APIVERSION KIND
kube api-resources --no-headers | awk '{ print $(NF - 2), $NF }' >"$work/kinds"
# shellcheck disable=SC2034 # for those who source this
version=$(kube version -o json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["serverVersion"]["gitVersion"])')
