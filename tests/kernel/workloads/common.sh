# What every workload begins with. The harness sets: DIR, a directory on the mount that is the workload's own; SCALE (short or
# full); SEED; VERS; GUEST and GUESTS (which of how many guests this is); TOOLS (programs of crates); HERE (these scripts); and
# PHASE: `work` does the work, `verify` looks at what it left, after a new mount and maybe on another guest.
set -eu
export LC_ALL=C
WORK=/tmp/work
mkdir -p "$WORK"

# The first number in the short form, the second in the whole.
sized() { if [ "$SCALE" = full ]; then echo "$2"; else echo "$1"; fi; }

# Ends as a failure with a reason.
fail() { echo "FAILED: $*"; exit 1; }

# From here on what is read comes from the server.
forget() { sync; echo 3 >/proc/sys/vm/drop_caches; }

working() { [ "$PHASE" = work ]; }
