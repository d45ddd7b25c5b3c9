"""Decoding of Zarr chunks: runs the codecs of an array by numcodecs and verifies checksums.

numcodecs releases the GIL while it decompresses. zarrs 0.2.3 does not verify crc32c when it reads a part of a shard,
and zarr itself uses an event loop for every chunk. Therefore this module decodes the counts.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.zarr_access import Codec, Layout

Step = Callable[[Any], Any]
_BLOSC_HEADER = 16


class Decoder:
    """The codecs of an array.

    Parameters
    ----------
    dtype
        Type of the values.
    steps
        Functions that decode the bytes of a chunk, in this order, before blosc.
    blosc_last
        Whether the last step is blosc, which can write directly to the output array.
    """

    def __init__(self, dtype: np.dtype[Any], steps: list[Step], *, blosc_last: bool) -> None:
        self.dtype = dtype
        self._steps, self._blosc_last = steps, blosc_last

    def decode(self, raw: Any, out_e: NDArray[Any]) -> None:
        """Decode the whole chunk `raw` into `out_e`.

        Raises
        ------
        ValueError, RuntimeError
            If it is damaged.
        """
        for step in self._steps:
            raw = step(raw)
        if self._blosc_last:
            if len(raw) < _BLOSC_HEADER:
                raise ValueError(f"it has {len(raw)} bytes, the header alone takes {_BLOSC_HEADER}")
            # blosc takes both sizes from this header, which may be damaged.
            n_values, n_stored = struct.unpack_from("<4xI4xI", raw)
            if (n_values, n_stored) != (out_e.nbytes, len(raw)):
                raise ValueError(f"{len(raw)} bytes say they are {n_stored} and hold {n_values}, not {out_e.nbytes}")
            blosc.decompress(raw, out_e)
            return
        values = np.frombuffer(memoryview(raw), dtype=self.dtype)
        if len(values) != len(out_e):
            raise ValueError(f"it holds {len(values)} values, not {len(out_e)}")
        out_e[:] = values


def decoder(dtype: np.dtype[Any], layout: Layout) -> Decoder | None:
    """Return the decoder for the chunks of an array, or None if zarr itself has to decode them."""
    if layout.zarr_format == 2:
        little, codecs = dtype.byteorder != ">", layout.codecs
    else:
        as_bytes = [codec for codec in layout.codecs if codec.name == "bytes"]
        little = all(codec.options.get("endian", "little") == "little" for codec in as_bytes)
        codecs = tuple(codec for codec in layout.codecs if codec.name != "bytes")
    blosc_last = bool(codecs) and codecs[0].name == "blosc"
    steps = [_step(codec, layout.zarr_format) for codec in reversed(codecs[1:] if blosc_last else codecs)]
    known = [step for step in steps if step is not None]
    return Decoder(dtype, known, blosc_last=blosc_last) if little and len(known) == len(steps) else None


def checked_crc32c(raw: Any) -> memoryview:
    """Verify the checksum at the end of `raw`, and return `raw` without it.

    Raises
    ------
    ValueError
        If it differs.
    """
    view = memoryview(raw)
    content, stored = view[:-4], view[-4:]
    # An array, because google_crc32c does not accept a memoryview.
    if len(view) < 4 or google_crc32c.value(np.frombuffer(content, np.uint8)) != int.from_bytes(stored, "little"):
        raise ValueError("its checksum (crc32c) does not fit its bytes")
    return content


def _step(codec: Codec, zarr_format: int) -> Step | None:
    """Return the function that decodes one codec; None if it is not known here or not installed."""
    if codec.name == "crc32c" and zarr_format == 3:
        return checked_crc32c
    if zarr_format == 2:
        config = {"id": codec.name, **codec.options}
    elif codec.name in ("blosc", "zstd", "gzip"):
        config = {"id": codec.name}
    elif codec.name.startswith("numcodecs."):  # zarr's name for a codec of numcodecs in Zarr v3
        config = {"id": codec.name.removeprefix("numcodecs."), **codec.options}
    else:
        return None
    try:
        step: Step = numcodecs.get_codec(config).decode
    except (ValueError, TypeError):  # one that is not installed, or options that it does not have
        return None
    return step


def encode_texts(texts: Iterable[str]) -> bytes:
    """Encode texts as the codecs ``vlen-utf8`` and ``zstd`` of Zarr v3 do."""
    encoded: bytes = numcodecs.Zstd(level=1).encode(numcodecs.VLenUTF8().encode(np.array([*texts, None], object)[:-1]))
    return encoded


def decode_texts(content: bytes | memoryview) -> NDArray[np.object_]:
    """Decode the result of `encode_texts`."""
    texts: NDArray[np.object_] = numcodecs.VLenUTF8().decode(numcodecs.Zstd().decode(content))
    return texts


def compress_floats(values: NDArray[np.float64]) -> bytes:
    """Compress numbers of which many are 0 or have few digits."""
    codec = numcodecs.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.Blosc.SHUFFLE)
    return bytes(codec.encode(np.ascontiguousarray(values).reshape(-1)))


def decompress_floats(content: bytes) -> NDArray[np.float64]:
    """Decompress the result of `compress_floats`, as a one-dimensional array."""
    return np.frombuffer(numcodecs.Blosc().decode(content), dtype=np.float64)
