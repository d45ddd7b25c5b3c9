"""``dist-scvi query``: turn options into an `Answer`, and write it to a file or a terminal."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.name_lookup import describe_missing, split_names, symbols_in

if TYPE_CHECKING:
    import pandas as pd

    from dist_scvi.atlas.atlas import Atlas
    from dist_scvi.atlas.queries.answer import Answer
    from dist_scvi.atlas.queries.where import CellSet

LATENT, LABELS, EXPRESSION = "latent", "labels", "expression"
GROUPS, DE, MARKERS = "group-expression", "differential-expression", "markers"
ABUNDANCE, COUNTERFACTUAL = "abundance", "counterfactual"
NEIGHBORS, PREDICT, SAMPLE = "neighbors", "predict", "sample"
QUERIES = (
    *(LATENT, LABELS, PREDICT, EXPRESSION, NEIGHBORS, SAMPLE),
    *(GROUPS, DE, MARKERS, ABUNDANCE, COUNTERFACTUAL),
)
ENDINGS = (".csv", ".json", ".parquet")
_FOR = {
    "genes": (EXPRESSION, GROUPS, COUNTERFACTUAL, SAMPLE),
    "skip_missing": (EXPRESSION, GROUPS, COUNTERFACTUAL, SAMPLE),
    "by": (EXPRESSION, GROUPS, MARKERS, ABUNDANCE, COUNTERFACTUAL),
    "cells": (LATENT, LABELS, PREDICT, EXPRESSION, NEIGHBORS),
    "soft": (LABELS, PREDICT),
    "transform_batch": (EXPRESSION,),
    "library_size": (EXPRESSION, GROUPS, SAMPLE),
    "n_samples": (EXPRESSION, DE, MARKERS),
    "seed": (EXPRESSION, DE, MARKERS, NEIGHBORS, SAMPLE),
    "batch": (GROUPS, SAMPLE),
    "threshold": (GROUPS,),
    "group1": (DE,),
    "group2": (DE,),
    "mode": (DE,),
    "delta": (DE, MARKERS),
    "fdr": (DE, MARKERS),
    "batch_correction": (DE, MARKERS),
    "replicate": (DE,),
    "engine": (GROUPS, DE, MARKERS, NEIGHBORS),
    "n_genes": (MARKERS,),
    "groups": (ABUNDANCE,),
    "contrast": (ABUNDANCE,),
    "level": (ABUNDANCE, COUNTERFACTUAL),
    "from_": (COUNTERFACTUAL,),
    "to": (COUNTERFACTUAL,),
    "key": (COUNTERFACTUAL,),
    "query": (NEIGHBORS,),
    "k": (NEIGHBORS,),
    "metric": (NEIGHBORS,),
    "layer": (NEIGHBORS,),
    "min_overlap": (NEIGHBORS,),
    "n": (SAMPLE,),
    "explain": (GROUPS, DE, MARKERS, COUNTERFACTUAL, NEIGHBORS, SAMPLE, LATENT, LABELS, PREDICT),
}
"""The queries that accept an option; the others refuse it."""
_NOT_OF_ATLAS = ("explain", "cells", "skip_missing")
"""Options that are not arguments of the methods of an atlas."""

_PAIR = re.compile(r"([^=<>!'\"()]+)=([^=~].*)")
_NEEDS = {
    GROUPS: ("genes",),
    DE: ("group1",),
    MARKERS: ("by",),
    ABUNDANCE: ("by",),
    COUNTERFACTUAL: ("from_", "to", "genes"),
    NEIGHBORS: (),
    SAMPLE: ("n",),
}
_METHODS = {GROUPS: "expression", DE: "differential_expression"}
"""Methods of an atlas whose names are not those of the queries."""
_TERMINAL_ROWS = 40


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not belong to the query, before slow packages are imported.

    Raises
    ------
    ValueError
        If an option belongs to other queries, a required one is missing, or the file to write exists.
    """
    for key, queries in _FOR.items():
        if options.what not in queries and getattr(options, key) not in (None, False):
            raise ValueError(f"{_flag(key)} does not belong to 'query {options.what}', but to {', '.join(queries)}")
    for key in _NEEDS.get(options.what, ()):
        if not getattr(options, key):
            raise ValueError(f"'query {options.what}' needs {_flag(key)}")
    if options.what == NEIGHBORS and bool(options.query) == bool(options.cells):
        raise ValueError("'query neighbors' needs --query FILTER|STORE, or --cells NAME,NAME")
    check_output(options)


