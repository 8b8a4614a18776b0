#!/usr/bin/env bash
# Builds an image of Debian trixie (Python 3.13) with focus-validator, as an OCI layout:
#     tests/focus/build.sh build/focus
# The validator needs Python 3.12 or newer, and its own pins hold NumPy back to a release that has no
# build for 3.13: what it runs with is named in requirements.txt, the validator is unpacked beside it.
set -eu -o pipefail
here=$(dirname "$(readlink -f "$0")")
out=$(readlink -m "$1")
pip() { "$here/../../.venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
stamp=$(cat "$here/build.sh" "$here/requirements.txt" | sha256sum)
if [ "$(cat "$out/done" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf "$out"
mkdir -p "$out/root/site" "$out/sdist"
mmdebstrap --quiet --variant=minbase --include=python3 \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  trixie "$out/root.tar" &
debian=$!
for name in focus-validator==2.2.1 pandasql==0.7.3; do
  pip download --no-deps --python-version 3.13 -d "$out/sdist" "$name"
done
pip install --target "$out/root/site" --no-deps --only-binary=:all: --python-version 3.13 \
  --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -r "$here/requirements.txt"
for archive in "$out"/sdist/*.tar.gz; do tar -xzf "$archive" -C "$out/sdist"; done
cp -r "$out"/sdist/focus_validator-*/focus_validator "$out"/sdist/pandasql-*/pandasql "$out/root/site/"
tar -C "$out/root" --owner=0 --group=0 --numeric-owner -cf "$out/site.tar" site
rm -rf "$out/root" "$out/sdist"
umoci init --layout "$out/image"
umoci new --image "$out/image:1"
wait "$debian"
for layer in root site; do
  umoci raw add-layer --image "$out/image:1" "$out/$layer.tar"
  rm "$out/$layer.tar"
done
umoci config --image "$out/image:1" --os linux --architecture amd64 --config.workingdir /site
echo "$stamp" > "$out/done"
