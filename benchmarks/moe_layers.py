"""How fast is an MoE layer, written in six ways, beside a dense layer of the same arithmetic?

experiments/moe_layers.py says what is measured: forward and backward in float32 on one thread, CPU time, the dense
layer's divided by the MoE layer's. `--json` prints `rows` (tokens spread as a random router does) and `skewed`.
It takes a minute, with `--slow` several.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # before torch is imported
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import typer  # noqa: E402

from experiments.moe_layers import ROWS, WAYS, measure  # noqa: E402
from ichimon.measure import environment  # noqa: E402


def table(rows: Sequence[Mapping[str, Any]], ways: Sequence[str]) -> str:
    lines = ["| layer | " + " | ".join(ways) + " |", "|---|" + "---:|" * len(ways)]
    for row in rows:
        layer = f"d{row['d_model']} E{row['n_experts']} k{row['top_k']}, {row['tokens']} tokens"
        lines.append(f"| {layer} | " + " | ".join(f"{row[way]:.2f}" for way in ways) + " |")
    return "\n".join(lines)


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Turns; medians are over these.")] = 5,
    slow: Annotated[bool, typer.Option(help="With the slow ways: masks, and W[e].")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Speed of an MoE layer, forward and backward, as a share of a dense layer's with the same arithmetic."""
    torch.set_num_threads(1)
    ways = [name for name in WAYS if slow or name not in ("masks", "sorted_indexed")]
    found = {
        name: [measure(row, skewed=skewed, ways=ways, repeats=repeats) for row in ROWS]
        for name, skewed in (("rows", False), ("skewed", True))
    }
    if as_json:
        print(
            json.dumps(
                {
                    **found,
                    "environment": environment("benchmarks/moe_layers.py", "experiments/moe_layers.py", "solutions"),
                },
                indent=2,
            )
        )
        return
    for title, rows in zip(("Even load", "Skewed load"), found.values(), strict=True):
        print(f"{title}\n\n{table(rows, [*ways, 'transformers'])}\n")


if __name__ == "__main__":
    typer.run(main)
