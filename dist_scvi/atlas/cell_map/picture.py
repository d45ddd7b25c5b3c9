"""The map as a PNG, for a browser without WebGL and for a report.

Shape letters in this file
    h, w   pixels
"""

import struct
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.cell_map.color_values import MISSING, ColorValues
from dist_scvi.atlas.cell_map.palettes import CATEGORIES, MISSING_COLOR, PLAIN_COLOR, SEQUENTIAL, UNCERTAINTY
from dist_scvi.atlas.cell_map.view import View, bins_of

_FAINT, _DENSE = 0.85, 12.0
"""Opacity of a single cell, and the number of cells of a bin that is opaque."""


def color_bins(
    steps_n2: NDArray[np.uint16], values: ColorValues | None, view: View, width: int, height: int
) -> NDArray[np.float32]:
    """Return for each bin its most frequent category, or the mean of its numbers; NaN without cells, shape (h, w)."""
    inside_n = view.contains(steps_n2)
    bin_n = bins_of(steps_n2[inside_n], view, width, height)
    n_bins = width * height
    if values is None:
        return np.where(np.bincount(bin_n, minlength=n_bins) > 0, 0.0, np.nan).astype(np.float32).reshape(height, width)
    value_n = values.value_n[inside_n]
    known_n = value_n != MISSING
    bin_n, value_n = bin_n[known_n], value_n[known_n].astype(np.int64)
    found = np.full(n_bins, np.nan)
    if values.kind == "numeric":
        count, total = np.bincount(bin_n, minlength=n_bins), np.bincount(bin_n, value_n, minlength=n_bins)
        present = count > 0
        found[present] = total[present] / count[present] / (MISSING - 1)
    else:
        pair, count = np.unique(bin_n * (MISSING + 1) + value_n, return_counts=True)
        order = np.lexsort((count, pair // (MISSING + 1)))  # the last of each bin has most cells
        found[pair[order] // (MISSING + 1)] = pair[order] % (MISSING + 1)
    return found.astype(np.float32).reshape(height, width)


def draw_bins(
    count_hw: NDArray[np.uint32],
    color_hw: NDArray[np.float32],
    kind: Literal["categorical", "numeric", "uncertainty", "plain"],
) -> bytes:
    """Draw bins on a transparent ground, high y above, and return the PNG.

    Parameters
    ----------
    count_hw
        Cells of each bin: opacity.
    color_hw
        What `color_bins` returns, numbers from 0 to 1: colour.
    kind
        The palette.
    """
    known_hw = np.isfinite(color_hw)
    filled_hw = np.where(known_hw, color_hw, 0)
    if kind == "categorical":
        rgb_hwc = CATEGORIES[filled_hw.astype(np.int64) % len(CATEGORIES)]
    elif kind == "plain":
        rgb_hwc = np.broadcast_to(PLAIN_COLOR, (*color_hw.shape, 3))
    else:
        ramp = SEQUENTIAL if kind == "numeric" else UNCERTAINTY
        rgb_hwc = ramp[(filled_hw.clip(0, 1) * (len(ramp) - 1)).round().astype(np.int64)]
    rgb_hwc = np.where(known_hw[..., None], rgb_hwc, MISSING_COLOR)
    share_hw = np.log1p(count_hw) / np.log1p(_DENSE)
    alpha_hw = np.where(count_hw > 0, _FAINT + (1 - _FAINT) * share_hw.clip(0, 1), 0)
    rgba_hwc = np.concatenate([rgb_hwc, np.rint(alpha_hw * 255)[..., None]], axis=2).astype(np.uint8)
    return encode_png(rgba_hwc[::-1])


def encode_png(rgba_hwc: NDArray[np.uint8]) -> bytes:
    """Return an image of 8-bit red, green, blue and opacity as PNG (ISO/IEC 15948)."""
    height, width, _ = rgba_hwc.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rgba_hwc.reshape(height, -1)], axis=1)  # filter 0
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    )
