# pjdfstest on the mount; cases that cannot pass through NFS are listed in tests/posix/pjdfstest-nfs-exceptions.txt.
. "$HERE/common.sh"
if working; then
    # Two users with different groups that are not root.
    users=$(awk -F: 'NR == FNR { group[$3] = $1; next } $3 != 0 && ($4 in group) && !($4 in used) {
        used[$4] = 1; printf "%s[\"%s\", \"%s\"]", (n++ ? ", " : ""), $1, group[$4]; if (n == 2) exit }' /etc/group /etc/passwd)
    features="utime_now = {}
utimensat = {}"
    if [ "$VERS" = 4.2 ]; then features="$features
posix_fallocate = {}"; fi
    printf '[features]\n%s\n[settings]\nnaptime = 0.02\nallow_remount = false\n[dummy_auth]\nentries = [%s]\n' \
        "$features" "$users" >"$WORK/pjdfstest.toml"
    chmod 777 "$DIR" /tmp
    pattern=$(sized "$(printf 'rename::\nlink::\nmkdir::')" "")
    NO_COLOR=1 "$TOOLS/pjdfstest" -c "$WORK/pjdfstest.toml" -p "$DIR" -s /tmp $pattern >"$WORK/pjdfstest" 2>&1 || true
    grep -E '^[^[:space:]]+[[:space:]]+(ok|FAILED|skipped)$' "$WORK/pjdfstest" >"$WORK/cases" || true
    test "$(wc -l <"$WORK/cases")" -ge "$(sized 20 300)" || { tail -n 30 "$WORK/pjdfstest"; fail "too few cases"; }
    grep -E 'FAILED$' "$WORK/cases" | awk '{ print $1 }' | sort >"$WORK/failed" || true
    sed -n 's/^FAILED \([^ ]*\): .*/\1/p' "$EXCEPTIONS" | sort >"$WORK/listed"
    awk '{ print $2 }' "$WORK/cases" | sort | uniq -c
    comm -23 "$WORK/failed" "$WORK/listed" >"$WORK/surprises"
    if [ -s "$WORK/surprises" ]; then
        while read -r name; do grep -A 6 "^$name " "$WORK/pjdfstest"; done <"$WORK/surprises"
        fail "pjdfstest: $(tr '\n' ' ' <"$WORK/surprises")"
    fi
fi
