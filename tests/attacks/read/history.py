# story: Looks for histories: of shells, Python, IPython and Jupyter, of git, of the cells that ran before, and of what
#   the worker was sent.
# says: no history but my own cells
# %%
import glob
import linecache
import os
import readline
import sys

found = [name for name in ("In", "Out", "_ih", "_oh", "get_ipython", "_dh") if name in globals()]
homes = [os.path.expanduser("~"), "/root", *glob.glob("/home/*"), "/student", os.getcwd()]
for home in homes:
    for name in (".bash_history", ".python_history", ".ipython", ".jupyter", ".local/share/jupyter", ".git", ".sqlite_history", ".lesshst", ".viminfo", ".cache/pip", ".netrc", ".ssh"):
        found += [f"{home}/{name}"] if os.path.lexists(f"{home}/{name}") else []
found += [readline.get_history_item(i) for i in range(1, readline.get_current_history_length() + 1)]
for name, (_, _, lines, _) in ((name, entry) for name, entry in linecache.cache.items() if len(entry) == 4):
    if any("BEGIN " + "SOLUTION" in line or "CANARY" + "-" in line for line in lines):
        found.append(name)
print("no history but my own cells" if not found else f"GOT THROUGH: {found}")
