# Several writers in every guest insert into one database, which takes the locks of its files through the mount.
. "$HERE/common.sh"
writers=3 rows=$(sized 8 300)
if working; then
    python3 "$HERE/sqlite_writers.py" write "$DIR/database" "$GUEST" "$writers" "$rows"
else
    forget
    python3 "$HERE/sqlite_writers.py" verify "$DIR/database" "$GUESTS" "$writers" "$rows"
fi
