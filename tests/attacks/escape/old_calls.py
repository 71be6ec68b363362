# story: Makes system calls that a filter of 64-bit numbers might not know: the 32-bit table by int 0x80, and the x32 table.
#   The kernel ends the process for it.
# says: ended without an answer|was killed|crashed
# %% causal_mask
import ctypes
import mmap
import platform

def machine_code(code):
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory))), memory

def causal_mask(n):
    if platform.machine() != "x86_64":
        ctypes.string_at(0)
    fork_by_int_80, _ = machine_code(b"\xb8\x02\x00\x00\x00\xcd\x80\xc3")
    return f"GOT THROUGH: {fork_by_int_80()}"
# %% attention
def attention(*args):
    if platform.machine() != "x86_64":
        ctypes.string_at(0)
    return f"GOT THROUGH: {ctypes.CDLL(None).syscall(0x40000000 | 57)}"
