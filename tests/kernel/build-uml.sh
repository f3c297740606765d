#!/bin/sh
# Builds user-mode Linux from Debian's kernel source, as a client for the end-to-end tests: OUT/linux.uml.
# usage: build-uml.sh PACKAGES OUT
# PACKAGES is where linux-source-6.12, flex, bison (with m4) are unpacked: `cargo xtask kernel-client --uml` does that and calls
# this. gcc, make, bc, perl and xz must be installed. It takes six minutes of one processor, and 2 GB in OUT/build.
set -eu
packages=$(realpath "$1") out=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
jobs=2
# flex and bison run from where they are unpacked, or as installed.
PATH=$packages/usr/bin:$PATH
LD_LIBRARY_PATH=$packages/usr/lib/x86_64-linux-gnu:$packages/lib/x86_64-linux-gnu
export PATH LD_LIBRARY_PATH
if [ -d "$packages/usr/share/bison" ]; then export BISON_PKGDATADIR="$packages/usr/share/bison"; fi
if [ -x "$packages/usr/bin/m4" ]; then export M4="$packages/usr/bin/m4"; fi

build=$out/build
rm -rf "$build"
mkdir -p "$build"
tar -xJf "$packages/usr/src/linux-source-6.12.tar.xz" -C "$build" --strip-components=1
cd "$build"

# A process's floating-point state is kept in an array of a fixed size: 2,696 bytes, which AVX-512 fills. AMX needs 11,008 (CPUID
# leaf 0xd); with less, no program can be started. Linux 6.13 asks the host for the size instead. There are copies of the array on
# each kernel stack, which is why the configuration makes those larger (KERNEL_STACK_ORDER).
sed -i 's/DEFINE_LONGS(HOST_FP_SIZE, 2696)/DEFINE_LONGS(HOST_FP_SIZE, 12288)/' arch/x86/um/user-offsets.c
grep -q 'HOST_FP_SIZE, 12288' arch/x86/um/user-offsets.c || { echo "this source keeps the registers elsewhere"; exit 1; }

make -s ARCH=um defconfig
scripts/kconfig/merge_config.sh -m .config "$here/uml.config" >/dev/null
make -s ARCH=um olddefconfig
for line in $(grep -o '^CONFIG_[A-Z0-9_]*=y' "$here/uml.config"); do
    grep -q "^$line\$" .config || { echo "this source has no $line"; exit 1; }
done
make ARCH=um -j"$jobs" linux >"$out/build-uml.log" 2>&1 || { tail -n 30 "$out/build-uml.log"; exit 1; }
strip -o "$out/linux.uml.new" linux
mv "$out/linux.uml.new" "$out/linux.uml"
cd "$out"
rm -rf "$build"
