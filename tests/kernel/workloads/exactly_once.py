"""Names made, renamed, linked and removed at random by several processes, each of which knows what must be there: an unexpected
EEXIST or ENOENT, or a tree that differs at the end, says that a change was made twice, or was not made.

usage: exactly_once.py work|verify DIRECTORY SEED PROCESSES OPERATIONS
"""
import os
import random
import sys

phase, root = sys.argv[1:3]
seed, processes, operations = map(int, sys.argv[3:6])
NAMES = 60


class Worker:
    """One process in a directory of its own. It draws the same operations whenever it is made with the same seed."""

    def __init__(self, number, dry):
        self.at = os.path.join(root, f"w{number}")
        self.random = random.Random(seed * 1000 + number)
        self.dry = dry
        # Names, with what they are: ("d",) or ("f", identity of the file).
        self.names = {}
        self.next = 0
        self.counts = {}
        if not dry:
            os.mkdir(self.at)

    def call(self, what, function, *names):
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.dry:
            return
        try:
            function(*[os.path.join(self.at, name) for name in names])
        except OSError as error:
            raise RuntimeError(f"{what} {names}: {error}") from error

    def fresh(self):
        self.next += 1
        return f"n{self.next % 997}-{self.next}" if self.random.random() < 0.3 else self.reused()

    def reused(self):
        # A name that was used and is free again, so that a late second execution meets something.
        for _ in range(100):
            name = f"r{self.random.randrange(NAMES * 2)}"
            if name not in self.names:
                return name
        return f"n{self.next}"

    def pick(self, kind):
        names = sorted(name for name, what in self.names.items() if what[0] == kind)
        return self.random.choice(names) if names else None

    def step(self):
        crowded = len(self.names) > NAMES
        draw = self.random.random()
        if draw < (0.05 if crowded else 0.2):
            name = self.fresh()
            self.call("mkdir", os.mkdir, name)
            self.names[name] = ("d",)
        elif draw < (0.1 if crowded else 0.4):
            name = self.fresh()
            self.call("create", create, name)
            self.names[name] = ("f", self.next)
            self.next += 1
        elif draw < 0.55 and (name := self.pick("f")) and not crowded:
            other = self.fresh()
            self.call("link", os.link, name, other)
            self.names[other] = self.names[name]
        elif draw < 0.75 and (name := self.pick(self.random.choice("df"))):
            other = self.fresh()
            self.call("rename", os.rename, name, other)
            self.names[other] = self.names.pop(name)
        elif name := self.pick("f"):
            self.call("unlink", os.unlink, name)
            del self.names[name]
            if directory := self.pick("d"):
                self.call("rmdir", os.rmdir, directory)
                del self.names[directory]
        else:
            name = self.fresh()
            self.call("mkdir", os.mkdir, name)
            self.names[name] = ("d",)

    def run(self):
        while sum(self.counts.values()) < operations // processes:
            self.step()

    def verify(self):
        found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in os.scandir(self.at)}
        expected = {name: what[0] == "d" for name, what in self.names.items()}
        if found != expected:
            raise RuntimeError(f"{self.at}: there is {sorted(found.items() - expected.items())}, not {sorted(expected.items() - found.items())}")
        links = {}
        for name, what in self.names.items():
            if what[0] == "f":
                links.setdefault(what[1], []).append(name)
        for names in links.values():
            stats = [os.stat(os.path.join(self.at, name)) for name in names]
            if len({stat.st_ino for stat in stats}) != 1 or stats[0].st_nlink != len(names):
                raise RuntimeError(f"{self.at}: {names} are not the {len(names)} names of one file")


def create(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def task(number):
    worker = Worker(number, dry=phase == "verify")
    worker.run()
    worker.verify()
    print(f"worker {number}: {worker.counts}", flush=True)


children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        try:
            task(number)
        except BaseException as error:
            print(f"FAILED: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
if any([os.waitpid(child, 0)[1] for child in children]):
    sys.exit("FAILED: a change was made twice or not at all")
