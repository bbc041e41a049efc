# Sourced by run and long: steps that are bounded in time, and a table of their seconds at the end, however it ends.

steps_table=""
steps_now=""
steps_since=$SECONDS
steps_all=$SECONDS

# step NAME SECONDS COMMAND...: runs the command, which is ended after so many seconds. The script ends if it fails.
step() {
    steps_now=$1 steps_since=$SECONDS
    local bound=$2 code=0
    shift 2
    printf '\n== %s: %s\n' "$steps_now" "$*"
    timeout --kill-after=10 "$bound" "$@" </dev/null || code=$?
    local took=$((SECONDS - steps_since)) said=ok
    case $code in
        0) ;;
        124 | 137) said="not done after $bound s" ;;
        *) said="failed with $code" ;;
    esac
    steps_table+=$(printf '%-26s %6d s  %s' "$steps_now" "$took" "$said")$'\n'
    steps_now=""
    printf -- '-- %s s\n' "$took"
    return "$code"
}

steps_print() {
    if [ -n "$steps_now" ]; then
        steps_table+=$(printf '%-26s %6d s  interrupted' "$steps_now" $((SECONDS - steps_since)))$'\n'
    fi
    printf '\n%s%-26s %6d s\n' "$steps_table" "all" $((SECONDS - steps_all))
}

# Prints the table when the script ends.
finish_with_table() {
    trap steps_print EXIT
}
