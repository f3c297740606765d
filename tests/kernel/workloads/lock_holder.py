"""Holds locks until it is told to let go, and uses them: after a lost lock a kernel refuses to write.

usage: lock_holder.py DIRECTORY SHARED_DIRECTORY
It locks `flock`, and bytes 100 to 149 of `fcntl`. In the shared directory it makes `held` once both are held, ends when
`release` is there, and leaves `holder` with `fine` or an error in it.
"""
import fcntl
import os
import sys
import time

root, shared = sys.argv[1:3]


def tell(name, text):
    with open(os.path.join(shared, name + ".new"), "w") as file:
        file.write(text)
    os.rename(os.path.join(shared, name + ".new"), os.path.join(shared, name))


def hold():
    files = [os.open(os.path.join(root, name), os.O_RDWR | os.O_CREAT, 0o666) for name in ("flock", "fcntl")]
    fcntl.flock(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(files[1], fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 100)
    tell("held", "")
    turns = 0
    while not os.path.exists(os.path.join(shared, "release")):
        for file in files:
            os.pwrite(file, b"%020d" % turns, 100)
            os.fsync(file)
        turns += 1
        time.sleep(0.2)
    for file in files:
        if int(os.pread(file, 20, 100)) != turns - 1:
            raise RuntimeError("somebody else has written under the lock")
        os.close(file)
    return turns


try:
    tell("holder", f"fine after {hold()} turns")
except BaseException as error:
    tell("holder", f"FAILED: {error!r}")
