"""Concurrent writers of one SQLite database, and the proof that each of their transactions is there once.

usage: sqlite_writers.py write  DATABASE GUEST  WRITERS ROWS
       sqlite_writers.py verify DATABASE GUESTS WRITERS ROWS
"""
import os
import sqlite3
import sys

PATIENCE_SECONDS = 600

command, path = sys.argv[1:3]
guest_or_guests, writers, rows = map(int, sys.argv[3:6])


def connect():
    return sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)


def write(writer):
    database = connect()
    database.execute("create table if not exists rows (writer text, number integer, data blob, unique (writer, number))")
    database.execute("create table if not exists total (one integer primary key, value integer)")
    database.execute("insert or ignore into total values (1, 0)")
    for number in range(rows):
        database.execute("begin immediate")
        database.execute("insert into rows values (?, ?, ?)", (writer, number, os.urandom(number * 37 % 3000)))
        # Lost if two transactions ever run side by side.
        (value,) = database.execute("select value from total").fetchone()
        database.execute("update total set value = ?", (value + 1,))
        database.execute("commit")
    database.close()


def verify():
    database = connect()
    (answer,) = database.execute("pragma integrity_check").fetchone()
    expected = guest_or_guests * writers * rows
    (count,) = database.execute("select count(*) from rows").fetchone()
    (total,) = database.execute("select value from total").fetchone()
    print(f"integrity {answer}, {count} rows, total {total}, expected {expected}")
    if (answer, count, total) != ("ok", expected, expected):
        sys.exit("FAILED: the database is not what was written")


if command == "verify":
    verify()
    sys.exit(0)
children = []
for number in range(writers):
    child = os.fork()
    if child == 0:
        try:
            write(f"{guest_or_guests}-{number}")
        except BaseException as error:
            print(f"FAILED: writer {number}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
if any(statuses):
    sys.exit(f"FAILED: writers ended with {statuses}")
