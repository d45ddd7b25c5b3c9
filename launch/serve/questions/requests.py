"""Bodies of questions: the arguments of the methods of an atlas, with their bounds and examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

_WHERE = "cell_type == 'B' and n_counts > 500"

Value = str | bool | int | float
Name = Annotated[str, Field(max_length=1_000)]
Names = Annotated[list[Name], Field(max_length=10_000)]
Rows = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 62)]], Field(description="Rows in the order wanted")]
Seed = Annotated[int, Field(ge=0, lt=1 << 62, description="Seed of draws")]
Share = Annotated[float, Field(gt=0, lt=1)]


class Polygon(BaseModel):
    """The cells inside a polygon on the map."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    polygon: Annotated[list[tuple[float, float]], Field(min_length=3, max_length=10_000)]
    where: Annotated[str, Field(max_length=100_000)] | None = None


Cells = Annotated[
    Annotated[str, Field(max_length=100_000)] | Rows | dict[str, Value | list[Value]] | Polygon,
    Field(
        description="Cells: a filter over obs columns, rows, values of obs columns, or a polygon on the map",
        examples=[_WHERE, [0, 17, 42], {"cell_type": ["B", "NK"]}, {"polygon": [[0, 0], [5, 0], [5, 5]]}],
    ),
]


class Question(BaseModel):
    """A question without arguments."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the method of the atlas."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def hide_place(self, message: str) -> str:
        """Return a message without paths of the service."""
        return message


class WhereQuestion(Question):
    """Choose cells."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": _WHERE}]})

    text: Annotated[str, Field(max_length=100_000, description="Filter over obs columns")]


class ExpressionQuestion(Question):
    """Expected expression of genes in groups of cells."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"genes": ["CD3E", "MS4A1"], "by": ["cell_type"]}]})

    genes: Annotated[Name | Names, Field(min_length=1, description="Names, or values of a column of var")]
    by: Annotated[Name | Names, Field(description="Obs columns whose combinations are the groups")] = []
    where: Cells | None = None
    batch: Annotated[Name, Field(description="'own', 'average', or the name of a batch")] = "own"
    library_size: float | Literal["latent"] = 1.0
    threshold: float | None = None
    per_cell: bool = False
    engine: Literal["auto", "leaves", "exact"] = "auto"


class DifferentialExpressionQuestion(Question):
    """Differential expression of two groups of cells, with the columns of scvi-tools."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"group1": "cell_type == 'B'", "group2": "cell_type == 'T'", "mode": "change", "delta": 0.25}]
        }
    )

    group1: Cells | Names
    group2: Cells | Names | None = None
    mode: Literal["vanilla", "change"] = "vanilla"
    delta: float | None = 0.25
    fdr: Share = 0.05
    where: Cells | None = None
    groupby: Name | None = None
    batch_correction: bool = False
    engine: Literal["auto", "sketch", "pairs", "exact"] = "auto"
    replicate: Name | None = None
    n_samples: Annotated[int, Field(ge=2, le=10_000)] = 1000
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    test_mode: Literal["two", "three"] = "three"
    seed: Seed = 0


class MarkersQuestion(Question):
    """Markers of every group against all other cells."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"by": ["cell_type"], "n_genes": 20}]})

    by: Annotated[Name | Names, Field(description="Obs columns whose combinations are the groups")]
    where: Cells | None = None
    n_genes: Annotated[int, Field(ge=1, lt=1 << 31)] | None = 100
    delta: float = 0.25
    fdr: Share = 0.05
    batch_correction: bool = False
    engine: Literal["auto", "sketch", "pairs"] = "auto"
    n_samples: Annotated[int, Field(ge=2, le=5_000)] = 500
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    seed: Seed = 0


class NeighborsQuestion(Question):
    """The nearest cells of cells of the atlas, or of points of its latent space."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": [0, 17], "k": 5, "where": _WHERE}]})

    query: Annotated[
        Cells | Names | list[float] | Annotated[list[list[float]], Field(max_length=100_000)],
        Field(description="Cells by a filter, rows, names or values of obs columns; or latent vectors"),
    ]
    k: Annotated[int, Field(ge=1, le=10_000)] = 15
    where: Cells | None = None
    metric: Literal["euclidean", "posterior"] = "euclidean"
    engine: Literal["auto", "index", "exact"] = "auto"
    names: bool = True
    seed: Seed = 0


