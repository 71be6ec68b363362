# story: Memory that is mapped as shared and unmapped again belongs to a file without a name, and is counted nowhere. Takes
#   200 MB so, again and again, by an anonymous mapping and by /dev/zero.
# says: none of it stays
# %%
import ctypes
import mmap
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
SIZE, kept = 100 << 20, 0
with open("/proc/meminfo") as file:
    before = {line.split()[0]: int(line.split()[1]) for line in file}

def hide(flags, fd):
    place = libc.mmap(None, ctypes.c_size_t(SIZE), mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, ctypes.c_long(0))
    if place in (None, ctypes.c_void_p(-1).value):
        return 0
    ctypes.memset(place, 1, SIZE)
    libc.munmap(ctypes.c_void_p(place + 4096), ctypes.c_size_t(SIZE - 4096))
    return SIZE

for _ in range(2):
    kept += hide(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1)
    kept += hide(3 | mmap.MAP_ANONYMOUS, -1)
    zero = os.open("/dev/zero", os.O_RDWR)
    kept += hide(mmap.MAP_SHARED, zero)
    os.close(zero)
print("none of it stays" if not kept else f"GOT THROUGH: {kept >> 20} MB are counted nowhere")
