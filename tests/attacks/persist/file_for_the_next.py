# story: Looks for what an earlier submission left in any folder that can be written, then leaves a file in each of them
#   for the next one: at every mount, in every folder near the root, and wherever programs keep what they share.
# says: nothing was left, and I left \d+ files
# neighbours: 3
# %%
import os
import site
import sys

folders = [line.split()[4] for line in open("/proc/self/mountinfo")]
for top in ("/", "/usr", "/usr/local", "/usr/share", "/dev", "/sandbox", "/sandbox/ichimon", "/etc", sys.prefix, sys.base_prefix):
    folders += [top, *(os.path.join(top, name) for name in os.listdir(top))] if os.path.isdir(top) else []
folders += [*site.getsitepackages(), *sys.path, "/tmp", "/var/tmp", "/run", "/var/lock", "/run/lock", "/var/spool", os.path.dirname(torch.__file__)]
left = 0
for folder in {os.path.realpath(folder) for folder in folders if folder}:
    if not os.path.isdir(folder) or folder.startswith("/proc"):
        continue
    if os.path.exists(f"{folder}/for-the-next"):
        print("GOT THROUGH:", folder, open(f"{folder}/for-the-next").read())
    try:
        open(f"{folder}/for-the-next", "w").write("causal_mask is tril")
        left += 1
    except OSError:
        pass
print(f"nothing was left, and I left {left} files")
