"""Make the golden bytes of chapter 18 again: what bitsandbytes gives for inputs that are kept beside them.

    pip install bitsandbytes==0.50.2
    python tests/make_nf4_golden.py

It writes autograder/tests/nf4_golden.json, from which the hidden tests read. Inputs come from torch.manual_seed(18), on
a CPU. Arrays are stored as [dtype, shape, base64 of the bytes, least significant first].

bitsandbytes has three ways to quantise: kernels for GPUs, PyTorch's own functions, and a compiled library for CPUs. The
first two take the nearest value. The third one, for the eight bits of double quantisation, takes its neighbour where
the two are nearly as near. So the library is switched off here.
"""

from __future__ import annotations

import base64
import ctypes
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OUT = Path(__file__).resolve().parents[1] / "autograder" / "tests" / "nf4_golden.json"


def stored(x: Tensor) -> list[Any]:
    data = x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [str(x.dtype).removeprefix("torch."), list(x.shape), base64.b64encode(data).decode()]


def refuse(name: str) -> ctypes.CDLL:
    raise OSError(f"{name} is switched off")


def inputs() -> dict[str, tuple[Tensor, int]]:
    """Name → (input, block)."""
    from bitsandbytes.functional import get_4bit_type  # type: ignore[import-not-found]

    torch.manual_seed(18)
    values = get_4bit_type("nf4", device="cpu")
    borders = (values[1:] + values[:-1]) / 2
    outliers = torch.randn(3, 64)
    outliers[0, 5], outliers[2, 63] = 40.0, -25.0
    return {
        "normal": (torch.randn(6, 64), 64),
        "a short last block": (torch.randn(5, 30), 64),
        "an odd number": (torch.randn(7, 9), 64),
        "a single entry": (torch.tensor([-0.3]), 64),
        "outliers": (outliers, 64),
        "exactly on the borders": (torch.cat([borders, -borders, torch.ones(1), torch.full((33,), 0.5)]), 64),
        "a block of zeros": (torch.cat([torch.zeros(64), torch.randn(64)]), 64),
        "very small and very large": (torch.cat([1e-20 * torch.randn(64), 1e20 * torch.randn(64)]), 64),
        "bfloat16": (torch.randn(4, 40).bfloat16(), 64),
        "blocks of 32": (torch.randn(100), 32),
        "blocks of 256": (torch.randn(2, 300), 256),
    }


def main() -> None:
    ctypes.cdll.LoadLibrary = refuse  # type: ignore[method-assign]
    import bitsandbytes  # type: ignore[import-not-found]
    from bitsandbytes import functional

    quantized = []
    for name, (x, block) in inputs().items():
        packed, state = functional.quantize_4bit(x, blocksize=block, quant_type="nf4")
        back = functional.dequantize_4bit(packed, state).float() if x.dtype == torch.float32 else None
        case = {"name": name, "block": block, "x": stored(x), "packed": stored(packed.flatten())}
        case["absmax"] = stored(state.absmax)
        if back is not None:  # bitsandbytes gives bfloat16 back for bfloat16
            case["back"] = stored(back.view(x.shape))
        quantized.append(case)
    doubled = []
    for n in (3, 256, 700):
        absmax = torch.randn(n, 64).abs().amax(-1) * (1 + torch.rand(n))
        mean = absmax.mean()
        codes, state = functional.quantize_blockwise(absmax - mean, blocksize=256)
        back = functional.dequantize_blockwise(codes, state) + mean
        doubled.append(
            {
                "name": f"{n} numbers",
                "absmax": stored(absmax),
                "codes": stored(codes),
                "scales": stored(state.absmax),
                "mean": stored(mean),
                "back": stored(back),
            }
        )
    versions = f"bitsandbytes {bitsandbytes.__version__} and torch {torch.__version__}"
    made = {
        "made": f"by tests/make_nf4_golden.py with {versions}",
        "quantize": quantized,
        "double": doubled,
    }
    OUT.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
