# fio writes and verifies, through the page cache, past it, and mapped; then what it left is verified from the server.
. "$HERE/common.sh"
mib=$(sized 8 256)
common="--directory=$DIR --verify=crc32c --verify_fatal=1 --size=${mib}m --randseed=$SEED --fallocate=none"
if working; then
    cd /tmp
    fio --output="$WORK/fio" $common --name=cached --rw=randwrite --bs=4k-128k --ioengine=psync --end_fsync=1 --do_verify=1 ||
        { cat "$WORK/fio"; fail "cached"; }
    fio --output="$WORK/fio" $common --name=direct --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --do_verify=1 \
        --io_size=$((mib / 2))m || { cat "$WORK/fio"; fail "direct"; }
    fio --output="$WORK/fio" $common --name=mapped --rw=write --bs=16k --ioengine=mmap --do_verify=1 ||
        { cat "$WORK/fio"; fail "mapped"; }
    fio --output="$WORK/fio" $common --name=mixed --numjobs=2 --rw=randrw --bs=8k --ioengine=psync --fsync=32 --do_verify=1 ||
        { cat "$WORK/fio"; fail "mixed"; }
fi
forget
cd /tmp
for job in "cached --rw=randwrite --bs=4k-128k" "mapped --rw=write --bs=16k"; do
    fio --output="$WORK/fio" $common --name=$job --ioengine=psync --verify_only=1 || { cat "$WORK/fio"; fail "verify $job"; }
done
