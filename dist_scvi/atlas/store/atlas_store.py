"""A minified atlas opened for reading, on a disk or in object storage.

Shape letters in this file
    n   cells
    g   genes
    k   latent dimensions
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dist_scvi.atlas.store.cells import AtlasCells, CheckedCells
from dist_scvi.atlas.store.first_format import FirstFormatCells, read_first_manifest
from dist_scvi.atlas.store.genes import GeneNames
from dist_scvi.atlas.store.leaves import Leaves
from dist_scvi.atlas.store.manifest import LARGEST_MANIFEST, format_of, read_manifest
from dist_scvi.atlas.store.names import (
    CELLS,
    FACTOR,
    FORMAT_1,
    LEAF,
    LIBRARY,
    LOG_NORMALIZER,
    MANIFEST,
    MODEL,
    SOURCE_ROW,
)
from dist_scvi.atlas.store.neighbourhoods import Neighbourhoods
from dist_scvi.atlas.store.obs import AtlasObs, take_rows
from dist_scvi.atlas.store.raw_arrays import CheckedFiles, RawArray, Rows, TextArray
from dist_scvi.inference.encode_decode import Indices, LatentCells, rows_asked
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.arrays.remote import open_objects
from dist_scvi.loaders.data import without_category
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.network.fit_data import recode
from dist_scvi.network.model_files import load_model
from dist_scvi.network.model_spec import Covariate
from dist_scvi.storage.atomic_files import resolve_replaced
from dist_scvi.storage.folder_manifest import MANIFEST as FOLDER_MANIFEST
from dist_scvi.storage.run_storage import open_run_storage

_STRETCH = 1 << 16


class AtlasStore:
    """The data of a minified atlas, read by rows in any order. No data of cells stays in memory.

    Attributes
    ----------
    uri, storage_options
        Path or URL of the atlas, and options of the URL.
    format
        2, or 1 for an atlas of version 0.1, which has neither leaves nor neighbourhoods.
    manifest
        ``ATLAS.json``, without the list of files.
    digest
        Identity of the atlas, which changes with any file; empty in format 1.
    spec, module
        The model.
    obs
        Columns of the cells.
    leaves, neighbourhoods
        See `Leaves` and `Neighbourhoods`; None in format 1.
    """

    leaves: Leaves | None
    neighbourhoods: Neighbourhoods | None

    def __init__(
        self,
        uri: str,
        *,
        device: torch.device | str = "cpu",
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self.uri, self.storage_options = uri, storage_options
        content_uri = uri if "://" in uri else str(resolve_replaced(Path(uri)))
        objects = open_objects(content_uri, storage_options=storage_options)
        # The size is checked before the manifest is read: a wrong path may name a file of any size.
        size = objects.size(MANIFEST)
        if size is None or size > LARGEST_MANIFEST:
            problem = "is missing" if size is None else f"has {size} bytes, more than any atlas needs"
            raise ValueError(f"{uri} is no minified atlas: its {MANIFEST} {problem}")
        content = bytes(objects.read_whole(MANIFEST))
        self.format = 1 if format_of(content, uri) == FORMAT_1 else 2
        self._cells: AtlasCells
        if self.format == 1:
            if "://" in uri:
                raise ValueError(f"{uri} has {FORMAT_1!r}, which is read from disks only: copy it to one")
            self.digest, self.leaves, self.neighbourhoods = "", None, None
            self.manifest: dict[str, Any] = read_first_manifest(Path(content_uri), content)
            self._cells = FirstFormatCells(Path(content_uri))
        else:
            manifest = read_manifest(content, uri)
            files = CheckedFiles(objects, manifest.files)
            files.read_whole(f"{MODEL}/{FOLDER_MANIFEST}")  # which names the hashes of the other files of the model
            self._files, self._arrays, self._var_columns = files, manifest.arrays, manifest.var
            self.digest, self.manifest = manifest.digest, manifest.model_dump(mode="json", exclude={"files"})
            self._cells = CheckedCells(files, manifest)
            self.leaves, self.neighbourhoods = Leaves(files, manifest), Neighbourhoods(files, manifest)
        self.module, self.spec = load_model(
            open_run_storage(content_uri, storage_options=storage_options).subfolder(MODEL)
        )
        self.module.to(device)
        self.obs: AtlasObs = self._cells.obs
        self.n_cells = self._cells.n_cells
        self.n_latent, self.n_genes = self.spec.model.n_latent, len(self.spec.var_names)
        self._check_sizes()

    def _check_sizes(self) -> None:
        expected = {"n_cells": self.n_cells, "n_genes": self.n_genes}
        if self.format != 1:
            expected["n_latent"] = self.n_latent
        for key, found in expected.items():
            if self.manifest[key] != found:
                raise ValueError(
                    f"{self.uri} disagrees with itself: {key} is {self.manifest[key]} in {MANIFEST} and {found} in its "
                    "arrays or model; restore it from a copy"
                )

    @property
    def var_names(self) -> tuple[str, ...]:
        """Genes, in the order of the model."""
        return self.spec.var_names

    @cached_property
    def var(self) -> pd.DataFrame:
        """Columns of the genes that the source has, such as their symbols; a row for each of `var_names`."""
        index = pd.Index(self.var_names)
        if self.format == 1:
            return pd.DataFrame(index=index)
        return pd.DataFrame({key: self._var_column(key) for key in self._var_columns}, index=index)

    def _var_column(self, key: str) -> NDArray[Any]:
        name = f"{CELLS}/var/{key}"
        if self._arrays[name].dtype == "str":
            return TextArray(self._files, name, self._arrays)[:]
        return RawArray(self._files, name, self._arrays).take(None)

    @cached_property
    def _gene_names(self) -> GeneNames:
        return GeneNames(self.var, self.uri)

    def has_gene(self, gene: str) -> bool:
        """Return whether `gene` is a name of a gene, or its text in a column of `var`."""
        return self._gene_names.has(gene)

    def gene_index(self, genes: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of genes in `var_names`, shape (g,); a gene may be named by any column of `var`.

        Raises
        ------
        ValueError
            If one is not known (the nearest are listed) or a symbol is that of several genes.
        """
        return self._gene_names.index(genes)

    def read_latent(self, rows: Rows = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and variance of q(z | x), before any softmax, each of shape (n, k).

        Parameters
        ----------
        rows
            Rows of the atlas: a slice, or whole numbers in any order, which may repeat; all by default.
        """
        return self._cells.latent(rows)

    def read_mean(self, rows: Rows = None) -> NDArray[np.float32]:
        """Return the mean of q(z | x) alone; see `read_latent`."""
        return self._cells.mean(rows)

    def read_library(self, rows: Rows = None) -> NDArray[np.float32]:
        """Return the total count of each cell, shape (n,)."""
        return self._required(LIBRARY, rows)

    def read_factor(self, rows: Rows = None) -> NDArray[np.float32]:
        """Return the factor of the scales: total count, size factor, or that of the mean of a latent library."""
        return self._required(FACTOR if self.spec.own_library else LIBRARY, rows)

    def read_log_normalizer(self, rows: Rows = None) -> NDArray[np.float32] | None:
        """Return log of the sum over genes of exp(logit) at the mean of q, with the cell's own batch; shape (n,).

        It allows a gene to be decoded without the others. None in format 1, and for models with size factors.
        """
        return self._cells.column(LOG_NORMALIZER, rows)

    def read_source_row(self, rows: Rows = None) -> NDArray[np.int64]:
        """Return the row of each cell in the source, its identity, which keys its draws; shape (n,)."""
        return self._required(SOURCE_ROW, rows).astype(np.int64)

    def read_leaf(self, rows: Rows = None) -> NDArray[np.int32] | None:
        """Return the leaf of each cell, shape (n,); None in format 1."""
        found = self._cells.column(LEAF, rows)
        return None if found is None else found.astype(np.int32)

    def read_cells(self, rows: Rows = None) -> LatentCells:
        """Return cells with all data that decoding needs."""
        mean_nk, variance_nk = self.read_latent(rows)
        n, spec = len(mean_nk), self.spec
        label = spec.label if spec.decodes_labels else None
        categorical = [self._codes(covariate, rows, required=True) for covariate in spec.categorical_covariates]
        continuous = [self._numbers(key, rows) for key in spec.continuous_covariates]
        return LatentCells(
            self.read_source_row(rows),
            mean_nk,
            variance_nk,
            self.read_factor(rows),
            self._codes(spec.batch, rows, required=True) if spec.batch else np.zeros(n, np.int32),
            self._codes(label, rows, required=False) if label else np.full(n, -1, np.int32),
            np.stack(categorical, axis=1) if categorical else np.zeros((n, 0), np.int32),
            np.stack(continuous, axis=1) if continuous else np.zeros((n, 0), np.float32),
        )

    def chunks(self, size: int = _STRETCH) -> Iterator[slice]:
        """Split all rows into ranges of at most `size`, each within one file."""
        for low in range(0, self.n_cells, self._cells.chunk_rows):
            high = min(low + self._cells.chunk_rows, self.n_cells)
            yield from (slice(start, min(start + size, high)) for start in range(low, high, size))

    def obs_names(self, rows: Indices | slice | None = None) -> NDArray[np.object_]:
        """Return the names of cells, shape (n,): of a slice, of rows in any order, or of a mask."""
        if rows is None or isinstance(rows, slice):
            return self.obs.names(rows)
        row_n, order_n = rows_asked(rows, self.n_cells)
        return self.obs.names(row_n)[order_n]

    def rows_named(self, obs_names: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of the cells with these names, in the order given.

        Raises
        ------
        ValueError
            If a name does not exist.
        """
        check_list("obs_names", obs_names)
        # Only the requested names are kept: an index of all names may exceed the memory.
        place = dict.fromkeys(obs_names, -1)
        for rows in self.chunks():
            for offset, name in enumerate(self.obs.names(rows)):
                if name in place:
                    place[name] = rows.start + offset
        missing = [name for name, row in place.items() if row < 0]
        if missing:
            raise ValueError(
                f"{self.uri} has no cell named {', '.join(missing[:3])} ({len(missing)} of {len(place)} requested)"
            )
        return np.array([place[name] for name in obs_names], dtype=np.int64)

    def _required(self, name: str, rows: Rows) -> NDArray[Any]:
        found = self._cells.column(name, rows)
        if found is None:
            raise ValueError(f"{self.uri} lacks obs/{name}: it is damaged; restore it from a copy or minify again")
        return found

    @cached_property
    def _covariates(self) -> dict[str, Categorical]:
        """The covariates of the model, with its codes."""
        spec, wanted = self.spec, [self.spec.batch, *self.spec.categorical_covariates]
        found = {one.key: recode(self.obs.categorical(one.key), one) for one in wanted if one}
        if spec.decodes_labels and spec.label:
            column = self.obs.categorical(spec.label.key)
            if spec.unlabeled_category is not None:
                column = without_category(column, spec.unlabeled_category)
            found[spec.label.key] = recode(column, spec.label)
        return found

    def _codes(self, covariate: Covariate, rows: Rows, *, required: bool) -> NDArray[np.int32]:
        column = self._covariates[covariate.key]
        taken_n = take_rows(column.stored, rows)
        return replace(column, stored=taken_n).codes_of([(0, len(taken_n))], required=required)

    def _numbers(self, key: str, rows: Rows) -> NDArray[np.float32]:
        column = self.obs.numeric(key)
        taken_n = take_rows(column.stored, rows)
        return replace(column, stored=taken_n).values(0, len(taken_n))
