#!/bin/bash
# Gradescope runs this once, as root, when the autograder is built.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

usable() { command -v "$1" >/dev/null && "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
install() { apt-get install -y --no-install-recommends "$@"; }

apt-get update
install ca-certificates libseccomp2
python=""
for version in 3.13 3.12 3.11; do
    usable "python$version" || install "python$version" "python$version-venv" || continue
    if usable "python$version"; then
        python="python$version"
        break
    fi
done
if [ -z "$python" ]; then
    echo "This image has no Python from 3.11 to 3.13, and apt has none: choose a newer base image."
    exit 1
fi

"$python" -m venv /autograder/venv
# PyTorch's own index has builds without CUDA, a tenth of the size. TORCH_INDEX= takes what pip's usual index has.
torch_index="${TORCH_INDEX-https://download.pytorch.org/whl/cpu}"
pip() { /autograder/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore "$@"; }
pip ${torch_index:+--index-url "$torch_index"} "$(grep '^torch==' /autograder/source/requirements.txt)"
pip -r /autograder/source/requirements.txt
chmod -R u=rwX,go=rX /autograder/venv

# What everybody may write to would be a way from one process to another.
find / -xdev \( -path /proc -o -path /sys -o -path /dev \) -prune -o \( -type d -o -type f \) -perm -0002 -exec chmod o-w {} +
