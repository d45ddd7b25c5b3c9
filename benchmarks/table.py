"""Print the README's table of measurements from the files in ``results/``; a test holds the two together."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def table() -> str:
    elbo = json.loads((RESULTS / "elbo.json").read_text())
    memory = json.loads((RESULTS / "memory.json").read_text())
    few, many = memory["runs"][0], memory["runs"][-1]
    rows = [
        ("question", "dist_scvi", "scvi-tools 1.4.2", "script"),
        ("---", "---", "---", "---"),
        (
            f"held-out negative ELBO after {elbo['epochs']} epochs on `{elbo['data']}`, median of seeds",
            f"{_median(run['ours']['elbo'] for run in elbo['runs']):.1f}",
            f"{_median(run['scvi_tools']['elbo'] for run in elbo['runs']):.1f}",
            "[elbo.py](benchmarks/elbo.py)",
        ),
        (
            "the same, ratio of each pair (1 is equal)",
            ", ".join(f"{run['elbo_ratio']:.4f}" for run in elbo["runs"]),
            "1",
            "",
        ),
        ("time of that training, one thread, ratio", "1", f"{elbo['speedup_median']:.2f}", ""),
        (
            f"peak memory of training on {few['cells']:,} cells x {few['genes']:,} genes",
            f"{few['ours']['peak_mib']:,.0f} MiB",
            f"{few['scvi_tools']['peak_mib']:,.0f} MiB",
            "[memory.py](benchmarks/memory.py)",
        ),
        (
            f"the same on {many['cells']:,} cells",
            f"{many['ours']['peak_mib']:,.0f} MiB",
            f"{many['scvi_tools']['peak_mib']:,.0f} MiB",
            "",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _median(values: object) -> float:
    ordered = sorted(values)  # type: ignore[call-overload]
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    print(table())
