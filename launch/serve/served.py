"""The atlases of a service, opened once and shared by all questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.launch.serve.limits import Service
from dist_scvi.launch.serve.served_map import ServedMap
from dist_scvi.launch.serve.watch import WatchedAtlas

_MOST_COUNTED = 20_000


@dataclass(frozen=True, eq=False)
class ServedAtlas:
    """An atlas and its public name. Its path is not for clients: `hide_place` takes it out of messages."""

    name: str
    atlas: WatchedAtlas

    def hide_place(self, message: str) -> str:
        """Return a message with the name of the atlas in place of its path."""
        return message.replace(self.atlas.uri, self.name)

    @cached_property
    def map(self) -> ServedMap:
        """The map of the cells, which is made when it is first needed."""
        return ServedMap(self.atlas, self.hide_place)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What a client needs to ask questions: sizes, columns, batches, labels, leaves."""
        atlas, spec = self.atlas, self.atlas.spec
        return {
            "name": self.name,
            "digest": atlas.digest,
            "format": atlas.format,
            "n_cells": atlas.n_cells,
            "n_genes": atlas.n_genes,
            "n_latent": atlas.n_latent,
            "model": spec.model.model_name,
            "gene_likelihood": spec.model.gene_likelihood,
            "batches": list(spec.batch.categories) if spec.batch else [],
            "labels": list(spec.label.categories) if spec.label else [],
            "obs": [{"name": key, "kind": atlas.obs.kind(key)} for key in atlas.obs.columns()],
            "var": [str(key) for key in atlas.var.columns],
            "leaves": None
            if atlas.leaves is None
            else {
                "columns": list(atlas.leaves.columns),
                "n": atlas.leaves.n_leaves,
                "has_counts": atlas.leaves.has_counts,
            },
        }

    @cached_property
    def _gene_texts(self) -> list[tuple[str, ...]]:
        """For each gene its name and the texts of var, in lower case."""
        var = self.atlas.var
        texts = [key for key in var.columns if var[key].dtype.kind not in "iufb"]
        columns = [self.atlas.var_names, *(var[key].astype(str) for key in texts)]
        return [tuple(text.casefold() for text in row) for row in zip(*columns, strict=True)]

    def find_genes(self, query: str, limit: int) -> list[dict[str, Any]]:
        """Return genes whose name, symbol or another text of var has `query` in it; those that begin with it first."""
        wanted = query.casefold()
        ranked = sorted(
            (min(text != wanted and (2 - text.startswith(wanted)) for text in found), place)
            for place, texts in enumerate(self._gene_texts)
            if (found := [text for text in texts if wanted in text])
        )
        var, names = self.atlas.var, self.atlas.var_names
        return [
            {"name": names[place], "index": place, **{str(key): _plain(var[key].iloc[place]) for key in var.columns}}
            for _, place in ranked[:limit]
        ]

    def summarize_column(self, key: str) -> dict[str, Any]:
        """Return the categories of an obs column with their cells, or the range and quantiles of its numbers.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        atlas = self.atlas
        if atlas.obs.kind(key) == "numeric":
            return {"name": key, "kind": "numeric", "n_cells": atlas.n_cells, **self._numbers(key)}
        column = atlas.obs.categorical(key)
        if len(column.vocabulary) > _MOST_COUNTED:
            first = list(column.vocabulary[:_MOST_COUNTED])
            n = len(column.vocabulary)
            return {"name": key, "kind": "categorical", "n_cells": atlas.n_cells, "n_categories": n, "first": first}
        sizes = self._sizes(key)
        missing = atlas.n_cells - int(sizes.sum())
        categories = [{"name": name, "n_cells": n} for name, n in zip(column.vocabulary, sizes.tolist(), strict=True)]
        return {
            "name": key,
            "kind": "categorical",
            "n_cells": atlas.n_cells,
            "n_categories": len(categories),
            "missing": missing,
            "categories": categories,
        }

    def _sizes(self, key: str) -> Any:
        atlas, leaves = self.atlas, self.atlas.leaves
        if leaves is None or key not in leaves.columns:
            return atlas.group_sizes(key).to_numpy()
        code_l = leaves.codes[:, leaves.columns.index(key)]
        n = len(atlas.obs.categorical(key).vocabulary)
        return np.bincount(code_l + 1, weights=leaves.n_cells, minlength=n + 1)[1:].astype(np.int64)

    def _numbers(self, key: str) -> dict[str, Any]:
        atlas, n_missing, low, high, first = self.atlas, 0, np.inf, -np.inf, []
        for rows in atlas.chunks():
            values = atlas.obs.values(key, rows).astype(np.float64)
            known = values[np.isfinite(values)]
            n_missing += len(values) - len(known)
            if len(known):
                low, high = min(low, known.min()), max(high, known.max())
            # Rows are random inside a neighbourhood: every 64th is a sample of all neighbourhoods.
            first.append(known[:: max(1, atlas.n_cells >> 16)])
        sample = np.concatenate(first) if first else np.zeros(0)
        levels = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
        quantiles = np.quantile(sample, levels).tolist() if len(sample) else []
        return {
            "missing": n_missing,
            "min": None if low > high else float(low),
            "max": None if low > high else float(high),
            "quantiles": dict(zip(map(str, levels), quantiles, strict=False)),
        }


def open_served(service: Service) -> Mapping[str, ServedAtlas]:
    """Open all atlases of a service.

    Raises
    ------
    ValueError
        As `open_atlas`.
    """
    served = {}
    for name, place in service.atlases.items():
        options = dict(service.storage_options) if "://" in place else None
        atlas = open_atlas(place, storage_options=options)
        # What every question needs is read now: the first would otherwise wait for it.
        atlas.gene_index(atlas.var_names[:1])
        atlas.read_cells(slice(0, 1))
        served[name] = ServedAtlas(name, WatchedAtlas(atlas))
    return served


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    plain = value.item() if hasattr(value, "item") else value
    return None if plain is None or plain != plain else plain if isinstance(plain, int | float | str) else str(plain)  # noqa: PLR0124
