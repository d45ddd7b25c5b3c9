"""Identity of an output in plain values, by which a later start recognizes the same request."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.loaders import CellData
from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.network.model_files import model_files
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE

_PROBES = 8
_PROBE_CELLS = 64


def to_json(identity: Mapping[str, Any]) -> str:
    """Serialize an identity as JSON; numpy arrays and numbers are written as lists and numbers."""
    return json.dumps(identity, indent=1, sort_keys=True, default=lambda value: value.tolist())


def model_fingerprint(module: VAE, spec: ModelSpec) -> str:
    """Return the SHA-256 of the weights and the specification of a model."""
    return digest(*model_files(module, spec).values())


def cells_fingerprint(data: CellData) -> dict[str, Any]:
    """Return what identifies cells: their location, number, genes and columns, and the content of a few of them."""
    # A few ranges of rows instead of all: a hash of all counts would read the whole store before the first result.
    described = {"layer": data.store.layer, **data.describe()}
    return {
        "uri": data.store.uri,
        "n_cells": data.n_cells,
        "n_entries": data.store.n_entries,
        "described": digest(to_json(described)),
        "probed": digest(*(part for span in probes(data.n_cells) for part in _probe(data, *span))),
    }


def probes(n_cells: int) -> Ranges:
    """Return a few ranges of rows spread evenly over `n_cells`."""
    starts = np.linspace(0, max(0, n_cells - _PROBE_CELLS), _PROBES).astype(int)
    return [(start, min(start + _PROBE_CELLS, n_cells)) for start in np.unique(starts).tolist()]


def digest(*parts: bytes | str | NDArray[Any]) -> str:
    """Return the SHA-256 of some parts."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else part.tobytes()
        found.update(len(content).to_bytes(8, "little"))  # so that ("ab", "c") and ("a", "bc") differ
        found.update(content)
    return found.hexdigest()


def _probe(data: CellData, start: int, stop: int) -> list[bytes | str | NDArray[Any]]:
    """Return counts, covariates and names of some cells."""
    counts, columns = data.store.read(start, stop), data.columns_of([(start, stop)])
    covariates = [columns.batch_n, columns.label_n, columns.categorical_nc, columns.continuous_nc]
    sizes = [] if columns.size_factor_n is None else [columns.size_factor_n]
    names = "\n".join(map(str, data.store.obs_names(start, stop)))
    return [names, counts.counts_e, counts.genes_e, counts.indptr, *covariates, *sizes]
