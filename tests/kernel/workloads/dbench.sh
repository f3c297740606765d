# The load of an office file server, by several clients; it fails at the first call with an unexpected outcome.
. "$HERE/common.sh"
if working; then
    cd "$DIR"
    dbench -c /usr/share/dbench/client.txt -D "$DIR" -t "$(sized 12 120)" "$(sized 2 8)" >"$WORK/dbench" 2>&1 ||
        { tail -n 30 "$WORK/dbench"; fail "dbench"; }
    tail -n 3 "$WORK/dbench"
    # The user-mode kernel has no System V semaphores; dbench goes on without its barrier.
    if grep -v 'barrier semaphore' "$WORK/dbench" | grep -Ei 'failed|error|expected'; then fail "dbench"; fi
    grep -q '^Throughput' "$WORK/dbench" || fail "no result"
fi
