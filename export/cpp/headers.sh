#!/usr/bin/env bash
# Fetches ONNX Runtime's headers into .cache/onnxruntime, for trueodds_onnx. The wheel has none, and Debian's own package
# (libonnxruntime-dev) came with version 13; on npm they lie, unchanged, in a package for Unity. Needs npm, and 150 MB to pass.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=.cache/onnxruntime
package=com.github.asus4.onnxruntime@0.4.9
sha512=064cf176e499f4891e0cfe90f25cf64c553689eee1492bd2ed921fccca28131a2ad02373267bae19a509ec8b288c182a3b8a2e0f58d76a1f0e63225b08ddbd16

[ ! -e "$folder/onnxruntime_cxx_api.h" ] || exit 0
mkdir -p .cache
made=$(mktemp -d .cache/headers-XXXXXX)
trap 'rm -rf "$made"' EXIT
archive=$(npm pack --silent --pack-destination "$made" "$package")
echo "$sha512  $made/$archive" | sha512sum --check --quiet
mkdir "$made/headers"
tar -xzf "$made/$archive" -C "$made/headers" --strip-components=7 --wildcards '*/ios-arm64/*/Headers/*.h'
rm -rf "$folder"
mv "$made/headers" "$folder"
echo "headers.sh: ONNX Runtime's headers are in $folder"
