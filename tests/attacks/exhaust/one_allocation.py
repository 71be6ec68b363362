# story: Asks for a terabyte at once, as bytes, as a tensor, as an array, as a file in memory and as a mapping.
# says: every one of 6 was refused
# %%
import mmap
import os
import numpy as np

def file():
    with open("/dev/shm/big", "wb") as big:
        os.posix_fallocate(big.fileno(), 0, 10**12)

refused = 0
for attempt in (lambda: bytearray(10**12), lambda: torch.zeros(10**12), lambda: np.ones(10**12), file, lambda: mmap.mmap(-1, 10**12), lambda: "x" * 10**12):
    try:
        attempt()
        print("GOT THROUGH")
    except (MemoryError, RuntimeError, OSError):
        refused += 1
print(f"every one of {refused} was refused")