class LatentQuestion(Question):
    """The mean of the posterior of cells, and its variance if wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"where": _WHERE}]})

    where: Cells | None = None
    indices: Rows | None = None
    return_dist: bool = False


class PredictQuestion(Question):
    """Labels of cells of the atlas by the classifier of SCANVI, or the probability of each."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"where": _WHERE, "soft": True}]})

    where: Cells | None = None
    indices: Rows | None = None
    soft: bool = False


class NewCellsQuestion(Question):
    """A question about a file with new cells; its arguments are in the query of the address."""

    layer: Name | None = None
    min_overlap: Annotated[float, Field(ge=0, le=1, description="Least share of the genes of the model")] = 0.5
    seed: Seed = 0
    where: Annotated[str, Field(max_length=8_000)] | None = None
    _file: Path | None = PrivateAttr(None)

    @property
    def file(self) -> Path:
        """Where the service has put the file."""
        assert self._file is not None
        return self._file

    def set_file(self, path: Path) -> None:
        """Note where the service has put the file."""
        self._file = path

    def hide_place(self, message: str) -> str:
        """Return a message without the path of the file."""
        return message if self._file is None else message.replace(str(self._file), "the file")


class AnnotateQuestion(NewCellsQuestion):
    """Label new cells by their counts: calibrated probabilities, prediction sets and outlier scores."""

    label: Annotated[Name, Field(description="obs column of the atlas; by default the labels of the model")] | None = (
        None
    )
    method: Literal["classifier", "neighbors"] | None = None
    coverage: Share = 0.9
    k: Annotated[int, Field(ge=1, le=10_000)] = 30
    replicate: Name | None = None


class NewNeighborsQuestion(NewCellsQuestion):
    """The nearest cells of new cells."""

    k: Annotated[int, Field(ge=1, le=10_000)] = 15
    metric: Literal["euclidean", "posterior"] = "euclidean"
    engine: Literal["auto", "index", "exact"] = "auto"
    names: bool = True


class AbundanceQuestion(Question):
    """Abundance of groups of cells by sample, or its contrast between two conditions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"by": "donor", "groups": "cell_type", "contrast": ["condition", "stim", "ctrl"]}]
        }
    )

    by: Annotated[Name | Names, Field(description="Obs columns that identify the samples")]
    groups: Annotated[Name | Names, Field(description="Obs columns of the groups; the labels by default")] = []
    contrast: Name | Names | None = None
    where: Cells | None = None
    level: Share = 0.95


class CounterfactualQuestion(Question):
    """Expected expression of cells if they were decoded as of another batch or condition."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={"examples": [{"from": "ctrl", "to": "stim", "genes": ["ISG15"], "by": ["cell_type"]}]},
    )

    from_: Annotated[Name | Names, Field(alias="from")]
    to: Name
    genes: Annotated[Name | Names, Field(min_length=1)]
    key: Name | None = None
    by: Name | Names = []
    where: Cells | None = None
    level: Share = 0.95


class RowsQuestion(Question):
    """Rows of the atlas."""

    rows: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 62)]], Field(max_length=100_000)]


class SelectQuestion(Question):
    """Cells inside a polygon on the map, of a filter, or both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"where": _WHERE, "by": "donor"}]})

    polygon: Annotated[list[tuple[float, float]], Field(min_length=3, max_length=10_000)] | None = None
    where: Annotated[str, Field(max_length=100_000)] | None = None
    within: Annotated[str | None, Field(max_length=100_000, description="Only of the cells of this filter")] = None
    by: Annotated[Name | None, Field(description="Count them by the categories of this obs column, too")] = None


class ExplainQuestion(Question):
    """The cost of another question, before it is asked."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "markers", "asked": {"by": ["cell_type"], "n_genes": 20}}]}
    )

    query: Annotated[Name, Field(description="Name of the question, as in its address")]
    asked: Annotated[dict[str, Any], Field(description="Body of that question")] = {}


def describe_problems(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what is wrong with a body and where, without the body itself, which may be large or hostile."""
    shown = [{"loc": [str(part)[:100] for part in error["loc"]], "msg": str(error["msg"])[:300]} for error in errors]
    return shown[:20]
