"""Extended attributes: set, replaced, listed, refused and removed.

usage: xattrs.py work|verify DIRECTORY FILES
"""
import errno
import os
import sys

phase, root, files = sys.argv[1], sys.argv[2], int(sys.argv[3])


def refused(number, call):
    try:
        call()
    except OSError as error:
        if error.errno == number:
            return
        raise
    sys.exit(f"FAILED: not refused with {errno.errorcode[number]}")


def value(number):
    return bytes((number * 7 + at) % 256 for at in range(number * 101 % 1800))


for number in range(files):
    path = os.path.join(root, str(number))
    if phase == "work":
        if number % 5:
            open(path, "x").close()
        else:
            os.mkdir(path)
        os.setxattr(path, "user.first", value(number), os.XATTR_CREATE)
        refused(errno.EEXIST, lambda: os.setxattr(path, "user.first", b"", os.XATTR_CREATE))
        refused(errno.ENODATA, lambda: os.setxattr(path, "user.none", b"", os.XATTR_REPLACE))
        refused(errno.ENODATA, lambda: os.getxattr(path, "user.none"))
        os.setxattr(path, "user.second", b"old")
        os.setxattr(path, "user.second", b"new", os.XATTR_REPLACE)
        os.setxattr(path, "user.third", b"")
        os.removexattr(path, "user.third")
        refused(errno.ENODATA, lambda: os.removexattr(path, "user.third"))
    if os.getxattr(path, "user.first") != value(number) or os.getxattr(path, "user.second") != b"new":
        sys.exit(f"FAILED: {path} has other values")
    names = [name for name in os.listxattr(path) if name.startswith("user.")]
    if sorted(names) != ["user.first", "user.second"]:
        sys.exit(f"FAILED: {path} has {names}")
