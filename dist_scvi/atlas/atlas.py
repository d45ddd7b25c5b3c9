"""The minified atlas: posterior of every cell and the model, asked without the counts, read by range.

Shape letters in this file
    n   cells
    g   genes asked for
    k   latent dimensions
    l   labels
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dist_scvi.inference.encode_decode import (
    Indices,
    LatentCells,
    draw_latent,
    expression_query,
    normalized_expression,
    rows_asked,
)
from dist_scvi.inference.posterior import logistic_normal_mean
from dist_scvi.loaders.arrays.anndata_layout import LIBRARY, QZM, QZV, SOURCE_ROW
from dist_scvi.loaders.arrays.csr_rows import row_runs
from dist_scvi.loaders.arrays.obs_columns import Categorical, PagedArray, read_range
from dist_scvi.loaders.arrays.obs_table import ObsTable
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.stores.zarr_store import complete_array, open_root
from dist_scvi.network.fit_data import recode
from dist_scvi.network.model_files import load_model
from dist_scvi.network.model_spec import Covariate
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.storage.folder_manifest import MANIFEST as FOLDER_MANIFEST

ATLAS_FORMAT = "dist_scvi.atlas/1"
MANIFEST, CELLS, MODEL = "ATLAS.json", "cells.zarr", "model"
FACTOR = "library_factor"
"""obs column of what shares are multiplied by, where that is not the total count."""

_CHUNK_CELLS = 4096


class Atlas:
    """A minified atlas, opened by `open_atlas`. Nothing of the cells is held; every answer reads what it needs."""

    def __init__(self, path: Path, *, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.manifest = _manifest(path)
        _check_described(path, self.manifest["described"])
        self._module, self.spec = load_model(path / MODEL)
        self._module.to(device)
        self._root = open_root(path / CELLS)
        self.obs = ObsTable(self._root, self._array, uri=str(path))
        self._qzm, self._qzv = self._array(f"obsm/{QZM}"), self._array(f"obsm/{QZV}")
        self._names = PagedArray(self._array("obs/_index"), str(path), max_rows=1 << 17)
        self._library = PagedArray(self._array(f"obs/{LIBRARY}"), str(path))
        self._row = PagedArray(self._array(f"obs/{SOURCE_ROW}"), str(path))
        self.n_cells = self.obs.n_cells
        arrays = (self._qzm, self._qzv)
        found = {*(array.shape[0] for array in arrays), len(self._library), len(self._row), self.manifest["n_cells"]}
        if found != {self.n_cells}:
            raise ValueError(f"{path} disagrees with itself: its arrays hold {sorted(found)} cells, obs {self.n_cells}")
        self._factor = PagedArray(self._array(f"obs/{FACTOR}"), str(path)) if self.spec.own_library else self._library
        self._batch = self._codes(self.spec.batch) if self.spec.batch else None
        self._label = self._codes(self.spec.label) if self.spec.label and self.spec.decodes_labels else None
        self._categorical = [self._codes(covariate) for covariate in self.spec.categorical_covariates]
        self._continuous = [self.obs.numeric(key) for key in self.spec.continuous_covariates]

    @property
    def var_names(self) -> tuple[str, ...]:
        """Genes, in the order of the model."""
        return self.spec.var_names

    def select(self, **where: str) -> NDArray[np.int64]:
        """Give the cells whose obs columns have the given values, for instance ``select(cell_type="B")``.

        Raises
        ------
        ValueError
            If a column or a value is not there.
        """
        chosen = np.ones(self.n_cells, dtype=bool)
        for key, value in where.items():
            column = self.obs.categorical(key)
            if value not in column.vocabulary:
                raise ValueError(
                    f"obs column '{key}' has no value {value!r}: it has {', '.join(column.vocabulary[:20])}"
                )
            code = column.vocabulary.index(value)
            for start, stop, _ in self._spans(None):
                chosen[start:stop] &= column.codes(start, stop) == code
        return np.flatnonzero(chosen)

    def find(self, obs_names: Sequence[str]) -> NDArray[np.int64]:
        """Give the cells with these names, in the order given.

        Raises
        ------
        ValueError
            If a name is not there.
        """
        check_list("obs_names", obs_names)
        place = dict.fromkeys(obs_names, -1)
        for start, stop, _ in self._spans(None):
            for offset, name in enumerate(self._obs_names(start, stop)):
                if name in place:
                    place[name] = start + offset
        missing = [name for name, row in place.items() if row < 0]
        if missing:
            raise ValueError(
                f"{self.path} has no cell named {', '.join(missing[:3])} ({len(missing)} of {len(place)} asked for)"
            )
        return np.array([place[name] for name in obs_names], dtype=np.int64)

    def obs_names(self, indices: Indices | None = None) -> NDArray[np.object_]:
        """Give the names of cells."""
        parts = [self._obs_names(low, high)[keep_n] for low, high, keep_n in self._spans(indices)]
        return np.concatenate([np.zeros(0, dtype=object), *parts])[self._order(indices)]

    def get_latent_representation(
        self, indices: Indices | None = None, *, return_dist: bool = False, mc_samples: int = 5_000, seed: int = 0
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the mean of the posterior of each cell, shape (n, k).

        Parameters
        ----------
        indices
            Cells in the order wanted; all by default.
        return_dist
            Give mean and variance instead, before the softmax of a logistic normal.
        mc_samples, seed
            Draws that estimate the mean of a logistic normal, which has no formula, and their seed.
        """
        k, sampled = self.spec.model.n_latent, self.spec.model.latent_distribution == "ln" and not return_dist
        means, variances = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.float32)]
        for cells in self._cells(indices):
            means.append(self._mean_of_shares(cells, mc_samples, seed) if sampled else cells.qzm_nk)
            variances.append(cells.qzv_nk)
        order = self._order(indices)
        qzm_nk, qzv_nk = np.concatenate(means)[order], np.concatenate(variances)[order]
        return (qzm_nk, qzv_nk) if return_dist else qzm_nk

    def _mean_of_shares(self, cells: LatentCells, mc_samples: int, seed: int) -> NDArray[np.float32]:
        qzm_nk, qzv_nk = (torch.from_numpy(part).to(self._module.device) for part in (cells.qzm_nk, cells.qzv_nk))
        mean_nk: NDArray[np.float32] = logistic_normal_mean(qzm_nk, qzv_nk, mc_samples, seed=seed).cpu().numpy()
        return mean_nk

    def predict(
        self,
        indices: Indices | None = None,
        soft: bool = False,  # noqa: FBT001, FBT002 - the place that scvi-tools gives it
    ) -> NDArray[np.object_] | pd.DataFrame:
        """Predict the labels of cells from the means of their posteriors.

        Parameters
        ----------
        indices
            Cells in the order wanted; all by default.
        soft
            Give the probability of each label.

        Returns
        -------
        numpy.ndarray or pandas.DataFrame
            Labels, or cells by labels.

        Raises
        ------
        ValueError
            If the model is not SCANVI.
        """
        if not isinstance(self._module, SCANVAE) or self.spec.label is None:
            raise ValueError(f"{self.path} was made with {self.spec.model.model_name}: only SCANVI predicts labels")
        labels = np.array(self.spec.label.categories, dtype=object)
        parts = [np.zeros((0, len(labels)), np.float32)]
        with torch.no_grad():
            for cells in self._cells(indices):
                z_nk, _ = draw_latent(self._module, cells, 0, None)
                parts.append(self._module.probabilities(z_nk).cpu().numpy())
        probability_nl = np.concatenate(parts)[self._order(indices)]
        if soft:
            return pd.DataFrame(probability_nl, index=self.obs_names(indices), columns=labels)
        predicted_n: NDArray[np.object_] = labels[probability_nl.argmax(axis=1)]
        return predicted_n

    def get_normalized_expression(
        self,
        gene_list: Sequence[str] | None = None,
        *,
        indices: Indices | None = None,
        transform_batch: str | Sequence[str] | None = None,
        library_size: float | str = 1.0,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Give the normalized expression of each cell, cells by genes.

        Parameters
        ----------
        gene_list
            Genes; all by default.
        indices
            Cells in the order wanted; all by default.
        transform_batch
            Batch, or batches to average over, that every cell is decoded with; by default its own.
        library_size
            Factor of the shares, or ``"latent"`` for each cell's observed total count.
        n_samples
            Draws of the posterior to average over. By default its mean is decoded, which is deterministic.
        seed
            Seed of the draws; a cell's draws do not depend on which other cells are asked for.

        Raises
        ------
        ValueError
            If a gene or batch is not known, or a number is out of range.
        """
        query = expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            seed=seed,
        )
        genes = [self.var_names[index] for index in query.gene_index]
        parts = [normalized_expression(self._module, cells, query) for cells in self._cells(indices)]
        value_ng = np.concatenate([np.zeros((0, len(genes)), np.float32), *parts])[self._order(indices)]
        return pd.DataFrame(value_ng, index=self.obs_names(indices), columns=genes)

    def mean_expression(
        self,
        groupby: str,
        gene_list: Sequence[str] | None = None,
        *,
        indices: Indices | None = None,
        transform_batch: str | Sequence[str] | None = None,
        library_size: float | str = 1.0,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Average normalized expression over the cells of each category of an obs column, streaming.

        Returns
        -------
        pandas.DataFrame
            Categories that have cells, by genes. Cells without a category are left out. The arguments are those of
            `get_normalized_expression`.
        """
        query = expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            seed=seed,
        )
        column = self.obs.categorical(groupby)
        total = np.zeros((len(column.vocabulary) + 1, len(query.gene_index)))
        for start, stop, keep_n in self._spans(indices):
            value_ng = normalized_expression(self._module, self._read(start, stop, keep_n), query)
            np.add.at(total, column.codes(start, stop)[keep_n], value_ng)  # code -1 falls on the last row
        sizes = self.group_sizes(groupby, indices)
        mean = total[: len(sizes)] / np.maximum(sizes.to_numpy(), 1)[:, None]
        frame = pd.DataFrame(mean, index=sizes.index, columns=[self.var_names[index] for index in query.gene_index])
        return frame[sizes > 0]

    def group_sizes(self, groupby: str, indices: Indices | None = None) -> "pd.Series[int]":
        """Count the cells, or the chosen ones, of each category of an obs column."""
        column = self.obs.categorical(groupby)
        sizes = np.zeros(len(column.vocabulary) + 1, dtype=np.int64)
        for start, stop, keep_n in self._spans(indices):
            sizes += np.bincount(column.codes(start, stop)[keep_n] + 1, minlength=len(sizes))
        return pd.Series(sizes[1:], index=pd.Index(column.vocabulary, name=groupby), name="n_cells")

    def _obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        return np.array([str(name) for name in self._names[start:stop]], dtype=object)

    def _codes(self, covariate: Covariate) -> Categorical:
        """Open an obs column with the codes of the model."""
        return recode(self.obs.categorical(covariate.key), covariate)

    def _array(self, name: str) -> Any:
        return complete_array(self._root, name)

    def _spans(self, indices: Indices | None) -> Iterator[tuple[int, int, NDArray[np.int64] | slice]]:
        """Cut the chosen cells, each once and by rising row, into reads: first, last + 1, which of these."""
        if indices is None:
            for start in range(0, self.n_cells, _CHUNK_CELLS):
                yield start, min(start + _CHUNK_CELLS, self.n_cells), slice(None)
            return
        unique_n, _ = rows_asked(indices, self.n_cells)
        for low, high in row_runs(unique_n):
            yield low, high, unique_n[slice(*np.searchsorted(unique_n, (low, high)))] - low

    def _order(self, indices: Indices | None) -> NDArray[np.int64] | slice:
        """Put what was read by rising row into the order asked for."""
        return slice(None) if indices is None else rows_asked(indices, self.n_cells)[1]

    def _cells(self, indices: Indices | None) -> Iterator[LatentCells]:
        return (self._read(*span) for span in self._spans(indices))

    def _read(self, start: int, stop: int, keep_n: NDArray[np.int64] | slice) -> LatentCells:
        """Read the cells ``[start, stop)``, of these only `keep_n`."""
        n = stop - start
        empty = np.zeros((n, 0))

        def table(parts: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
            return (np.stack(parts, axis=1) if parts else empty).astype(dtype)[keep_n]

        return LatentCells(
            self._row[start:stop][keep_n],
            read_range(self._qzm, start, stop, str(self.path))[keep_n],
            read_range(self._qzv, start, stop, str(self.path))[keep_n],
            self._factor[start:stop][keep_n],
            self._batch.required_codes(start, stop)[keep_n] if self._batch else np.zeros(n, np.int32)[keep_n],
            self._label.codes(start, stop)[keep_n] if self._label else np.full(n, -1, np.int32)[keep_n],
            table([column.required_codes(start, stop) for column in self._categorical], np.int32),
            table([column.values(start, stop) for column in self._continuous], np.float32),
        )


def open_atlas(path: str | Path, *, device: torch.device | str = "cpu") -> Atlas:
    """Open a minified atlas. Only names and sizes are read.

    Parameters
    ----------
    path
        The folder that `minify` wrote.
    device
        Where the model computes.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is no minified atlas, or is damaged.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no minified atlas {folder}: make one with 'dist-scvi minify RUN'")
    return Atlas(folder, device=device)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = dict(json.loads((path / MANIFEST).read_text()))
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no minified atlas: its {MANIFEST} is missing or unreadable ({error!r})") from error
    if found != ATLAS_FORMAT:
        raise ValueError(f"{path} has format {found!r}: {ATLAS_FORMAT!r} is needed, read it with a newer version")
    kinds = (type(manifest.get("n_cells")), type(manifest.get("described")))
    if kinds != (int, dict):
        raise ValueError(f"{path / MANIFEST} lacks n_cells or described: restore it from a copy or minify again")
    return manifest


def describing_files(path: Path) -> dict[str, str]:
    """Give the SHA-256 of the small files of the atlas `path` that say how the others are read.

    They are the metadata of arrays and tables, genes, categories, and the manifest of the model, which holds the hashes
    of its weights. The others are checksummed chunk by chunk.
    """
    names = {file.relative_to(path) for file in (path / CELLS).rglob("*") if file.is_file()}
    small = {name for name in names if name.name == "zarr.json" or name.parts[1] == "var" or "categories" in name.parts}
    small.add(Path(MODEL) / FOLDER_MANIFEST)
    return {name.as_posix(): hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sorted(small)}


def _check_described(path: Path, described: dict[str, str]) -> None:
    found = describing_files(path)
    differ = sorted(name for name in found.keys() | described.keys() if found.get(name) != described.get(name))
    if differ:
        raise ValueError(
            f"{path / differ[0]} is missing, new or changed: its SHA-256 is not that in {MANIFEST}; restore it from a "
            "copy or minify again"
        )