def check_output(options: argparse.Namespace) -> None:
    """Refuse a file that cannot be written.

    Raises
    ------
    ValueError
        If it has another ending, or exists.
    """
    if options.out and options.out.suffix not in ENDINGS:
        raise ValueError(f"--out {options.out} ends with {options.out.suffix!r}: {', '.join(ENDINGS)} can be written")
    if options.out and options.out.exists() and not options.overwrite:
        raise ValueError(f"--out {options.out} exists: choose another file, or add --overwrite")


def _flag(key: str) -> str:
    return f"--{key.rstrip('_').replace('_', '-')}"


def query(options: argparse.Namespace) -> "Answer | str":
    """Answer the query that `options` describe, or estimate its cost with ``explain``.

    Raises
    ------
    ValueError
        As `check_options`, or if a cell, gene, batch or column is not known.
    """
    check_options(options)
    from dist_scvi.atlas.atlas import open_atlas

    atlas = open_atlas(options.atlas, storage_options=dict(options.storage))
    cells = _chosen(atlas, options.where)
    if options.what not in _NEEDS:
        return _table(atlas, options, cells)
    arguments = _arguments(atlas, options, cells)
    name = _METHODS.get(options.what, options.what)
    if options.explain:
        return str(atlas.explain(name, **arguments))
    answer: Answer = getattr(atlas, name)(**arguments)
    return answer


def _chosen(atlas: "Atlas", filters: Sequence[str] | None) -> "CellSet | None":
    """Choose the cells that pass every filter, and print how many each clause keeps."""
    from dist_scvi.atlas.queries.where import choose_cells

    cells = None
    for text in filters or ():
        pair = _PAIR.fullmatch(text)
        cells = choose_cells(atlas, {pair[1].strip(): pair[2]} if pair else text, within=cells)
        for clause, *numbers in cells.clauses.itertuples(index=False):
            sys.stderr.write(f"{printable(clause)}: {', '.join(f'{number:,}' for number in numbers)} cells\n")
    return cells


def _arguments(atlas: "Atlas", options: argparse.Namespace, cells: "CellSet | None") -> dict[str, Any]:
    keys = [key for key, queries in _FOR.items() if options.what in queries and key not in _NOT_OF_ATLAS]
    found = {key: getattr(options, key) for key in keys if getattr(options, key) not in (None, False)}
    if "genes" in found:
        found["genes"] = _genes(atlas, options)
    if options.cells and options.what == NEIGHBORS:
        found["query"] = _named_rows(atlas, options)
    for key in found.keys() & {"by", "groups"}:
        found[key] = split_names(found[key], atlas.obs.columns())
    if "contrast" in found:
        found["contrast"] = split_names(options.contrast, atlas.obs.columns())
    return {**found, "where": cells}


def _table(atlas: "Atlas", options: argparse.Namespace, cells: "CellSet | None") -> "Answer | str":
    """Answer the queries whose tables have a row for each cell or group."""
    import numpy as np
    import pandas as pd

    from dist_scvi.atlas.queries.answer import Answer

    rows = None if cells is None else cells.rows(atlas)
    if options.cells:
        rows = _named_rows(atlas, options)
    if options.explain:
        return str(atlas.explain("latent" if options.what == LATENT else "predict", indices=rows))
    if options.what == EXPRESSION:
        table = _expression(atlas, options, rows)
    elif options.what == LABELS:
        predicted = atlas.predict(rows, soft=options.soft)
        table = predicted if isinstance(predicted, pd.DataFrame) else pd.DataFrame({"label": predicted})
        table.index = pd.Index(atlas.obs_names(rows))
    elif options.what == PREDICT:
        table = _predicted(atlas, options, rows)
    else:
        latent_nk = np.asarray(atlas.get_latent_representation(rows))
        columns = [f"latent_{k}" for k in range(latent_nk.shape[1])]
        table = pd.DataFrame(latent_nk, index=pd.Index(atlas.obs_names(rows)), columns=columns)
    table.index.name = table.index.name or "cell"
    return Answer(options.what, table, "", "", {}, atlas.uri, atlas.digest, options.seed or 0)


def _genes(atlas: "Atlas", options: argparse.Namespace) -> list[str]:
    """Return the genes that `options` name, by their names in the model."""
    genes = split_names(options.genes, set(atlas.var_names))
    known = [gene for gene in genes if atlas.has_gene(gene)] if options.skip_missing else genes
    if len(known) < len(genes):
        missing = [gene for gene in genes if gene not in known]
        near = describe_missing(missing, atlas.var_names, symbols_in(atlas.var))
        sys.stderr.write(f"left out {len(missing)} of {len(genes)} genes: {printable(near)}\n")
    if not known:
        raise ValueError(f"the atlas has none of the {len(genes)} genes of --genes")
    return [atlas.var_names[index] for index in atlas.gene_index(known)]


