# Holes punched into files, and space allocated ahead.
. "$HERE/common.sh"
if working; then
    head -c 4194304 /dev/urandom >"$WORK/data"
    cp "$WORK/data" "$DIR/data"
    sync "$DIR/data"
    before=$(du -k "$DIR/data" | cut -f1)
    fallocate -p -o 1000000 -l 2000000 "$DIR/data"
    head -c 1000000 "$WORK/data" >"$WORK/expected"
    head -c 2000000 /dev/zero >>"$WORK/expected"
    tail -c +3000001 "$WORK/data" >>"$WORK/expected"
    cmp "$WORK/expected" "$DIR/data"
    forget
    cmp "$WORK/expected" "$DIR/data"
    after=$(du -k "$DIR/data" | cut -f1)
    test $((before - after)) -ge 1900 || fail "$before KiB before, $after after"
    fallocate -l 8M "$DIR/allocated"
    test "$(stat -c %s "$DIR/allocated")" = 8388608
    test "$(du -k "$DIR/allocated" | cut -f1)" -ge 8192 || fail "nothing is allocated"
    cmp -n 8388608 /dev/zero "$DIR/allocated"
    echo "$(sha256sum <"$WORK/expected")" >"$DIR/sum"
fi
forget
test "$(sha256sum <"$DIR/data")" = "$(cat "$DIR/sum")" || fail "the content has changed"
cmp -n 8388608 /dev/zero "$DIR/allocated"
