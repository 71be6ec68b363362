# story: Reads the whole of its own writable memory through /proc/self/mem: a forked process might have inherited the
#   hidden tests or another student's answers from its parent.
# says: \d+ MB of my memory, no secret
# %%
import re

mark, seen = re.compile(b"CANARY" + b"-[0-9a-f]{16}"), 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        area, rights, *_ = line.split()
        if not rights.startswith("rw"):
            continue
        start, end = (int(number, 16) for number in area.split("-"))
        for place in range(start, end, 1 << 22):
            try:
                memory.seek(place)
                data = memory.read(min(1 << 22, end - place))
            except (OSError, ValueError):
                continue
            seen += len(data)
            if mark.search(data):
                print("GOT THROUGH:", mark.findall(data))
print(f"{seen >> 20} MB of my memory, no secret")