def _predicted(atlas: "Atlas", options: argparse.Namespace, rows: Any) -> "pd.DataFrame":
    """Return the best label and the second best of each cell with their probabilities, or those of all labels."""
    import numpy as np

    from dist_scvi.atlas.annotation.annotate import top_labels

    soft: Any = atlas.predict(rows, soft=True)
    if options.soft:
        table: pd.DataFrame = soft
        return table
    log_nl = np.log(np.maximum(soft.to_numpy(np.float64), np.finfo(np.float64).tiny))
    return top_labels(log_nl, tuple(soft.columns)).set_axis(soft.index)


def _named_rows(atlas: "Atlas", options: argparse.Namespace) -> Any:
    with_comma = any("," in text for text in options.cells)
    return atlas.rows_named(split_names(options.cells, set(atlas.obs_names()) if with_comma else ()))


def _expression(atlas: "Atlas", options: argparse.Namespace, rows: Any) -> "pd.DataFrame":
    batches = atlas.spec.batch.categories if atlas.spec.batch else ()
    requested: dict[str, Any] = {
        "gene_list": options.genes and _genes(atlas, options),
        "indices": rows,
        "transform_batch": options.transform_batch and split_names(options.transform_batch, batches),
        "library_size": options.library_size or 1.0,
        "n_samples": options.n_samples,
        "seed": options.seed or 0,
    }
    if not options.by:
        per_cell: pd.DataFrame = atlas.get_normalized_expression(**requested)
        return per_cell
    by = split_names(options.by, atlas.obs.columns())
    if len(by) > 1:
        raise ValueError(f"'query {EXPRESSION}' averages by one column, found {', '.join(by)}: use 'query {GROUPS}'")
    table: pd.DataFrame = atlas.mean_expression(by[0], **requested)
    table.insert(0, "n_cells", atlas.group_sizes(by[0], rows).loc[table.index])
    return table


def write_answer(answer: "Answer", options: argparse.Namespace) -> None:
    """Write an answer to the file that `options` name, or as CSV to standard output; a terminal gets its first rows."""
    for note in answer.notes:
        sys.stderr.write(f"note: {printable(note)}\n")
    if options.out is not None:
        if options.safe_csv:
            from dataclasses import replace

            answer = replace(answer, table=_neutral(answer.table))
        answer.write(options.out, overwrite=options.overwrite)
        return
    table = answer.table if answer.table.index.name else answer.table.reset_index(drop=True)
    shown = table.head(_TERMINAL_ROWS) if sys.stdout.isatty() else table
    _neutral(shown).to_csv(sys.stdout, float_format="%.6g", index=bool(table.index.name))
    if len(shown) < len(table):
        sys.stderr.write(f"... {len(table) - len(shown):,} more rows: write all of them with --out FILE.csv\n")


def _neutral(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the table without control characters and spreadsheet formulas in texts from files."""
    import pandas as pd

    def neutral(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = printable(value, max_length=max(len(value), 1))
        return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text

    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    found = table.assign(**{str(name): table[name].astype(object).map(neutral) for name in texts})
    found.index = found.index.map(neutral) if not pd.api.types.is_numeric_dtype(found.index) else found.index
    found.index.name = table.index.name
    return found


def read_questions(path: Path, atlas: Path) -> list[list[str]]:
    """Read a YAML list of queries, each a mapping of ``query`` and options, as words of the command line.

    Raises
    ------
    ValueError
        If the content of the file is of another kind.
    """
    from dist_scvi.config.load import parse_yaml, read_text

    found = parse_yaml(read_text(path), str(path))
    if not isinstance(found, list) or not all(isinstance(each, dict) and "query" in each for each in found):
        raise ValueError(f"{path} holds no list of queries: '- {{query: markers, by: cell_type, out: markers.csv}}'")
    words = []
    for each in found:
        line = ["query", str(atlas), str(each["query"])]
        for key, value in each.items():
            flag = f"--{str(key).replace('_', '-')}"
            if key != "query" and value is not False:
                values = [] if value is True else value if isinstance(value, list) else [value]
                line += [flag] if not values else [word for one in values for word in (flag, str(one))]
        words.append(line)
    return words
