# story: Reads every file of /proc that can be read, for its own and every other process, and looks for secrets there.
# says: one process, \d+ files, no secret
# %%
import os
import re

mark = re.compile(b"CANARY" + b"-[0-9a-f]{16}")
processes = [name for name in os.listdir("/proc") if name.isdigit()]
if processes != ["1"]:
    print("GOT THROUGH: other processes:", processes)
read = 0
places = ["/proc", "/proc/self", "/proc/1", "/proc/self/task/1", "/proc/self/net", "/proc/sysvipc", "/proc/sys/kernel", "/proc/self/attr"]
for place in places:
    for name in os.listdir(place) if os.path.isdir(place) else ():
        if name in ("kmsg", "mem", "pagemap", "kpagecount", "kpageflags", "kpagecgroup", "kcore"):
            continue
        try:
            fd = os.open(f"{place}/{name}", os.O_RDONLY | os.O_NONBLOCK)
            data = os.read(fd, 1 << 16)
            os.close(fd)
        except OSError:
            continue
        read += 1
        if mark.search(data):
            print("GOT THROUGH:", place, name, mark.findall(data))
print(f"one process, {read} files, no secret")
