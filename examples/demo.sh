#!/usr/bin/env bash
# `make demo`: two real images, a real registry, one task. State lies in build/demo, nothing else of
# this host is changed; what the task made is gone afterwards.
set -eu -o pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
  echo "make demo needs root: namespaces with mapped ids, cgroups and network interfaces" >&2
  exit 1
fi
mkdir -p build/demo
chmod 700 build/demo
port=${FARGATELITE_DEMO_PORT:-5055}
sed "s/127.0.0.1:5055/127.0.0.1:$port/" examples/web-and-probe.json > build/demo/definition.json
examples/registry.sh .venv/bin/python -m fargatelite \
  --data-root build/demo/data --run-root build/demo/run run build/demo/definition.json
