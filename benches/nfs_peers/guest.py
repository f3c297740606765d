# What the kernel client does to many files, one after the other, and how long that takes:
#   create DIRECTORY COUNT plain|fsync      read TREE COUNT      walk TREE COUNT
# It fails unless everything is as it must be, and prints {"rate": ...}, files a second.
import json
import os
import sys
import time

FILE_BYTES = 1000


def create(directory, count, how):
    os.mkdir(directory)
    start = time.monotonic()
    for number in range(count):
        file = os.open(f"{directory}/f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        if how == "fsync":
            os.write(file, b"x" * FILE_BYTES)
            os.fsync(file)
        os.close(file)
    took = time.monotonic() - start
    assert len(os.listdir(directory)) == count
    return took


def names(tree, count):
    return [f"{tree}/d{number // 100}/f{number}" for number in range(count)]


def read(tree, count):
    start = time.monotonic()
    for name in names(tree, count):
        file = os.open(name, os.O_RDONLY)
        data = os.read(file, 4096)
        os.close(file)
        assert len(data) == FILE_BYTES and any(data), name
    return time.monotonic() - start


def walk(tree, count):
    start = time.monotonic()
    found = 0
    for directory, _, files in os.walk(tree):
        for name in files:
            assert os.lstat(f"{directory}/{name}").st_size == FILE_BYTES, name
            found += 1
    took = time.monotonic() - start
    assert found == count, found
    return took


what, place, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
took = {"create": create, "read": read, "walk": walk}[what](place, count, *sys.argv[4:])
print(json.dumps({"rate": count / took}))
