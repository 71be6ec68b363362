# story: Opens files, pipes, timers and event descriptors until there are no more, and asks for a higher limit.
# says: no more than \d\d handles, and 5 limits stay
# %%
import os
import resource

handles, refused = [], 0
for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    now, most = resource.getrlimit(limit)
    try:
        resource.setrlimit(limit, (now, most + 1))
        print("GOT THROUGH: a limit was raised")
    except (ValueError, OSError):
        refused += 1
try:
    while True:
        handles += [os.open("/dev/null", os.O_RDONLY), *os.pipe(), os.eventfd(0)]
except OSError:
    pass
print(f"no more than {len(handles)} handles, and {refused} limits stay where they are")
for handle in handles:
    os.close(handle)
