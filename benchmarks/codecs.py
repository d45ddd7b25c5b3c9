"""Measure how small counts and gene indices are under the codecs of Zarr, and how fast they are decoded.

Real raw counts (the data sets beside the checkout, those that are there) and synthetic cells like Tahoe-100M are cut
into chunks of rows and encoded; every chunk is decoded into a buffer that is used again, on one core (its CPU time)
and on all (by the clock).

    python benchmarks/codecs.py                 # about 6 minutes
    python benchmarks/codecs.py --cells 256     # about 2 minutes
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import numpy as np
from numcodecs import Blosc, GZip, PCodec, Zstd
from numcodecs.abc import Codec
from numpy.typing import NDArray
from peers.cells import tahoe_like

RESULT = Path(__file__).parent / "results" / "codecs.json"
DATA = Path(__file__).parents[2] / "shared" / "data"
LARGEST = 255
CODECS: dict[str, Callable[[str], Codec]] = {
    "blosc lz4 3, byte shuffle": lambda _: Blosc("lz4", 3, Blosc.SHUFFLE),
    "blosc lz4hc 9, byte shuffle": lambda _: Blosc("lz4hc", 9, Blosc.SHUFFLE),
    "blosc lz4hc 9, bit shuffle": lambda _: Blosc("lz4hc", 9, Blosc.BITSHUFFLE),
    "blosc zstd 1, byte shuffle": lambda _: Blosc("zstd", 1, Blosc.SHUFFLE),
    "blosc zstd 3, byte shuffle": lambda _: Blosc("zstd", 3, Blosc.SHUFFLE),
    "zstd 3": lambda _: Zstd(3),
    "gzip 5": lambda _: GZip(5),
    "pcodec 8": lambda kind: PCodec(8, delta_encoding_order=1 if kind == "genes" else 0, delta_spec="try_consecutive"),
}
TYPES = {"counts": ("uint8", "uint16", "float32"), "genes": ("uint16", "int32")}
CHUNK_ROWS = (16, 32, 64, 256)
DECIDES = {"cells": "tahoe_like", "chunk_rows": 64}
ALLOWED_SLOWER = 1.25
SECONDS, REPEATS = 0.04, 3

Rows = dict[str, NDArray]


def real_cells(n_cells: int) -> dict[str, Rows]:
    """Read the first cells of each data set that is there."""
    found = {}
    for path in sorted(DATA.glob("*.h5ad")):
        matrix = anndata.read_h5ad(path).X[:n_cells]
        matrix.sort_indices()
        found[path.name] = {"counts": matrix.data, "genes": matrix.indices, "indptr": matrix.indptr}
    return found


def chunks(rows: Rows, kind: str, dtype: str, chunk_rows: int) -> list[NDArray]:
    array_e = np.minimum(rows["counts"], LARGEST) if dtype == "uint8" else rows[kind]
    cut = np.split(array_e.astype(dtype), rows["indptr"][:-1:chunk_rows][1:])
    return [part for part in cut if len(part)]


def decode(codec: Codec, encoded: list[bytes], buffers: list[NDArray]) -> tuple[int, float]:
    """Decode all chunks again and again for a while; return how often, and the seconds of CPU of that."""
    times, cpu_s, end = 0, time.thread_time(), time.perf_counter() + SECONDS
    while times == 0 or time.perf_counter() < end:
        for chunk, buffer in zip(encoded, buffers, strict=True):
            codec.decode(chunk, out=buffer)
        times += 1
    return times, time.thread_time() - cpu_s


def seconds(codec: Codec, encoded: list[bytes], parts: list[NDArray]) -> tuple[float, float]:
    """Give the least time to decode all chunks once: CPU of one core, and by the clock on all cores together."""
    cores = os.cpu_count() or 1
    spaces = [np.empty(max(map(len, parts)), dtype=parts[0].dtype) for _ in range(cores)]
    buffers = [[space[: len(part)] for part in parts] for space in spaces]
    one, every = [], []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(REPEATS):
            times, cpu_s = pool.submit(decode, codec, encoded, buffers[0]).result()
            one.append(cpu_s / times)
            begin = time.perf_counter()
            total = sum(times for times, _ in pool.map(lambda own: decode(codec, encoded, own), buffers))
            every.append((time.perf_counter() - begin) / total)
    return min(one), min(every)


def measure(sets: list[Rows], kind: str, dtype: str, chunk_rows: int, name: str) -> dict:
    parts = [part for rows in sets for part in chunks(rows, kind, dtype, chunk_rows)]
    codec = CODECS[name](kind)
    encoded = [bytes(codec.encode(part)) for part in parts]
    n_entries, n_cells = sum(map(len, parts)), sum(len(rows["indptr"]) - 1 for rows in sets)
    one, every = seconds(codec, encoded, parts)
    return {
        "codec": name,
        "array": kind,
        "type": dtype,
        "chunk_rows": chunk_rows,
        "bytes_per_entry": round(sum(map(len, encoded)) / n_entries, 4),
        "entries_per_s_core": round(n_entries / one),
        "us_per_cell_core": round(one / n_cells * 1e6, 3),
        "entries_per_s_all": round(n_entries / every),
        "us_per_cell_all": round(every / n_cells * 1e6, 3),
    }


def smallest_counts(name: str) -> str:
    return "uint16" if name.startswith("pcodec") else "uint8"  # pcodec knows no type of one byte


def choose(rows: list[dict]) -> dict:
    """Take the smallest of the codecs that decode counts (uint8) and genes (uint16) about as fast as the fastest."""
    total: dict[str, tuple[float, float]] = {}
    for name in CODECS:
        pair = [
            row
            for row in rows
            if row["codec"] == name
            and all(row[key] == value for key, value in DECIDES.items())
            and (row["array"], row["type"]) in {("counts", smallest_counts(name)), ("genes", "uint16")}
        ]
        total[name] = (sum(row["us_per_cell_core"] for row in pair), sum(row["bytes_per_entry"] for row in pair))
    fastest = min(us for us, _ in total.values())
    close = {name: size for name, (us, size) in total.items() if us <= ALLOWED_SLOWER * fastest}
    choice = min(close, key=lambda name: close[name])
    others = "; ".join(f"{name} {us:.2f} us, {size:.2f} B" for name, (us, size) in total.items() if name != choice)
    us, size = total[choice]
    reason = (
        f"of the codecs that decode a cell within {ALLOWED_SLOWER} of the fastest it is the smallest: {us:.2f} us a "
        f"cell and core and {size:.2f} B an entry for uint8 counts (pcodec: uint16) with uint16 genes, chunks of "
        f"{DECIDES['chunk_rows']} rows, Tahoe-like cells. The others: {others}"
    )
    return {"choice": choice, "reason": reason}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2048, help="cells of each data set")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    real = real_cells(options.cells)
    made = tahoe_like(options.cells)
    groups = {"real": list(real.values())} if real else {}
    groups["tahoe_like"] = [{"counts": made.counts_e, "genes": made.genes_e, "indptr": made.indptr}]
    rows = []
    for group, sets in groups.items():
        for kind, dtype in ((kind, dtype) for kind, types in TYPES.items() for dtype in types):
            for chunk_rows in CHUNK_ROWS:
                for name in CODECS:
                    if dtype == "uint8" and dtype != smallest_counts(name):
                        continue
                    rows.append({"cells": group, **measure(sets, kind, dtype, chunk_rows, name)})
                    print(json.dumps(rows[-1]), file=sys.stderr)
    over = sum(int((matrix["counts"] > LARGEST).sum()) for matrix in real.values())
    result = {
        "question": "bytes per stored entry and time to decode, by codec, type and rows of a chunk",
        **choose(rows),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "real": {
            name: f"{len(matrix['indptr']) - 1} cells, {len(matrix['counts'])} counts" for name, matrix in real.items()
        },
        "tahoe_like": f"{options.cells} cells, {len(made.counts_e)} counts",
        "real_counts_above_255": f"{over}, taken as 255 in uint8",
    }
    table = ",\n".join(json.dumps(row) for row in rows)
    options.out.write_text(json.dumps(result, indent=1)[:-2] + f',\n "rows": [\n{table}\n ]\n}}\n')
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
