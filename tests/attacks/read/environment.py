# story: Reads the environment by Python, by libc, from /proc and from the top of the stack, where the kernel put it.
# says: nothing in the environment but what the jail set
# %%
import ctypes
import os

libc = ctypes.CDLL(None)
block = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
names, i = set(os.environ), 0
while block[i]:
    names.add(block[i].decode(errors="replace").split("=")[0])
    i += 1
for pid in ("self", "1"):
    names |= {item.split(b"=")[0].decode(errors="replace") for item in open(f"/proc/{pid}/environ", "rb").read().split(b"\0") if item}
stack = next(line.split()[0] for line in open("/proc/self/maps") if "[stack]" in line)
start, end = (int(number, 16) for number in stack.split("-"))
with open("/proc/self/mem", "rb", 0) as memory:
    memory.seek(start)
    data = memory.read(end - start)
if b"CANARY" + b"-" in data or any("CANARY" in name for name in names):
    print("GOT THROUGH:", names)
ours = ("PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PWD", "PYTHON", "MPL", "MALLOC_", "OMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "KMP_", "TORCH", "TORCHINDUCTOR_")
others = sorted(name for name in names if not name.startswith(ours))
print("nothing in the environment but what the jail set" if not others else f"GOT THROUGH: {others}")
