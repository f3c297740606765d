# Makes many files, lists them with attributes, and removes the tree.
. "$HERE/common.sh"
listed=$(sized 400 50000) removed=$(sized 500 100000)
if working; then
    python3 "$HERE/many_files.py" make "$DIR/listed" "$listed" 1
    python3 "$HERE/many_files.py" make "$DIR/tree" "$removed" 100
    forget
    python3 "$HERE/many_files.py" check "$DIR/tree" "$removed" 100
    started=$(date +%s%N)
    rm -r "$DIR/tree"
    echo "rm -r of $removed files: $((($(date +%s%N) - started) / 1000000)) ms"
    test ! -e "$DIR/tree"
fi
forget
test "$(ls "$DIR")" = listed
started=$(date +%s%N)
ls -l "$DIR/listed" >"$WORK/listed"
echo "ls -l of $listed files: $((($(date +%s%N) - started) / 1000000)) ms"
test "$(wc -l <"$WORK/listed")" = $((listed + 1)) || fail "$(wc -l <"$WORK/listed") lines"
python3 "$HERE/many_files.py" check "$DIR/listed" "$listed" 1
