"""The manifest of a minified atlas, format 2: what each array is, and size and SHA-256 of every file."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dist_scvi.atlas.store.names import FORMAT_1, FORMAT_2, MANIFEST
from dist_scvi.loaders.arrays.bounded_json import Budget, parse_json_object

LARGEST_MANIFEST = 1 << 28
"""Bytes; a billion cells with 50 columns need a tenth."""
_BUDGET = Budget(max_bytes=LARGEST_MANIFEST, max_depth=8, max_leaves=1 << 22)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayInfo(_Record):
    """A numeric array, or one of texts, chunked by rows."""

    dtype: str
    """As numpy writes it, little-endian; ``"str"`` for texts."""
    shape: tuple[int, ...]
    chunk_rows: int = Field(ge=1)


class ColumnInfo(_Record):
    """A column of obs."""

    kind: Literal["categorical", "numeric"]
    n_categories: int | None = None
    ordered: bool = False


class LogVariance(_Record):
    """The 8-bit code of the logarithm of the posterior's variance: ``offset + step * code``, by dimension."""

    offset: tuple[float, ...]
    step: tuple[float, ...]
    max_relative_sd_error: float


class LeafInfo(_Record):
    """The table of leaves."""

    columns: tuple[str, ...]
    n_leaves: int
    budget_bytes: int
    bytes: int
    sketch_cells: int
    levels: tuple[float, ...]
    counts: bool
    """Whether there are sums of counts; there are none if the atlas was made without counts."""


class NeighbourhoodInfo(_Record):
    """The neighbourhoods that order the rows."""

    n: int
    seed: int


class Manifest(_Record):
    """``ATLAS.json``."""

    format: Literal["dist_scvi.atlas/2"] = FORMAT_2  # type: ignore[assignment]
    n_cells: int = Field(ge=1)
    n_genes: int = Field(ge=1)
    n_latent: int = Field(ge=1)
    arrays: dict[str, ArrayInfo]
    obs: dict[str, ColumnInfo]
    var: tuple[str, ...]
    dropped_obs: dict[str, str]
    model: str
    """SHA-256 of weights and specification."""
    source: dict[str, Any]
    lineage: dict[str, Any]
    log_variance: LogVariance
    leaves: LeafInfo
    neighbourhoods: NeighbourhoodInfo
    bytes_per_cell: dict[str, float]
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of every other file of the atlas."""
    digest: str = ""
    """Identity of the atlas: it changes with any byte of any file."""

    @model_validator(mode="after")
    def _check_names(self) -> "Manifest":
        for name in self.files:
            if any(part in ("", ".", "..") or "\\" in part for part in name.split("/")) or not name.isprintable():
                raise ValueError(f"file name {name!r} leads out of the atlas")
        return self

    def computed_digest(self) -> str:
        """Compute the SHA-256 over all hashes of files and all other content of the manifest."""
        found = hashlib.sha256()
        for name, (size, sha256) in sorted(self.files.items()):
            found.update(f"{sha256} {size} {name}\n".encode())
        rest = self.model_dump(mode="json", exclude={"files", "digest"})
        found.update(json.dumps(rest, sort_keys=True).encode())
        return found.hexdigest()

    def to_bytes(self) -> bytes:
        """Write the manifest, with its digest."""
        return self.model_copy(update={"digest": self.computed_digest()}).model_dump_json(indent=1).encode()


def format_of(content: bytes, uri: str) -> str:
    """Return the format that ``ATLAS.json`` names, of those that can be read.

    Raises
    ------
    ValueError
        If it is unreadable or of another version.
    """
    try:
        found = parse_json_object(content, MANIFEST, _BUDGET)["format"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{uri} is no minified atlas: its {MANIFEST} is unreadable ({error})") from error
    if found not in (FORMAT_1, FORMAT_2):
        raise ValueError(
            f"{uri} has format {str(found)[:80]!r}: {FORMAT_1!r} and {FORMAT_2!r} are read here; read it with a newer "
            "version of dist_scvi"
        )
    return str(found)


def read_manifest(content: bytes, uri: str) -> Manifest:
    """Parse and check ``ATLAS.json``.

    Raises
    ------
    ValueError
        If it is damaged, or its parts are not of one atlas.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise ValueError(
            f"{uri}/{MANIFEST} is damaged ({where or 'JSON'}: {first['msg'][:200]}): restore it from a copy or minify "
            "again"
        ) from error
    if manifest.digest != manifest.computed_digest():
        raise ValueError(f"{uri}/{MANIFEST} was changed: its digest is not its own; restore it from a copy")
    return manifest
