"""``pp.scvi``: one call from counts to latent space and denoised expression, with the interface of scanpy 1.5.

Shape letters in this file
    n   cells
    g   genes that are trained on
    k   latent dimensions
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from dist_scvi.inference.encode_decode import decode_draw, latent_cells
from dist_scvi.inference.output_identity import model_fingerprint
from dist_scvi.inference.posterior import logistic_normal_mean
from dist_scvi.inference.zarr_output import write_rows
from dist_scvi.loaders.arrays.anndata_layout import finish_table, new_array, new_strings
from dist_scvi.loaders.data import open_data
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.stores.anndata_store import AnnDataStore
from dist_scvi.loaders.stores.open import open_store
from dist_scvi.model.cell_source import anndata_of
from dist_scvi.model.linear_scvi import LinearSCVI
from dist_scvi.model.scvi import SCVI

if TYPE_CHECKING:
    from anndata import AnnData

_MARK = "highly_variable"
_OF_TRAIN = (
    *("validation_size", "batch_size", "early_stopping", "check_val_every_n_epoch", "lanes", "run"),
    "enable_progress_bar",
)
_MC_SAMPLES = 5_000
_LATENT, _SHARES, _RATE, _LOADINGS = "X_scvi", "X_scvi_denoised", "X_scvi_sample_rate", "ldvae_loadings"


def scvi(  # noqa: PLR0913, PLR0917 - the arguments of scanpy
    adata: "AnnData | str | Path",
    n_hidden: int = 128,
    n_latent: int = 10,
    n_layers: int = 1,
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
    n_epochs: int = 400,
    lr: float = 1e-3,
    train_size: float = 1.0,
    batch_key: str | None = None,
    use_highly_variable_genes: bool = True,  # noqa: FBT001, FBT002 - the places that scanpy gave them
    subset_genes: Sequence[str | int] | None = None,
    linear_decoder: bool = False,  # noqa: FBT001, FBT002
    copy: bool = False,  # noqa: FBT001, FBT002
    use_cuda: bool = True,  # noqa: FBT001, FBT002
    return_posterior: bool = True,  # noqa: FBT001, FBT002
    trainer_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> "SCVI | LinearSCVI | AnnData | tuple[AnnData, SCVI | LinearSCVI] | None":
    """Train SCVI or LinearSCVI, and write latent representation and denoised expression of each cell.

    Parameters
    ----------
    adata
        Raw counts in memory, or a store on a disk. Next to a store at ``PATH`` the results are written to
        ``PATH.scvi.zarr``, an AnnData without counts.
    n_hidden, n_latent, n_layers, dispersion
        As in `SCVI`.
    n_epochs, lr, train_size
        Epochs, learning rate, share of the cells to train on.
    batch_key
        obs column of the batch.
    use_highly_variable_genes
        Keep the genes that ``var["highly_variable"]`` marks, if there is such a column.
    subset_genes
        Keep these genes instead, by name or position.
    linear_decoder
        Train LinearSCVI.
    copy
        Return an AnnData with the results and leave `adata` as it is; not for a store.
    use_cuda
        Use a GPU if there is one.
    return_posterior
        Return the model.
    trainer_kwargs
        Further arguments of ``SCVI.train``, and keys of the section ``train`` of a run's configuration.
    model_kwargs
        Further arguments of the model.

    Returns
    -------
    SCVI, LinearSCVI, AnnData, both, or None
        The AnnData if `copy`, the model if `return_posterior`, in this order.

        ``obsm["X_scvi"]``: mean of the latent representation, shape (n, k). ``obsm["X_scvi_denoised"]``: share of each
        gene at a draw of it, (n, g). ``obsm["X_scvi_sample_rate"]``: expected count there, (n, g).
        ``uns["ldvae_loadings"]``, with `linear_decoder`: weight of each latent dimension in each gene, (g, k).

    Raises
    ------
    ValueError
        If a gene does not exist or none is left, the counts are not raw counts, `copy` is used with a store, or the
        folder for its results exists.

    Notes
    -----
    ``scanpy.external.pp.scvi`` of scanpy 1.5. The posterior that it returned had the same methods under older names.
    """
    in_memory = anndata_of(adata)
    if in_memory is None and copy:
        raise ValueError(f"copy=True is for an AnnData in memory: the results for {adata} are written next to it")
    out = _free_place(adata) if in_memory is None else None
    genes = _genes(adata, in_memory, subset_genes, marked=use_highly_variable_genes)
    data = open_data(in_memory if in_memory is not None else adata, genes=genes, batch_key=batch_key)
    kind = LinearSCVI if linear_decoder else SCVI
    model = kind(data, n_hidden, n_latent, n_layers, dispersion=dispersion, **(model_kwargs or {}))  # type: ignore[arg-type]
    further = {"lr": lr, **(trainer_kwargs or {})}
    arguments = {key: further.pop(key) for key in _OF_TRAIN if key in further}
    model.train(n_epochs, "auto" if use_cuda else "cpu", train_size=train_size, plan_kwargs=further, **arguments)
    if out is not None:
        _write_next_to(model, out)
    if in_memory is not None:
        in_memory = in_memory.copy() if copy else in_memory
        _write_into(model, in_memory)
        if copy:
            return (in_memory, model) if return_posterior else in_memory
    return model if return_posterior else None


def _free_place(source: Any) -> Path:
    """Return the folder for the results next to a store. Called before training, so that a conflict costs no run."""
    if "://" in str(source):
        raise ValueError(
            f"{source} is a URL, next to which nothing is written: train with dist_scvi.model.SCVI, and give a folder "
            "as out to its methods"
        )
    path = Path(source).expanduser().resolve()
    out = path.with_name(f"{path.name}.scvi.zarr")
    if out.exists():
        raise ValueError(f"{out} exists, where the results for {source} are to be written: move it or remove it")
    return out


def _genes(
    source: Any, in_memory: "AnnData | None", subset_genes: Sequence[str | int] | None, *, marked: bool
) -> list[str] | None:
    """Return the names of the genes to train on; None for all."""
    check_list("subset_genes", subset_genes)
    if subset_genes is None:
        genes = _marked(source, in_memory) if marked else None
    else:
        genes = [gene for gene in subset_genes if isinstance(gene, str)]
        if len(genes) < len(subset_genes):
            genes = _at(in_memory.var_names if in_memory is not None else open_store(source).var_names, subset_genes)
    if genes is not None and not genes:
        raise ValueError(f"no gene is left: var['{_MARK}'] marks none, or subset_genes is empty")
    return genes


def _at(var_names: Any, places: Sequence[str | int]) -> list[str]:
    """Return the names of the genes at some positions."""
    # A boolean is an int in Python: a mask would otherwise choose the genes 0 and 1.
    whole = [isinstance(at, int | np.integer) and not isinstance(at, bool) for at in places]
    wrong = [
        at for at, is_whole in zip(places, whole, strict=True) if not is_whole or not 0 <= int(at) < len(var_names)
    ]
    if wrong:
        raise ValueError(
            f"subset_genes holds {wrong[0]!r}: names of genes are needed, or places from 0 to {len(var_names) - 1}"
        )
    return [str(var_names[at]) for at in places]


def _marked(source: Any, in_memory: "AnnData | None") -> list[str] | None:
    """Return the names of the genes marked as highly variable; None if there is no such column."""
    if in_memory is not None:
        return [str(name) for name in in_memory.var_names[in_memory.var[_MARK]]] if _MARK in in_memory.var else None
    store = open_store(source)
    return store.marked_genes(_MARK) if isinstance(store, AnnDataStore) else None


def _answers(model: "SCVI | LinearSCVI", minibatch: MiniBatch) -> dict[str, NDArray[Any]]:
    """Return the results for some cells; shares and rates are from the same draw of each cell."""
    cells = latent_cells(model.module, minibatch)
    px = decode_draw(model.module, cells, seed=0, draw=0)
    mean_nk = cells.qzm_nk
    if model.spec.model.latent_distribution == "ln":
        qzv_nk = torch.from_numpy(cells.qzv_nk)
        mean_nk = logistic_normal_mean(torch.from_numpy(mean_nk), qzv_nk, _MC_SAMPLES).numpy()
    return {
        f"obsm/{_LATENT}": mean_nk,
        f"obsm/{_SHARES}": px.scale_ng.cpu().numpy(),
        f"obsm/{_RATE}": px.rate_ng.cpu().numpy(),
    }


def _write_into(model: "SCVI | LinearSCVI", target: "AnnData") -> None:
    columns = model.select().answer(lambda minibatch: tuple(_answers(model, minibatch).values()), model.world)
    for name, values in zip((_LATENT, _SHARES, _RATE), columns, strict=True):
        target.obsm[name] = values
    if isinstance(model, LinearSCVI):
        target.uns[_LOADINGS] = model.get_loadings()


def _write_next_to(model: "SCVI | LinearSCVI", out: Path) -> None:
    write_rows(
        model.select(),
        partial(_answers, model),
        out,
        identity={"model": model_fingerprint(model.module, model.spec), "asked": "pp.scvi"},
        var_names=model.spec.var_names,
        world=model.world,
        finish=partial(_write_loadings, model) if isinstance(model, LinearSCVI) else None,
    )


def _write_loadings(model: LinearSCVI, root: zarr.Group) -> None:
    frame = model.get_loadings()
    # overwrite: after a kill `finish` is called again on a group that may already have this table.
    table = root.create_group(f"uns/{_LOADINGS}", overwrite=True)
    new_strings(table, "_index", len(frame))[:] = frame.index.to_numpy(dtype=object)
    for name in frame.columns:
        values = frame[name].to_numpy(dtype=np.float32)
        new_array(table, name, values.shape, np.float32, chunk_rows=len(values))[:] = values
    finish_table(table, list(frame.columns))
