# Starts nfs-ganesha with the port mapper and the status monitor that it asks, in a mount namespace of its own, as if the packages that
# are unpacked in PACKAGES were installed.
# usage: sh start.sh PACKAGES CONFIGURATION
packages=$1 configuration=$2
fail() { echo "cannot start: $*"; exit 1; }
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib || fail "tmpfs"
mkdir -p /var/lib/nfs/ganesha /var/lib/nfs/sm /var/lib/nfs/sm.bak /run/rpcbind /run/etc
# The user that the port mapper becomes.
{ cat /etc/passwd; echo '_rpc:x:0:0::/:/bin/false'; } >/run/etc/passwd
cp "$packages/usr/share/nfs-common/conffiles/idmapd.conf" /run/etc
mount -t overlay overlay -o "lowerdir=/run/etc:/etc" /etc || fail "/etc"
mount -t overlay overlay -o "lowerdir=$packages/usr:/usr" /usr || fail "/usr"
"$packages/sbin/rpcbind" -f &
until [ -S /run/rpcbind.sock ]; do
    kill -0 $! || fail "rpcbind"
    sleep 0.1
done
# Without a status monitor it grants no lock of NFSv3.
"$packages/sbin/rpc.statd" --no-notify || fail "rpc.statd"
LD_LIBRARY_PATH=/usr/lib/ganesha exec ganesha.nfsd -F -L STDOUT -p /run/ganesha.pid -f "$configuration"
