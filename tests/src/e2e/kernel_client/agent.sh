# What a kernel client does once it is up; the lines before this one, which the test writes, set SHARE, DEVICE, ADDRESS,
# NAME, PACKAGES and POLL. It runs the scripts that appear in SHARE in order, one at a time, each with `sh -e`.
export SHARE
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PACKAGES/usr/sbin:$PACKAGES/usr/bin:$PACKAGES/sbin
export LD_LIBRARY_PATH=$PACKAGES/usr/lib/x86_64-linux-gnu:$PACKAGES/lib/x86_64-linux-gnu
hostname "$NAME"
ip link set lo up
ip addr add "$ADDRESS" dev "$DEVICE"
ip link set "$DEVICE" up
cd /
: >"$SHARE/ready"
number=1
while :; do
    until [ -e "$SHARE/$number.sh" ]; do sleep "$POLL"; done
    # A process of its own, whatever the script does to its shell.
    sh -e "$SHARE/$number.sh" >"$SHARE/$number.out" 2>&1 </dev/null
    echo $? >"$SHARE/$number.new"
    mv "$SHARE/$number.new" "$SHARE/$number.code"
    number=$((number + 1))
done
