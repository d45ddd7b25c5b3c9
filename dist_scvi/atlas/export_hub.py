"""An atlas as a folder of scvi-hub: a minified model of scvi-tools 1.4.2 with its card."""

import json
from importlib.metadata import version
from pathlib import Path

from dist_scvi.atlas.export import replacing, to_minified_anndata
from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.scvi_tools.hub_card import CardDetails, hub_card
from dist_scvi.scvi_tools.model_folder import write_scvi_tools
from dist_scvi.scvi_tools.registry_writer import VERSION, registry_of
from dist_scvi.storage.atomic_files import write_file

_CELLS, _CARD, _METADATA = "adata.h5ad", "README.md", "_scvi_required_metadata.json"


def write_scvi_hub(atlas: AtlasStore, out: Path, *, card: str | None = None, overwrite: bool = False) -> None:
    """Write the folder that ``scvi.hub.HubModel(out)`` opens: model, minified cells, card, metadata.

    All cells are in memory. The metadata, without which the folder is not opened, is written last.

    Parameters
    ----------
    card
        Text of the card, Markdown after a header in YAML; by default that of `card_of_atlas`.
    overwrite
        Replace the files of an earlier export; other files stay.

    Raises
    ------
    FileExistsError
        If the folder exists and `overwrite` is not set, or it holds files that no export wrote.
    ValueError
        If scvi-tools has no such model, or does not minify it.

    Notes
    -----
    scvi-tools 1.4.2, hub/_model.py and hub/_constants.py.
    """
    spec = atlas.spec
    if spec.own_library and spec.size_factor_key is None:
        raise ValueError(
            f"{atlas.uri} is of a model with a latent library size, which scvi-tools 1.4.2 does not minify: train with "
            "use_observed_lib_size=True, or export its model alone (--to scvi-tools)"
        )
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists: give another path, or allow it to be replaced (--overwrite)")
    foreign = [name for name in ("model.pt", _CELLS, _CARD) if (out / name).exists() and not (out / _METADATA).exists()]
    if foreign:
        raise FileExistsError(f"{out} holds {', '.join(foreign)} of something else: choose another folder")
    cells = to_minified_anndata(atlas)
    if spec.model.model_name == "SCANVI" and spec.label is not None:
        # scvi-tools knows no missing label: unlabelled cells have a category of their own.
        unlabeled = registry_of(spec)["setup_args"]["unlabeled_category"]
        labels = cells.obs[spec.label.key].astype(object)
        cells.obs[spec.label.key] = labels.where(labels.notna(), unlabeled).astype("category")
    out.mkdir(parents=True, exist_ok=True)
    (out / _METADATA).unlink(missing_ok=True)
    write_scvi_tools(out, atlas.module, spec, obs=cells.obs, minified=True, overwrite=True)
    with replacing(out / _CELLS, overwrite=True) as partial:
        cells.write_h5ad(partial)
    write_file(out / _CARD, (card_of_atlas(atlas) if card is None else card).encode())
    write_file(out / _METADATA, json.dumps(hub_metadata(spec), indent=4).encode())


def hub_metadata(spec: ModelSpec) -> dict[str, str | None]:
    """Return the metadata that scvi-hub needs."""
    return {
        "scvi_version": VERSION,
        "anndata_version": version("anndata"),
        "model_cls_name": spec.model.model_name,
        "training_data_url": None,
        "model_parent_module": "scvi.model",
    }


def card_of_atlas(atlas: AtlasStore) -> str:
    """Return a card with what the atlas itself knows: no metrics, which need counts."""
    spec, run = atlas.spec, atlas.manifest.get("lineage", {}).get("run")
    details = CardDetails(
        description=f"{spec.model.model_name} trained with dist_scvi on {atlas.n_cells:,} cells and {atlas.n_genes:,} "
        f"genes, minified: the posterior of each cell without its counts. Atlas `{atlas.digest}`.",
        training_data=f"`{_name(atlas.manifest['source']['uri'])}`" if "source" in atlas.manifest else "",
        training_code=f"`dist-scvi resume {_name(run)}`" if run else "",
    )
    return hub_card(spec, n_cells=atlas.n_cells, minified=True, details=details)


def _name(uri: object) -> str:
    """Return a URL, or the last name of a path: folders of this machine tell others nothing."""
    text = str(uri)
    return text if "://" in text else text.rstrip("/").rpartition("/")[2]
