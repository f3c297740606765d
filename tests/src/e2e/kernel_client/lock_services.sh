# The client's port mapper and status monitor, without which a kernel takes no locks through NFSv3.
{ cat /etc/passwd; echo '_rpc:x:0:0::/:/bin/false'; } >/run/passwd
mount --bind /run/passwd /etc/passwd
mkdir -p /run/rpcbind /var/lib/nfs/sm /var/lib/nfs/sm.bak
rpcbind
rpc.statd --no-notify
