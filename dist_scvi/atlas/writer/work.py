"""The work folder of a minification, and the atlas in it that is not complete yet; on a disk or in object storage.

On a disk all of it is in ``.partial-NAME``, and one rename makes the atlas appear. In object storage, which has no
rename, the files of the atlas are written to their final keys and the rest below ``NAME.partial``; the atlas appears
with its manifest, which is written last and deleted first.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dist_scvi.atlas.store.names import ATLAS_PARTS, MANIFEST
from dist_scvi.loaders.arrays.anndata_layout import replace_folder
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.loaders.arrays.objects import Objects
from dist_scvi.loaders.arrays.remote import open_objects
from dist_scvi.network.model_files import save_model
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.run_storage import open_run_storage

Listed = dict[str, tuple[int, str]]
"""Size and SHA-256 of files."""


class AtlasWork:
    """Files of an unfinished atlas.

    Parameters
    ----------
    uri
        Where the atlas will be: an absolute path or a URL.
    identity
        Digest of all inputs of its content. Work of another identity is never continued.
    """

    def __init__(self, uri: str, identity: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri, self.remote, self._options = uri, "://" in uri, storage_options
        if self.remote:
            self.folder = f"{uri.rstrip('/')}.partial"
            self._scratch_uri, self._output_uri = f"{self.folder}/{identity[:16]}", uri
        else:
            path = Path(uri)
            self.folder = str(path.with_name(f".partial-{path.name}"))
            self._scratch_uri = f"{self.folder}/{identity[:16]}"
            self._output_uri = f"{self._scratch_uri}/output"
        self.scratch = open_run_storage(self._scratch_uri, storage_options=storage_options)
        self.output = open_run_storage(self._output_uri, storage_options=storage_options)

    def scratch_objects(self) -> Objects:
        """Open the scratch files to read ranges of them."""
        return open_objects(self._scratch_uri, storage_options=self._options)

    def write(self, name: str, content: bytes) -> Listed:
        """Write a file of the atlas, and return its entry in the manifest."""
        self.output.write(name, content)
        return {name: (len(content), hashlib.sha256(content).hexdigest())}

    def write_model(self, folder: str, module: VAE, spec: ModelSpec) -> Listed:
        """Write the model, and return the entries of its files."""
        place = self.output.subfolder(folder)
        save_model(place, module, spec)
        contents = {f"{folder}/{name}": place.read(name) for name in place.names()}
        return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()}

    def done(self, mark: str) -> Listed | None:
        """Return the files listed when a part was finished; None if it is not finished."""
        try:
            found = parse_json_object(self.scratch.read(mark), f"{mark} of {self.scratch.uri}")
            return {name: (size, sha256) for name, (size, sha256) in found.items()}
        except FileNotFoundError:
            return None

    def mark(self, mark: str, listed: Listed) -> None:
        """Mark a part as finished."""
        # After the files of the part: a kill in between repeats the part, which writes the same bytes.
        self.scratch.write(mark, json.dumps(listed).encode())

    def begin(self) -> None:
        """Remove work of other identities, and in object storage the manifest of the atlas that is replaced."""
        whole = open_run_storage(self.folder, storage_options=self._options)
        own = self._scratch_uri.rpartition("/")[2]
        for name in whole.names():
            if name != own:
                whole.remove(name)
        if self.remote and not self.scratch.names():
            self.output.remove(MANIFEST)

    def finish(self, manifest: bytes) -> None:
        """Write the manifest and let the atlas appear."""
        if not self.remote:
            for torn in Path(self._output_uri).rglob(".partial-*"):  # a kill left it
                torn.unlink()  # it would be shipped with the atlas
        self.output.write(MANIFEST, manifest)
        if not self.remote:
            replace_folder(Path(self._output_uri), Path(self.uri), parts=ATLAS_PARTS)
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            with suppress(OSError):  # the atlas is complete; remaining work files are ignored
                open_run_storage(self.folder, storage_options=self._options).remove("")
