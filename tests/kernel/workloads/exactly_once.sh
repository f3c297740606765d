# Changes of names that would each fail, or leave another tree, if one were done twice or not at all.
. "$HERE/common.sh"
python3 "$HERE/exactly_once.py" "$PHASE" "$DIR" "$SEED" 4 "${OPERATIONS:-$(sized 4000 100000)}"
