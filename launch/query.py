"""The answers of ``dist-scvi query``, as tables."""

import argparse
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.loaders.name_lookup import split_names

if TYPE_CHECKING:
    from dist_scvi.atlas.atlas import Atlas
    from dist_scvi.inference.encode_decode import Indices

_ONLY_FOR = {
    "genes": "expression",
    "by": "expression",
    "transform_batch": "expression",
    "library_size": "expression",
    "n_samples": "expression",
    "seed": "expression",
    "soft": "labels",
}


def query(options: argparse.Namespace) -> pd.DataFrame:
    """Answer what was asked of an atlas.

    Raises
    ------
    ValueError
        If an option does not belong to the question, or a cell, gene, batch or column is not known.
    """
    strange = [key for key, what in _ONLY_FOR.items() if what != options.what and getattr(options, key)]
    if strange:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in strange)
        raise ValueError(f"{names} does not belong to 'query {options.what}', but to {_ONLY_FOR[strange[0]]}")
    atlas = open_atlas(options.atlas)
    indices: Indices | None = None
    if options.cells:
        with_comma = any("," in text for text in options.cells)
        indices = atlas.rows_named(split_names(options.cells, set(atlas.obs_names()) if with_comma else ()))
    elif options.where:
        indices = atlas.rows_where(dict(options.where))
    if options.what == "expression":
        return _expression(atlas, options, indices)
    if options.what == "labels":
        predicted = atlas.predict(indices, soft=options.soft)
        if isinstance(predicted, pd.DataFrame):
            return predicted
        return pd.DataFrame({"label": predicted}, index=pd.Index(atlas.obs_names(indices)))
    latent = np.asarray(atlas.get_latent_representation(indices))
    columns = [f"latent_{k}" for k in range(latent.shape[1])]
    return pd.DataFrame(latent, index=pd.Index(atlas.obs_names(indices)), columns=columns)


def _expression(atlas: "Atlas", options: argparse.Namespace, indices: "Indices | None") -> pd.DataFrame:
    batches = atlas.spec.batch.categories if atlas.spec.batch else ()
    asked = {
        "gene_list": options.genes and split_names(options.genes, set(atlas.var_names)),
        "indices": indices,
        "transform_batch": options.transform_batch and split_names(options.transform_batch, batches),
        "library_size": options.library_size or 1.0,
        "n_samples": options.n_samples,
        "seed": options.seed or 0,
    }
    if not options.by:
        return atlas.get_normalized_expression(**asked)
    answer: pd.DataFrame = atlas.mean_expression(options.by, **asked)
    answer.insert(0, "n_cells", atlas.group_sizes(options.by, indices).loc[answer.index])
    return answer
