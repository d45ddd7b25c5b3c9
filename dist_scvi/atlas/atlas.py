"""The minified atlas: posterior of every cell and the model, queried without the counts, read by range."""

import html
from collections.abc import Mapping
from pathlib import Path

import torch

from dist_scvi.atlas.cell_atlas import CellAtlas
from dist_scvi.atlas.differential.differential_expression import differential_expression
from dist_scvi.atlas.differential.markers import markers
from dist_scvi.atlas.explain import explain
from dist_scvi.atlas.map_query import map_query
from dist_scvi.atlas.queries.abundance import abundance
from dist_scvi.atlas.queries.counterfactual import counterfactual
from dist_scvi.atlas.queries.group_expression import expression
from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.storage.atomic_files import resolve_replaced


class Atlas(CellAtlas):
    """A minified atlas, opened by `open_atlas`. No data of cells stays in memory; every query reads what it needs.

    Rows are ordered by neighbourhood in the latent space. ``atlas.read_source_row()`` and `obs_names` identify the
    cells. The methods of single cells are those of `CellAtlas`.
    """

    # Queries are functions of an `AtlasReader`, see `queries/reader.py`. Here they become methods.
    expression = expression
    differential_expression = differential_expression
    markers = markers
    explain = explain
    abundance = abundance
    counterfactual = counterfactual
    map = map_query

    def __repr__(self) -> str:
        return describe_atlas(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(describe_atlas(self))}</pre>"


def describe_atlas(atlas: AtlasStore) -> str:
    """Return a few lines that describe an atlas."""
    spec, obs = atlas.spec, atlas.obs
    lines = [f"Atlas of {atlas.n_cells} cells and {atlas.n_genes} genes: {atlas.uri}"]
    lines.append(f"  model   {spec.model.model_name}, {atlas.n_latent} latent dimensions, {spec.n_batch} batches")
    lines.append(f"  obs     {', '.join(obs.columns())}")
    if len(atlas.var.columns):
        lines.append(f"  var     {', '.join(map(str, atlas.var.columns))}")
    if atlas.leaves is None:
        lines.append(f"  format  {atlas.format}, without leaves: upgrade_atlas adds them")
        return "\n".join(lines)
    lines.append(f"  leaves  {atlas.leaves.n_leaves} of {', '.join(atlas.leaves.columns) or 'no column'}")
    sizes = atlas.manifest["bytes_per_cell"]
    lines.append(f"  size    {sizes['query']:.0f} bytes a cell in queries, {sizes['total']:.0f} with obs and names")
    lines.append(f"  digest  {atlas.digest[:16]}")
    return "\n".join(lines)


def describe_writing(path: str, *, storage_options: Mapping[str, str] | None = None) -> str:
    """Return a few lines about an atlas that was just written: its size, its leaves, and what was dropped."""
    atlas = open_atlas(path, storage_options=storage_options)
    lines = [describe_atlas(atlas)]
    lines += [f"  dropped obs column '{key}': {reason}" for key, reason in atlas.manifest["dropped_obs"].items()]
    return "\n".join(lines)


def open_atlas(
    path: str | Path, *, device: torch.device | str = "cpu", storage_options: Mapping[str, str] | None = None
) -> Atlas:
    """Open a minified atlas. Only the manifest and the model are read; all else is checked when it is first read.

    Parameters
    ----------
    path
        The folder that `minify` wrote, or its URL (``s3://``, ``gs://``, ``https://``).
    device
        Device of the model.
    storage_options
        Options of a URL; see `dist_scvi.loaders.arrays.remote.RemoteObjects`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is not a minified atlas, is damaged, or is of a newer version.
    """
    if "://" in str(path):
        return Atlas(str(path), device=device, storage_options=storage_options)
    folder = Path(path).expanduser().resolve()
    if not resolve_replaced(folder).is_dir():
        raise FileNotFoundError(f"there is no minified atlas {folder}: make one with 'dist-scvi minify RUN'")
    return Atlas(str(folder), device=device)
