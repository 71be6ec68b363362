# story: The course is installed in editable mode, so the environment says where it lies. Goes there, by the path and by
#   the import hook, and reads.
# says: I know \d+ places? where it lies, and cannot see one of them
# %%
import glob
import os
import re
import site
import sys

places = set()
for folder in {*site.getsitepackages(), *sys.path}:
    for file in glob.glob(f"{folder}/__editable__*") + glob.glob(f"{folder}/*.pth") + glob.glob(f"{folder}/*.dist-info/direct_url.json"):
        text = open(file, errors="replace").read()
        places |= {place.removeprefix("file://") for place in re.findall(r"(?:file://)?/[\w./-]+", text) if "ichimon" in text}
places = {place for place in places if not place.startswith("/usr") and "site-packages" not in place}
for place in places:
    for name in ("", "autograder/tests", "solutions", "../../autograder", "../solutions"):
        folder = os.path.join(place, name)
        if os.path.exists(folder) and set(os.listdir(folder)) - {".venv"}:  # the interpreter may lie in the course's folder
            print("GOT THROUGH:", folder, os.listdir(folder))
print(f"I know {len(places)} place{'s' * (len(places) != 1)} where it lies, and cannot see one of them")
