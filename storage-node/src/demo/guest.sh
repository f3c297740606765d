# The first process of the demo's Linux kernel, whose root is the host's, read-only. The lines before this one, which the demo
# writes, set SHARE (a directory of the host that both write to), PROGRAM (where this program is on the host), ADDRESS, MOUNT (the
# user's side of NFS) and LIBRARIES (of it).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
share=/run/share at=/run/files
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
mkdir -p "$share" "$at" /run/program
# Modules of a packaged kernel; the one of `cargo xtask kernel-client --uml` has them inside.
modules="/usr/lib/uml/modules/$(uname -r)"
if [ -d "$modules" ]; then
    mkdir -p /run/modules/lib/modules
    ln -s "$modules" "/run/modules/lib/modules/$(uname -r)"
    modprobe -d /run/modules nfsv4
fi
# Wherever it is, also below what was hidden above.
mount -t hostfs -o "${PROGRAM%/*}" none /run/program
ip link set lo up
ip addr add "$ADDRESS" dev vec0
ip link set vec0 up
if mount -t hostfs -o "$SHARE" none "$share"; then
    tell() { cat >"$share/$1.new" && mv "$share/$1.new" "$share/$1"; }
    uname -r | tell ready
    until [ -e "$share/server" ]; do sleep 0.05; done
    # Without any option: the kernel takes the newest version that both know.
    if said=$(LD_LIBRARY_PATH="$LIBRARIES" "$MOUNT" "$(cat "$share/server")" "$at" 2>&1); then
        grep " $at " /proc/mounts | tell mounted
        "/run/program/${PROGRAM##*/}" demo-guest "$share" "$at"
        cd / && umount "$at"
        echo "status $?" | tell ended
    else
        echo "mount.nfs: $said" | tell failed
    fi
fi
halt -f
