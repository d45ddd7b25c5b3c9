"""Bytes of chunks become the values that were written, or are refused."""

import warnings

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.codecs import numcodecs as zarr3

from dist_scvi.loaders.arrays.codecs import checked_crc32c, decoder
from dist_scvi.loaders.arrays.zarr_access import Codec, Layout, layout_of

VALUES = (np.arange(1000) % 37).astype(np.uint16)


def stored(tmp_path, *, compressors=None, filters=None, serializer="auto") -> tuple[zarr.Array, bytes]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        array = zarr.create_array(
            tmp_path / "a",
            shape=VALUES.shape,
            chunks=VALUES.shape,
            dtype=VALUES.dtype,
            compressors=compressors,
            filters=filters,
            serializer=serializer,
        )
        array[:] = VALUES
    return array, (tmp_path / "a" / "c" / "0").read_bytes()


BYTES = [
    [],
    [BloscCodec(cname="lz4hc", clevel=9)],
    [BloscCodec(cname="zstd"), Crc32cCodec()],
    [BloscCodec(cname="lz4"), ZstdCodec(level=1, checksum=True)],
    [ZstdCodec(level=3)],
    [GzipCodec(level=1), Crc32cCodec()],
]


def names(compressors):
    return "-".join(type(codec).__name__ for codec in compressors or ())


@pytest.mark.parametrize("compressors", BYTES, ids=names)
def test_compressed_bytes_become_the_values(tmp_path, compressors):
    array, raw = stored(tmp_path, compressors=compressors)
    out_e = np.zeros_like(VALUES)
    decoder(array.dtype, layout_of(array)).decode(raw, out_e)
    assert_array_equal(out_e, VALUES)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_the_codecs_of_numcodecs_are_undone(tmp_path):
    for number, options in enumerate(
        (
            {"filters": [zarr3.Delta(dtype="u2")], "compressors": [zarr3.LZ4()]},
            {"compressors": [zarr3.BZ2()]},
            {"serializer": zarr3.PCodec(level=8, delta_encoding_order=1)},
        )
    ):
        array, raw = stored(tmp_path / str(number), **options)
        out_e = np.zeros_like(VALUES)
        decoder(array.dtype, layout_of(array)).decode(raw, out_e)
        assert_array_equal(out_e, VALUES)


@pytest.mark.parametrize(
    ("compressor", "filters"),
    [(numcodecs.Blosc(), None), (None, None), (numcodecs.Zstd(), [numcodecs.Delta("<u2")]), (numcodecs.GZip(), [])],
)
def test_chunks_of_version_2_come_back(compressor, filters):
    raw = VALUES
    for codec in (*(filters or ()), compressor):
        raw = codec.encode(raw) if codec else raw.tobytes() if isinstance(raw, np.ndarray) else raw
    out_e = np.zeros_like(VALUES)
    decoder(VALUES.dtype, layout(2, *(codec.get_config() for codec in (*(filters or ()), compressor) if codec))).decode(
        raw, out_e
    )
    assert_array_equal(out_e, VALUES)


@pytest.mark.parametrize("compressors", BYTES[1:6], ids=names)
def test_a_chunk_of_another_length_is_refused(tmp_path, compressors):
    array, raw = stored(tmp_path, compressors=compressors)
    decode = decoder(array.dtype, layout_of(array))
    for length in (999, 1001):
        with pytest.raises((ValueError, RuntimeError)):
            decode.decode(raw, np.zeros(length, dtype=np.uint16))


@pytest.mark.parametrize("compressors", [BYTES[2], BYTES[5]], ids=names)
def test_every_flipped_bit_is_found_by_the_checksum(tmp_path, compressors):
    array, raw = stored(tmp_path, compressors=compressors)
    decode = decoder(array.dtype, layout_of(array))
    for at in range(0, len(raw), 3):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checksum"):
            decode.decode(bytes(flipped), np.zeros_like(VALUES))


def test_too_few_bytes_for_a_checksum_are_refused():
    with pytest.raises(ValueError, match="checksum"):
        checked_crc32c(b"abc")


def layout(zarr_format: int, *configs: dict) -> Layout:
    codecs = tuple(Codec(config["id"], {k: v for k, v in config.items() if k != "id"}) for config in configs)
    return Layout(zarr_format, codecs, None, index_at_end=False, outer_codecs=0)


def test_what_is_not_known_is_left_to_zarr():
    assert decoder(VALUES.dtype, layout(3, {"id": "bytes", "endian": "big"})) is None
    assert decoder(VALUES.dtype, layout(3, {"id": "bytes"}, {"id": "new"})) is None
    assert decoder(VALUES.dtype, layout(3, {"id": "bytes"}, {"id": "numcodecs.delta", "dtipe": "u2"})) is None
    assert decoder(VALUES.dtype.newbyteorder(">"), layout(2)) is None


def test_a_chunk_without_even_a_header_is_refused():
    decode = decoder(VALUES.dtype, layout(3, {"id": "bytes"}, {"id": "blosc"}))
    with pytest.raises(ValueError, match="it has 0 bytes, the header alone takes 16"):
        decode.decode(b"", np.zeros_like(VALUES))
