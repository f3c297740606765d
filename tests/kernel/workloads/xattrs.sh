# Extended attributes of files and directories.
. "$HERE/common.sh"
python3 "$HERE/xattrs.py" "$PHASE" "$DIR" "$(sized 20 1000)"
