#!/usr/bin/env bash
# Builds the examples' images from Debian packages, as an OCI layout each: build/images/{web,probe}.
# No maintainer script runs (mmdebstrap's extract variant): what they would have made that the
# programs need is made in the hook. An image is built again when this folder is newer.
set -eu -o pipefail
cd "$(dirname "$0")/../.."
here=examples/images
out=build/images
mkdir -p "$out"
sources=/etc/apt/sources.list.d/debian.sources  # this machine's own, in either of the two forms
[ -e "$sources" ] || sources=/etc/apt/sources.list

fresh() { [ -e "$out/$1.done" ] && [ -z "$(find "$here" -newer "$out/$1.done" -print -quit)" ]; }

# build NAME PACKAGES HOOK CONFIG...
build() {
  local name=$1 packages=$2 hook=$3
  shift 3
  if fresh "$name"; then return; fi
  echo "building image $name from Debian packages: $packages"
  rm -rf "${out:?}/$name" "$out/$name.tar"
  mmdebstrap --quiet --mode=root --variant=extract --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --extract-hook='cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"' \
    --extract-hook='cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"' \
    --extract-hook='mkdir -p "$1/app"; cp examples/images/probe/probe.py "$1/app/"' \
    --extract-hook="$hook" \
    bookworm "$out/$name.tar" "$sources"
  umoci init --layout "$out/$name"
  umoci new --image "$out/$name:1"
  umoci raw add-layer --image "$out/$name:1" "$out/$name.tar"
  umoci config --image "$out/$name:1" --os linux --architecture amd64 "$@"
  rm "$out/$name.tar"
  touch "$out/$name.done"
}

build web base-files,base-passwd,dash,busybox-static,nginx \
  'mkdir -p "$1/var/www/html" "$1/var/log/nginx" "$1/var/lib/nginx" "$1/run";
   echo "server { listen 80; root /var/www/html; }" > "$1/etc/nginx/conf.d/hello.conf";
   echo "<h1>hello from fargatelite</h1>" > "$1/var/www/html/index.html";
   ln -sf /dev/stdout "$1/var/log/nginx/access.log"; ln -sf /dev/stderr "$1/var/log/nginx/error.log"' \
  --config.entrypoint nginx --config.cmd=-g --config.cmd='daemon off;' --config.stopsignal SIGQUIT

build probe base-files,base-passwd,dash,busybox-static,python3-minimal,libpython3-stdlib \
  'true' --config.entrypoint python3 --config.env PYTHONUNBUFFERED=1
