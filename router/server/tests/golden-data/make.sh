#!/usr/bin/env bash
# Makes the data directory of a version, to be opened by all later ones (../it/golden_data.rs). Run once, at a release:
#
#     cargo build --release && router/server/tests/golden-data/make.sh target/release/whimbrel
#
# writes VERSION.tar.gz beside this script. README.md here tells what is in it; the keys in it are of no other use.
set -euo pipefail
whimbrel=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
version=$("$whimbrel" --version | cut -d' ' -f2)
archive=$here/$version.tar.gz
if [ -e "$archive" ]; then
    echo "make.sh: $archive is there already; what a released version wrote is never made anew" >&2
    exit 1
fi
for variable in $(compgen -e WHIMBREL_); do unset "$variable"; done
work=$(mktemp -d)
pid=""
finish() {
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
export WHIMBREL_DATA=$work/data
mkfifo "$work/ready"

# The smallest segments, so that the log has several.
WHIMBREL_SEGMENT_SIZE=260KiB "$whimbrel" serve --dev --shards 2 --cpus none --listen 127.0.0.1:0 \
    >"$work/ready" 2>"$work/log" &
pid=$!
exec 3<"$work/ready"
read -r -t 20 word WHIMBREL_SERVER _ <&3 && [ "$word" = ready ] || { cat "$work/log" >&2; exit 1; }
export WHIMBREL_SERVER

say() { "$whimbrel" send "$@" >/dev/null; }
for device in "bob" "bob --device 2" "carol" "dave"; do
    # shellcheck disable=SC2086
    "$whimbrel" recv --as $device --count 0 >/dev/null
done
for n in $(seq 9); do say --as alice --to bob "alice to bob $n"; done
"$whimbrel" send --as alice --to bob "alice to bob 10" --json >"$work/tenth"
"$whimbrel" recv --as bob --count 4 >/dev/null
for n in $(seq 3); do say --as bob --to alice "bob to alice $n"; done
group=$("$whimbrel" group create --as alice --title Waders bob carol dave)
say --as alice --chat "$group" "group 1"
say --as carol --chat "$group" "group 2"
for n in $(seq 8); do
    printf "large $n %049992d" 0 | "$whimbrel" send --as alice --to dave - >/dev/null
done
# What bob acknowledged is committed by now.
sleep 2
kill -KILL "$pid"
wait "$pid" 2>/dev/null || true
pid=""

# As if the answer to alice's tenth message to bob had not come: her next command sends it again.
python3 - "$WHIMBREL_DATA/clients/alice.1.json" "$work/tenth" <<'END'
import json, sys

path, tenth = sys.argv[1], json.load(open(sys.argv[2]))
state = json.load(open(path))
number = tenth["client_seq"]
state["outgoing"] = [
    {"client_seq": number, "prev": number - 1, "chat": tenth["chat"], "to": {"user": "bob"}, "text": "alice to bob 10"}
]
json.dump(state, open(path, "w"), indent=2)
END
rm -f "$WHIMBREL_DATA/lock" "$WHIMBREL_DATA"/clients/*.lock
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work" -cf - data | gzip -9n >"$archive"
ls -l "$archive"
