# Processes of every guest count in the same files, under flock and under fcntl: a lock that two hold loses a count.
. "$HERE/common.sh"
processes=2 times=$(sized 40 1000)
if working; then
    python3 "$HERE/locks.py" count "$DIR" "$processes" "$times"
else
    forget
    python3 "$HERE/locks.py" verify "$DIR" $((GUESTS * processes)) "$times"
fi
