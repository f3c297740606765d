#!/bin/sh
# The first process of user-mode Linux: its root is the host's, read-only. It makes the places that a script may write to,
# and shows the shared directory at the place where the emulated client has it.
# usage: init SHARE_ON_THE_HOST SHARE_IN_THE_GUEST
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
for place in /run /tmp /mnt /var/lib; do mount -t tmpfs tmpfs "$place"; done
# Modules of the packaged kernel; one that is built for these tests has them inside.
modules="/usr/lib/uml/modules/$(uname -r)"
if [ -d "$modules" ]; then
    mkdir -p /run/modules/lib/modules
    ln -s "$modules" "/run/modules/lib/modules/$(uname -r)"
    for module in nfsv3 nfsv4 nbd; do modprobe -d /run/modules "$module"; done
fi
mkdir -p "$2"
mount -t hostfs -o "$1" none "$2" && exec sh "$2/agent"
echo "no shared directory"
halt -f
