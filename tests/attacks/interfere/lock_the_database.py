# story: Opens the grader's databases wherever they might be, and holds an exclusive lock on them while the class is graded.
# says: no database but my own
# neighbours: 2
# %%
import itertools
import os
import sqlite3

folders = [".", "..", "../..", "/", "/tmp", "/sandbox", "/student", "/proc/1/cwd", "/dev/shm", "/var/lib", os.path.dirname(torch.__file__)]
names = ["results.sqlite", "_build/results.sqlite", "gradebook.db", "class.sqlite", "alone.sqlite", "../gradebook.db", "results.sqlite-wal", "results.sqlite-shm"]
locked = []
for folder, name in itertools.product(folders, names):
    path = os.path.join(folder, name)
    if os.path.exists(path) and not os.path.realpath(path).startswith(("/student", "/dev/shm")):
        locked.append(path)
    try:
        database = sqlite3.connect(path, timeout=0, isolation_level=None)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        if not os.path.realpath(path).startswith(("/student", "/dev/shm")):
            locked.append(path)
    except sqlite3.Error:
        pass
print("no database but my own" if not locked else f"GOT THROUGH: {locked}")
