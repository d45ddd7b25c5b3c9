"""Models on the Hugging Face hub, in the folders of scvi-hub: download one and open it, or publish one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.loaders.arrays.printable import printable

if TYPE_CHECKING:
    from dist_scvi.model import SCANVI, SCVI, LinearSCVI

METADATA, MODEL, CELLS, CARD = "_scvi_required_metadata.json", "model.pt", "adata.h5ad", "README.md"
_LARGEST_CELLS = 5_000_000_000
"""Bytes of the cells that scvi-hub accepts (scvi-tools 1.4.2, hub/_constants.py)."""


def from_hub(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> "SCVI | SCANVI | LinearSCVI":
    """Open a model of scvi-hub, with its cells.

    Nothing in the files is executed: the model is read through an allow-list.

    Parameters
    ----------
    repo_or_folder
        A folder, or a repository such as ``"scvi-tools/tabula-sapiens-lung-scvi"``, of which model, cells, card and
        metadata are downloaded.
    revision
        Branch, tag or commit of the repository; by default the newest.
    cache_dir
        Folder of downloads; by default that of huggingface-hub.
    token
        Token of the hub; by default the one that is logged in.
    endpoint
        URL of another hub.

    Raises
    ------
    FileNotFoundError
        If a folder has no model.
    ValueError
        If the model is of a class that this package lacks, is damaged, or huggingface-hub is not installed.
    """
    folder = Path(repo_or_folder).expanduser()
    if not folder.is_dir():
        folder = _download(str(repo_or_folder), revision, cache_dir, token, endpoint)
    if not (folder / MODEL).is_file():
        raise FileNotFoundError(f"{folder} has no {MODEL}: a folder of scvi-hub is needed")
    model: SCVI | SCANVI | LinearSCVI = _class_of(folder).load(folder, accelerator="cpu")
    return model


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a model",
    endpoint: str | None = None,
) -> str:
    """Publish a folder that ``dist-scvi export --to scvi-hub`` wrote, and return its URL.

    Parameters
    ----------
    repo_id
        Repository as ``"OWNER/NAME"``; it is created if it does not exist.
    private
        Make a new repository private.
    token, endpoint
        As in `from_hub`.

    Raises
    ------
    FileNotFoundError
        If the folder lacks one of model, card and metadata.
    ValueError
        If its cells are larger than scvi-hub accepts, or huggingface-hub is not installed.
    """
    source = Path(folder).expanduser().resolve()
    missing = [name for name in (MODEL, CARD, METADATA) if not (source / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {', '.join(missing)}: write the folder with 'dist-scvi export ATLAS OUT --to scvi-hub'"
        )
    cells = source / CELLS
    if cells.is_file() and cells.stat().st_size >= _LARGEST_CELLS:
        raise ValueError(f"{cells} has {cells.stat().st_size:,} bytes: scvi-hub accepts less than {_LARGEST_CELLS:,}")
    api = _hub().HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=source,
        allow_patterns=[MODEL, CARD, METADATA, CELLS, "metrics.json"],
        commit_message=commit_message,
    )
    return f"{(endpoint or api.endpoint).rstrip('/')}/{repo_id}"


def _download(
    repo_id: str, revision: str | None, cache_dir: str | Path | None, token: str | None, endpoint: str | None
) -> Path:
    hub = _hub()
    try:
        found = hub.snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=endpoint,
            allow_patterns=[MODEL, CARD, METADATA, CELLS],
        )
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise ValueError(
            f"{repo_id} is no folder, and no repository of the hub that can be read: {printable(error)}"
        ) from error
    return Path(found)


def _class_of(folder: Path) -> Any:
    """Return the class of the model, by the metadata or else by the model itself."""
    from dist_scvi import model

    names = {"SCVI": model.SCVI, "SCANVI": model.SCANVI, "LinearSCVI": model.LinearSCVI}
    path = folder / METADATA
    if path.is_file():
        name = str(parse_json_object(path.read_bytes(), str(path)).get("model_cls_name"))
    else:
        from dist_scvi.scvi_tools.model_folder import read_scvi_tools

        name = read_scvi_tools(folder).spec.model.model_name
    if name not in names:
        raise ValueError(f"{folder} holds a model of class {printable(name)}: {', '.join(names)} can be opened")
    return names[name]


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(f"models on a hub need huggingface-hub: pip install 'dist-scvi[hub]' ({error})") from error
    return huggingface_hub
