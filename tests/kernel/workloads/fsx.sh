# fsx: random reads, writes, truncations, maps and holes of one file against a model in memory.
. "$HERE/common.sh"
operations=$(sized 2500 100000)
if working; then
    if [ "$VERS" = 4.2 ]; then holes="posix_fallocate = 2
punch_hole = 2"; else holes="posix_fallocate = 0
punch_hole = 0"; fi
    printf 'flen = 262144\n[opsize]\nmax = 65536\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ninvalidate = 1
truncate = 5\nclose_open = 1\nfsync = 0.1\nfdatasync = 0.1\n%s\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 2\n' \
        "$holes" >"$WORK/fsx.toml"
    "$TOOLS/fsx" -q -S "$SEED" -N "$operations" -f "$WORK/fsx.toml" -P /tmp "$DIR/file" >"$WORK/fsx" 2>&1 ||
        { tail -n 60 "$WORK/fsx"; fail "fsx"; }
fi
