"""Counters in shared files under locks, which must lose no count.

usage: locks.py count  DIRECTORY PROCESSES TIMES
       locks.py verify DIRECTORY PROCESSES_OF_ALL_GUESTS TIMES
"""
import fcntl
import os
import random
import sys
import time

KINDS = ("flock", "fcntl", "range")
# Of the range that is locked in the third file.
RANGE = (100, 50)

command, root = sys.argv[1:3]
processes, times = map(int, sys.argv[3:5])


def try_lock(kind, file):
    try:
        if kind == "flock":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif kind == "fcntl":
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, RANGE[1], RANGE[0])
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock(kind, file):
    if kind == "flock":
        fcntl.flock(file, fcntl.LOCK_UN)
    elif kind == "fcntl":
        fcntl.lockf(file, fcntl.LOCK_UN)
    else:
        fcntl.lockf(file, fcntl.LOCK_UN, RANGE[1], RANGE[0])


def count(number):
    files = {kind: os.open(os.path.join(root, kind), os.O_RDWR | os.O_CREAT, 0o666) for kind in KINDS}
    for turn in range(times):
        kind = KINDS[(turn + number) % len(KINDS)]
        file = files[kind]
        while not try_lock(kind, file):
            # A kernel that waits asks again only after a second or more.
            time.sleep(random.uniform(0.001, 0.02))
        value = int(os.pread(file, 20, 0) or b"0")
        os.pwrite(file, b"%020d" % (value + 1), 0)
        os.fsync(file)
        unlock(kind, file)
    for file in files.values():
        os.close(file)


def verify():
    values = {kind: int(open(os.path.join(root, kind), "rb").read()) for kind in KINDS}
    print(f"counts {values}, expected {processes * times} in all")
    if sum(values.values()) != processes * times:
        sys.exit("FAILED: a count is lost")


if command == "verify":
    verify()
    sys.exit(0)
children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        try:
            count(number)
        except BaseException as error:
            print(f"FAILED: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
if any([os.waitpid(child, 0)[1] for child in children]):
    sys.exit("FAILED: a process that counts")
