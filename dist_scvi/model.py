"""SCVI as a notebook holds it: names, arguments and defaults of ``scvi.model.SCVI``, for cells in memory or on disk.

Shape letters in this file
    n   cells
    g   genes
    k   latent dimensions
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from .atlas import Atlas, open_atlas
from .config import DataConfig, ModelConfig, RunConfig, TrainConfig
from .folder import MANIFEST
from .infer import Indices, LatentCells, expression_query, normalized_expression, rows_asked
from .loaders.data import CellData, open_data
from .loaders.minibatch import MiniBatch
from .loaders.rows import row_runs
from .loaders.stream import row_stream, rows_minibatch
from .metrics import Progress, Row
from .minify import minify
from .noise import row_normal
from .spec import fit_to_spec, load_model, save_model, spec_of
from .train import train
from .world import World, worker_device

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK_CELLS = 1024


class SCVI:
    """Single-cell variational inference (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2).

    Parameters
    ----------
    data
        Cells from ``dist_scvi.open``; an AnnData, a Zarr folder or an .h5ad file is opened without covariates.
    n_hidden, n_latent, n_layers, dropout_rate
        Width and depth of the networks; dropout is in the encoder.
    dispersion
        ``"gene"`` or ``"gene-batch"``.
    gene_likelihood
        ``"zinb"``, ``"nb"`` or ``"poisson"``.
    use_observed_lib_size
        Only True is offered: a cell's total count is its library size.
    seed
        Seed of weights, split, order and noise.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    scvi-tools 1.4.2, model/_scvi.py. Under one seed the weights are bit for bit those that scvi-tools makes after
    ``torch.manual_seed(seed)``.

    Examples
    --------
    >>> data = dist_scvi.open("atlas.zarr", batch_key="donor")  # doctest: +SKIP
    >>> model = dist_scvi.SCVI(data, n_latent=30)  # doctest: +SKIP
    >>> model.train(max_epochs=10)  # doctest: +SKIP
    >>> latent = model.get_latent_representation()  # doctest: +SKIP
    """

    def __init__(
        self,
        data: "CellData | AnnData | str | Path",
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson"] = "zinb",
        *,
        use_observed_lib_size: Literal[True] = True,
        seed: int = 0,
    ) -> None:
        self.data = data if isinstance(data, CellData) else open_data(data)
        config = ModelConfig(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
        )
        self.spec = spec_of(config, seed, self.data)
        self.module = self.spec.build().to(worker_device(0)).eval()
        self.is_trained = False
        self._history: list[Row] = []

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = 128,
        train_size: float | None = None,
        validation_size: float | None = None,
        lr: float = 1e-3,
        eps: float = 0.01,
        weight_decay: float = 1e-6,
        n_steps_kl_warmup: int | None = None,
        n_epochs_kl_warmup: int | None = None,
        check_val_every_n_epoch: int = 1,
        lanes: int = 1,
        run: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        """Train from the model's initial weights, in this process.

        Parameters
        ----------
        max_epochs
            By default ``min(400, 400 * 20000 / cells)``, at least 1.
        batch_size
            Cells of a step.
        train_size, validation_size
            Shares of the cells; the rest is the test split.
        lr, eps, weight_decay
            Of Adam.
        n_steps_kl_warmup
            Steps over which the weight of the KL term rises to 1; by default half of the run, at most 400 epochs.
        n_epochs_kl_warmup
            Count it in epochs, as scvi-tools does (its default is 400).
        check_val_every_n_epoch
            Epochs between validations.
        lanes
            Streams that share a minibatch. With 8, say, the run can be continued by 2, 4 or 8 workers.
        run
            Folder for checkpoints and metrics. A run that lies there already is continued.
        progress
            Show progress.

        Raises
        ------
        ValueError
            If the model is trained and no run is named, or the cells are no raw counts.
        """
        if self.is_trained and run is None:
            raise ValueError("this model is trained: make a new one, or name the folder of its run to continue it")
        config = RunConfig(
            run=str(run or ""),
            seed=self.spec.seed,
            data=DataConfig(
                uri=self.data.store.uri,
                layer=self.data.store.layer,
                batch_key=self.data.batch.key if self.data.batch else None,
                labels_key=self.data.label.key if self.data.label else None,
                categorical_covariate_keys=tuple(column.key for column in self.data.categorical_covariates),
                continuous_covariate_keys=tuple(column.key for column in self.data.continuous_covariates),
            ),
            model=self.spec.model,
            train=TrainConfig(
                max_epochs=max_epochs,
                batch_size=batch_size,
                lanes=lanes,
                train_size=train_size,
                validation_size=validation_size,
                lr=lr,
                eps=eps,
                weight_decay=weight_decay,
                n_steps_kl_warmup=n_steps_kl_warmup,
                n_epochs_kl_warmup=n_epochs_kl_warmup,
                check_val_every_n_epoch=check_val_every_n_epoch,
            ),
        )
        shown = Progress() if progress else None
        world = World(device=self.module.px_r.device)
        folder = Path(run).expanduser().resolve() if run else None
        trained = train(config, data=self.data, world=world, folder=folder, on_metrics=shown)
        if folder is not None:
            save_model(folder / "model", trained.module, trained.spec)
        if shown is not None:
            shown.close()
        self.module, self._history, self.is_trained = trained.module, trained.history, True

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metrics by epoch, under the names of scvi-tools: ``elbo_train``, ``elbo_validation`` and so on."""
        names = {"elbo": "elbo", "reconstruction": "reconstruction_loss", "kl": "kl_local"}
        tables = {}
        for kind in ("train", "validation"):
            rows = [row for row in self._history if row["kind"] == kind]
            for key, name in names.items():
                frame = pd.DataFrame(
                    {"epoch": [row["epoch"] for row in rows], f"{name}_{kind}": [row[key] for row in rows]}
                )
                tables[f"{name}_{kind}"] = (
                    frame.groupby("epoch").mean() if kind == "train" else frame.set_index("epoch")
                )
        return tables

    @torch.no_grad()
    def get_latent_representation(
        self,
        indices: Indices | None = None,
        *,
        give_mean: bool = True,
        return_dist: bool = False,
        seed: int = 0,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the latent representation of cells, shape (n, k).

        Parameters
        ----------
        indices
            Cells in the order wanted; all by default.
        give_mean
            Give the mean of the posterior, else one draw of it.
        return_dist
            Give mean and variance.
        seed
            Seed of the draw; a cell's draw does not depend on which others are asked for.
        """
        parts = [(cells.row_n, cells.qzm_nk, cells.qzv_nk) for cells in self._latent(indices)]
        order = slice(None) if indices is None else rows_asked(indices, self.data.n_cells)[1]
        row_n, qzm_nk, qzv_nk = (np.concatenate(part)[order] for part in zip(*parts, strict=True))
        if return_dist:
            return qzm_nk, qzv_nk
        return qzm_nk if give_mean else qzm_nk + np.sqrt(qzv_nk) * row_normal(seed, row_n, 0, qzm_nk.shape[1])

    def get_normalized_expression(
        self,
        indices: Indices | None = None,
        transform_batch: str | Sequence[str] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int | None = None,
        *,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Give the normalized expression of cells, cells by genes; the arguments are those of `Atlas`."""
        query = expression_query(
            self.spec,
            gene_list=gene_list,
            transform_batch=transform_batch,
            library_size=library_size,
            n_samples=n_samples,
            seed=seed,
        )
        parts = [(cells.row_n, normalized_expression(self.module, cells, query)) for cells in self._latent(indices)]
        row_n = np.concatenate([rows for rows, _ in parts])
        spans = [(low, high, row_n[slice(*np.searchsorted(row_n, (low, high)))]) for low, high in row_runs(row_n)]
        names = np.concatenate([self.data.store.obs_names(low, high)[part - low] for low, high, part in spans])
        genes = [self.spec.var_names[index] for index in query.gene_index]
        frame = pd.DataFrame(np.concatenate([values for _, values in parts]), index=names, columns=genes)
        return frame if indices is None else frame.iloc[rows_asked(indices, self.data.n_cells)[1]]

    @torch.no_grad()
    def get_elbo(self, indices: Indices | None = None, *, seed: int = 0) -> float:
        """Average the negative evidence lower bound over cells, at one draw of z for each; lower is better."""
        total, n_cells = 0.0, 0
        for minibatch in self._minibatches(indices):
            cells = minibatch.to(self.module.px_r.device)
            qzm_nk, qzv_nk = self.module.encode(cells.counts_ng)
            normal = torch.from_numpy(row_normal(seed, minibatch.row_n, 0, qzm_nk.shape[1])).to(qzm_nk.device)
            terms = self.module.terms(cells, qzm_nk, qzv_nk, normal)
            total += float((terms.reconstruction_n + terms.kl_n).double().sum())
            n_cells += minibatch.n_cells
        return total / n_cells

    def minify(self, path: str | Path, *, obs_columns: Sequence[str] = (), overwrite: bool = False) -> Atlas:
        """Write the minified atlas `path` and open it."""
        target = Path(path).expanduser().resolve()
        minify(self.module, self.spec, self.data, target, obs_columns=obs_columns, overwrite=overwrite)
        return open_atlas(target, device=self.module.px_r.device)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write weights and specification to the folder `path`.

        Raises
        ------
        ValueError
            If `path` exists and `overwrite` is not set.
        """
        target = Path(path).expanduser().resolve()
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists: give another path, or overwrite=True")
        if target.exists() and not (target / MANIFEST).is_file():
            raise ValueError(f"{target} is no model folder and is not replaced: give another path")
        save_model(target, self.module, self.spec)

    @classmethod
    def load(cls, path: str | Path, data: "CellData | AnnData | str | Path") -> "SCVI":
        """Read a model that `save` or a run wrote, for use on `data`.

        Raises
        ------
        ValueError
            If the folder is damaged, or `data` has other genes, or categories the model was not trained on.
        """
        module, spec = load_model(Path(path).expanduser().resolve())
        opened = data if isinstance(data, CellData) else open_data(data)
        model = cls.__new__(cls)
        model.data, model.spec = fit_to_spec(opened, spec), spec
        model.module = module.to(worker_device(0))
        model.is_trained, model._history = True, []  # noqa: SLF001
        return model

    def _minibatches(self, indices: Indices | None) -> Iterator[MiniBatch]:
        """Stream the chosen cells, each once, by rising row."""
        n = self.data.n_cells
        if indices is None:
            yield from row_stream(self.data, ((at, min(at + _CHUNK_CELLS, n)) for at in range(0, n, _CHUNK_CELLS)))
            return
        row_n, _ = rows_asked(indices, n)
        if not len(row_n):
            raise ValueError("indices is empty: at least one cell is needed")
        for at in range(0, len(row_n), _CHUNK_CELLS):
            yield rows_minibatch(self.data, row_n[at : at + _CHUNK_CELLS])

    @torch.no_grad()
    def _latent(self, indices: Indices | None) -> Iterator[LatentCells]:
        """Encode the chosen cells, each once, by rising row."""
        for minibatch in self._minibatches(indices):
            qzm_nk, qzv_nk = self.module.encode(minibatch.to(self.module.px_r.device).counts_ng)
            yield LatentCells(
                minibatch.row_n,
                qzm_nk.cpu().numpy(),
                qzv_nk.cpu().numpy(),
                minibatch.library_n.astype(np.float32),
                minibatch.batch_n,
                minibatch.categorical_nc,
                minibatch.continuous_nc,
            )
