# Copies a tree of C headers and a program of many files, compares, compiles it with make, and runs it.
. "$HERE/common.sh"
modules=$(sized 24 400)
tree=/usr/include/$(sized linux/netfilter .)
python3 "$HERE/c_project.py" "$WORK/project" "$modules" >"$WORK/expected"
if working; then
    cp -a "$tree" "$DIR/tree"
    cp -a "$WORK/project" "$DIR/project"
    make -s -j2 -C "$DIR/project"
fi
forget
diff -r "$tree" "$DIR/tree"
for file in "$WORK"/project/*; do cmp "$file" "$DIR/project/${file##*/}"; done
"$DIR/project/program" >"$WORK/printed"
cmp "$WORK/expected" "$WORK/printed"
test "$(ls "$DIR/project" | grep -c '\.o$')" = $((modules + 1))
rm -rf "$WORK/project"
