"""An atlas of twelve donors whose types overlap, and cells of six other donors."""

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.loaders import open_data
from dist_scvi.model import SCANVI

TYPES, GENES = ("B", "NK", "T4", "T8"), 60


def donors(first: int, n_donors: int, n_each: int) -> ad.AnnData:
    """Draw counts: two types are much alike, and each donor changes some genes."""
    base = np.random.default_rng(0).gamma(0.8, 1.0, (len(TYPES), GENES))
    base[3] = base[2] * np.exp(np.random.default_rng(1).normal(0, 0.25, GENES))
    parts, rows = [], []
    for donor in range(first, first + n_donors):
        rng = np.random.default_rng(100 + donor)
        of_n = rng.choice(len(TYPES), n_each, p=[0.2, 0.1, 0.4, 0.3])
        mean = base[of_n] * np.exp(rng.normal(0, 0.12, GENES)) * rng.lognormal(0, 0.3, (n_each, 1))
        parts.append(rng.poisson(mean))
        rows.append(pd.DataFrame({"cell_type": np.array(TYPES)[of_n], "donor": f"d{donor}"}))
    obs = pd.concat(rows, ignore_index=True).astype("category")
    obs.index = [f"{donor}-{row}" for row, donor in enumerate(obs["donor"])]
    var = pd.DataFrame({"symbol": [f"SYM{gene}" for gene in range(GENES)]}, index=[f"gene{g}" for g in range(GENES)])
    return ad.AnnData(sparse.csr_matrix(np.concatenate(parts).astype(np.float32)), obs=obs, var=var)


@dataclass(frozen=True)
class Annotated:
    model: SCANVI
    atlas: Atlas
    new: ad.AnnData


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    known = donors(0, 12, 250)
    known.obs["cell_type"] = known.obs["cell_type"].cat.add_categories("unknown")
    known.obs.iloc[::11, 0] = "unknown"
    data = open_data(known, batch_key="donor", labels_key="cell_type", unlabeled_category="unknown")
    model = SCANVI(data, n_hidden=32, n_latent=4)
    model.train(5, enable_progress_bar=False)
    return Annotated(model, model.minify(tmp_path_factory.mktemp("annotated") / "atlas"), donors(12, 6, 400))
