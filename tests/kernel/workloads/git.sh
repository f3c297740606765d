# Clones a repository onto the mount, checks it, commits, packs, clones it there once more, and checks again.
. "$HERE/common.sh"
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
commits=$(sized 5 60)
if working; then
    source=$WORK/source
    rm -rf "$source"
    git init -q -b main "$source"
    cp -r /usr/include/linux/$(sized netfilter .) "$source/tree"
    git -C "$source" add -A
    git -C "$source" commit -q -m first
    git clone -q "$source" "$DIR/one"
    rm -rf "$source"
    cd "$DIR/one"
    number=0
    while [ $number -lt "$commits" ]; do
        mkdir -p "made/$((number % 7))"
        echo "$SEED $number" >"made/$((number % 7))/$number"
        git add -A
        git commit -q -m "commit $number"
        number=$((number + 1))
    done
    git checkout -q -b other HEAD~2
    git mv tree moved
    git commit -q -m moved
    git merge -q -m merged main
    git gc -q --prune=now
    cd /
    git clone -q --no-local "$DIR/one" "$DIR/two"
fi
forget
for clone in one two; do
    cd "$DIR/$clone"
    git fsck --full --strict --no-progress 2>&1 | tee "$WORK/fsck"
    if grep -Eq 'error|missing|corrupt|broken' "$WORK/fsck"; then fail "git fsck"; fi
    test -z "$(git status --porcelain)" || fail "$(git status --porcelain | head)"
    test "$(find made -type f | wc -l)" = "$commits"
    cd /
done
test "$(git -C "$DIR/one" rev-parse other)" = "$(git -C "$DIR/two" rev-parse HEAD)"
