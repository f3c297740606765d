# A sparse file of 10 GB: its length, its few bytes, its holes, and a sparse copy of a smaller one.
. "$HERE/common.sh"
gigabytes=10
if working; then
    truncate -s ${gigabytes}G "$DIR/sparse"
    python3 - "$DIR/sparse" $gigabytes <<'P'
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
size = int(sys.argv[2]) << 30
for at in (0, size // 3, size // 2, size - 7):
    os.pwrite(file, b"written", at)
os.fsync(file)
P
    # With 4.1 a client finds no holes and reads all of it.
    truncate -s $(sized 64M 2G) "$DIR/small"
    echo tail >>"$DIR/small"
    cp --sparse=always "$DIR/small" "$DIR/copy"
fi
forget
test "$(stat -c %s "$DIR/sparse")" = $((gigabytes << 30)) || fail "length $(stat -c %s "$DIR/sparse")"
test "$(du -k "$DIR/sparse" | cut -f1)" -lt 1024 || fail "it takes $(du -k "$DIR/sparse")"
test "$(du -k "$DIR/copy" | cut -f1)" -lt 1024 || fail "the copy takes $(du -k "$DIR/copy")"
cmp "$DIR/small" "$DIR/copy"
python3 - "$DIR/sparse" $gigabytes "$VERS" <<'P'
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
size = int(sys.argv[2]) << 30
places = (0, size // 3, size // 2, size - 7)
for at in places:
    if os.pread(file, 7, at) != b"written":
        sys.exit(f"FAILED: at {at}")
if os.pread(file, 100000, size // 4) != bytes(100000):
    sys.exit("FAILED: a hole is not empty")
if sys.argv[3] == "4.2":
    at, found = 0, 0
    while at < size:
        try:
            data = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(file, data, os.SEEK_HOLE)
        found += 1
        if not any(data <= place < at for place in places):
            sys.exit(f"FAILED: {data} to {at} is no hole")
    if found != len(places):
        sys.exit(f"FAILED: {found} stretches of data")
P
