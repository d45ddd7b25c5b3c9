"""Measure training alone and beside a process that keeps a core busy, here and in scvi-tools.

The two sides train in turns, quiet and disturbed in every round; here with the threads that torch is given and with
one. What should hold: disturbed, never slower than scvi-tools, and never under half of what one thread reaches.

    python benchmarks/neighbour.py --data kang_ctrl_stim_2000x9015.h5ad --peer-python .peers/scvi-tools/bin/python
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train import HELD_OUT, N_CELLS, OURS, PEER, Side, counts_like

RESULT = Path(__file__).parent / "results" / "neighbour.json"


@contextmanager
def busy_neighbour(n_cores: int) -> Iterator[None]:
    """Keep some cores busy, as another user's job would."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_cores)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="h5ad whose cells are drawn again")
    parser.add_argument("--peer-python", type=Path, default=Path(".peers/scvi-tools/bin/python"))
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--minibatch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=1, help="cores that the neighbour keeps busy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "cells.h5ad"
        counts_like(options.data, options.genes, data)
        job = {"data": str(data), "held_out": HELD_OUT, "model": "SCVI", "likelihood": "zinb"}
        job |= {"minibatch": options.minibatch, "kernels": "compiled", "precision": "32-true"}
        sides = {
            "dist_scvi": Side(sys.executable, OURS, job | {"threads": options.threads}),
            "dist_scvi_one_thread": Side(sys.executable, OURS, job | {"threads": 1}),
        }
        if options.peer_python.exists():
            sides["scvi_tools"] = Side(str(options.peer_python), PEER, job | {"threads": options.threads})
        cells = (N_CELLS - HELD_OUT) * options.epochs
        rates: dict[str, dict[str, list[float]]] = {side: {"quiet": [], "disturbed": []} for side in sides}
        for side in sides.values():
            side.ask("train 1")
        for _ in range(options.rounds):
            for kind, n_busy in (("quiet", 0), ("disturbed", options.busy)):
                for name_of_side, side in sides.items():
                    with busy_neighbour(n_busy):
                        seconds = side.ask(f"train {options.epochs}")["seconds"]
                    rates[name_of_side][kind].append(cells / seconds)
        for side in sides.values():
            side.end()
    medians = {side: {kind: statistics.median(found) for kind, found in kinds.items()} for side, kinds in rates.items()}
    result = {
        "question": "cells/s of training, alone and beside a process that keeps a core busy; medians of rounds",
        "genes": options.genes,
        "minibatch": options.minibatch,
        "threads": options.threads,
        "cpus": os.cpu_count(),
        "load_after": os.getloadavg(),
        "cells_per_s": medians,
        "rounds": rates,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
