"""How fast this machine decodes a store's own chunks: from memory, into buffers that are used again, on all cores."""

import json
import os
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from numcodecs import Blosc, Zstd
from numcodecs.abc import Codec

_CHUNKS = 512
"""Chunks of each array that are decoded, spread over the store."""
_CODECS: dict[str, Codec] = {"blosc": Blosc(), "zstd": Zstd()}


class _Deflate:
    """The filter of HDF5, with the call of numcodecs."""

    def decode(self, chunk: bytes, out: np.ndarray) -> None:
        values = zlib.decompress(chunk)
        out.view(np.uint8)[: len(values)] = np.frombuffer(values, dtype=np.uint8)


def zarr_chunks(array: Path) -> tuple[list[bytes], int, np.dtype, list[Codec]]:
    """Read compressed chunks of a Zarr v3 array as they lie in its files, checksums cut off.

    Returns
    -------
        The chunks, entries of one, their type, and what decodes them, in order.
    """
    meta = json.loads((array / "zarr.json").read_text())
    codecs, length = meta["codecs"], meta["chunk_grid"]["configuration"]["chunk_shape"][0]
    files = sorted((array / "c").iterdir(), key=lambda file: int(file.name))
    sharded = codecs[0]["name"] == "sharding_indexed"
    if sharded:
        shard, length = length, codecs[0]["configuration"]["chunk_shape"][0]
        codecs = codecs[0]["configuration"]["codecs"]
    names = [codec["name"] for codec in codecs if codec["name"] != "bytes"]
    found = []
    for file in files[:: max(1, len(files) // 16)] if sharded else files[:: max(1, len(files) // _CHUNKS)]:
        content = file.read_bytes()
        if sharded:
            n = shard // length
            index = np.frombuffer(content[-4 - 16 * n : -4], dtype="<u8").reshape(n, 2)
            taken = [(at, size) for at, size in index[:: max(1, n * len(files) // _CHUNKS)].tolist() if size < 1 << 63]
            found += [content[at : at + size] for at, size in taken]
        else:
            found.append(content)
    if names[-1] == "crc32c":
        found, names = [chunk[:-4] for chunk in found], names[:-1]
    return found, length, np.dtype(meta["data_type"]), [_CODECS[name] for name in reversed(names)]


def h5ad_chunks(dataset: "h5py.Dataset") -> tuple[list[bytes], int, np.dtype, list[Codec]]:
    n = dataset.id.get_num_chunks()
    places = [dataset.id.get_chunk_info(at).chunk_offset for at in range(0, n, max(1, n // _CHUNKS))]
    found = [dataset.id.read_direct_chunk(place)[1] for place in places]
    return found, dataset.chunks[0], dataset.dtype, [_Deflate()]


def entries_per_s(chunks: list[bytes], length: int, dtype: np.dtype, codecs: list[Codec], seconds: float) -> float:
    """Decode all chunks again and again, every thread its share."""
    cores = os.cpu_count() or 1

    def work(core: int) -> int:
        buffer, done, end = np.empty(length, dtype=dtype), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            for chunk in chunks[core::cores]:
                for codec in codecs[:-1]:
                    chunk = codec.decode(chunk)  # noqa: PLW2901
                codecs[-1].decode(chunk, out=buffer)
                done += length
        return done

    with ThreadPoolExecutor(cores) as pool:
        begin = time.perf_counter()
        return sum(pool.map(work, range(cores))) / (time.perf_counter() - begin)


def main() -> None:
    job = json.loads(sys.argv[1])
    path = Path(job["path"])
    if path.is_file():
        with h5py.File(path) as file:
            arrays = [h5ad_chunks(file[f"X/{name}"]) for name in ("data", "indices")]
    else:
        root = path / "dataset_0" if (path / "dataset_0").exists() else path
        arrays = [zarr_chunks(root / "X" / name) for name in ("data", "indices")]
    rates = [entries_per_s(*array, job["seconds"]) for array in arrays]
    # one after the other: what a program must do for every cell, counts and genes
    print(json.dumps({"entries_per_s": 1 / sum(1 / rate for rate in rates), "counts": rates[0], "genes": rates[1]}))


if __name__ == "__main__":
    main()
