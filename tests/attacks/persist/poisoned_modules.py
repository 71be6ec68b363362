# story: Changes the modules that the next submission will use, in memory and on disk: torch itself, compiled bytecode, .pth
#   files, sitecustomize, the worker's own source. Each looks for the others' changes first.
# says: every module is as it was
# neighbours: 3
# %%
import builtins
import importlib.util
import os
import site
import sys

import ichimon
import wire
import worker

changed = [name for name, module in {"torch": torch, "builtins": builtins, "wire": wire, "worker": worker, "ichimon": ichimon}.items() if hasattr(module, "left")]
for module in (torch, builtins, wire, worker, ichimon, torch.Tensor, nn.Module):
    module.left = "here"
torch.Tensor.__add__ = torch.Tensor.__mul__
nn.Module.__call__ = lambda self, *args, **kwargs: args[0]
folders = [*site.getsitepackages(), *sys.path, "/sandbox", os.path.dirname(torch.__file__), os.path.dirname(os.__file__)]
for folder in folders:
    for name in ("left.pth", "sitecustomize.py", "usercustomize.py", "__pycache__/wire.cpython-311.pyc", "torch.py"):
        path = os.path.join(folder, name)
        if path.startswith("/student") or not folder:
            continue
        try:
            open(path, "a").close()
            changed.append(path)
        except OSError:
            pass
for module in (torch, wire, worker, ichimon):
    for path in (module.__file__, importlib.util.cache_from_source(module.__file__)):
        try:
            open(path, "ab").close()
            changed.append(path)
        except OSError:
            pass
print("every module is as it was" if not changed else f"GOT THROUGH: {changed}")
