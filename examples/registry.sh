#!/usr/bin/env bash
# Runs a command with Debian's docker-registry on a loopback port, filled with the examples' images.
#     examples/registry.sh COMMAND...
# The registry's storage stays in build/registry; the process ends with the command.
set -eu -o pipefail
cd "$(dirname "$0")/.."
port=${FARGATELITE_DEMO_PORT:-5055}
mkdir -p build/registry
cat > build/registry/config.yml <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$PWD/build/registry/data"}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$port"}
END
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "port $port on loopback is taken: stop what listens there, or set FARGATELITE_DEMO_PORT" >&2
  exit 1
fi
docker-registry serve build/registry/config.yml 2> build/registry/log &
registry=$!
trap 'kill $registry 2>/dev/null || true; wait $registry 2>/dev/null || true' EXIT
for _ in $(seq 100); do
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
  kill -0 $registry 2>/dev/null || { echo "docker-registry ended:" >&2; cat build/registry/log >&2; exit 1; }
  sleep 0.05
done
examples/images/build.sh
for name in web probe; do
  skopeo copy --quiet --dest-tls-verify=false "oci:build/images/$name:1" "docker://127.0.0.1:$port/$name:1"
done
"$@"
