#!/bin/sh
# The first process of the user-mode Linux guest. Its root is the host's, read-only; SHARE is the one directory it may write.
# usage: guest.sh HERE SHARE GUEST_IP SERVER_IP PORT EXPORT
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
HERE=$1 SHARE=$2 GUEST_IP=$3 SERVER_IP=$4 PORT=$5 EXPORT=$6
fail() { echo "UML:FAIL $*"; dmesg | tail -n 30; halt -f; }
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /run
mount -t tmpfs tmp /mnt
mkdir /mnt/fs /mnt/share
mount -t hostfs -o "$SHARE" none /mnt/share || fail "hostfs"
# A kernel that is built for these tests has it inside.
[ -e /sys/block/nbd0 ] || insmod "/usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/nbd.ko" nbds_max=1 || fail "nbd.ko"
ip link set lo up
ip addr add "$GUEST_IP/24" dev vec0 && ip link set vec0 up || fail "network"
python3 "$HERE/nbd_attach.py" "$SERVER_IP" "$PORT" "$EXPORT" 0 120 /mnt/share/status || fail "attach"
mkfs.ext4 -F -q /dev/nbd0 && mount /dev/nbd0 /mnt/fs || fail "ext4"
count=0
while [ ! -e /mnt/share/stop ]; do
    count=$((count + 1))
    head -c 131072 /dev/urandom > "/mnt/fs/f$((count % 100))" && sync "/mnt/fs/f$((count % 100))" || fail "write $count"
    echo "$count" > /mnt/share/count.new && mv /mnt/share/count.new /mnt/share/count
done
sha256sum /mnt/fs/f* > /run/sums || fail "sums"
umount /mnt/fs || fail "umount"
blockdev --flushbufs /dev/nbd0
e2fsck -fn /dev/nbd0 || fail "e2fsck"
mount -o ro /dev/nbd0 /mnt/fs && sha256sum --quiet -c /run/sums || fail "verify"
umount /mnt/fs
echo "UML:DONE $count"
halt -f
