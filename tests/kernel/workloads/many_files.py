"""Files by the thousand, each with its number as its content's length, spread over directories; or the check of them.

usage: many_files.py make|check DIRECTORY FILES DIRECTORIES
"""
import os
import sys

command, root = sys.argv[1:3]
files, directories = map(int, sys.argv[3:5])


def place(directory):
    return root if directories == 1 else os.path.join(root, f"d{directory}")


if command == "make":
    os.mkdir(root)
    for directory in range(directories if directories > 1 else 0):
        os.mkdir(place(directory))
    for number in range(files):
        handle = os.open(f"{place(number % directories)}/f{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        if number % 10 == 0:
            os.write(handle, b"x" * (number // 10 % 100))
        os.close(handle)
    sys.exit(0)
found = 0
for directory in range(directories):
    for entry in os.scandir(place(directory)):
        number = int(entry.name[1:])
        expected = number // 10 % 100 if number % 10 == 0 else 0
        size = entry.stat(follow_symlinks=False).st_size
        if number % directories != directory or size != expected:
            sys.exit(f"FAILED: {entry.path} has {size} bytes, not {expected}")
        found += 1
if found != files:
    sys.exit(f"FAILED: {found} files of {files}")
