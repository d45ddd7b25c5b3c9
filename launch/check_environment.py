"""Exit with 1 unless this environment has this checkout and its dependencies: ``check_environment.py EXTRA,EXTRA``.

`setup.sh` runs it with the Python of the active environment, which may be empty: only the standard library is imported
before other packages are known to be installed.
"""

import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def find_missing(extras: Sequence[str]) -> list[str]:
    """Return what is missing in the environment: the project, or requirements of it and of `extras`."""
    spec = util.find_spec("dist_scvi")
    found = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
    if found != ROOT:
        return [f"dist-scvi of {ROOT}" + (f" (it has the one of {found})" if found else "")]
    if util.find_spec("packaging") is None:
        return ["packaging"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Read here: the metadata of an editable installation may be older than this file.
    needed = [project["name"], *project["dependencies"]]
    needed += [text for extra in extras for text in project["optional-dependencies"][extra]]
    return [text for text in needed if not _is_met(text)]


def _is_met(text: str) -> bool:
    from packaging.requirements import Requirement

    return _meets(Requirement(text))


def _meets(requirement: "Requirement", extra: str = "") -> bool:
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
        return True
    try:
        installed = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(installed.version, prereleases=True) and all(
        _meets(part, extra) for extra in requirement.extras for part in _parts(installed, extra)
    )


def _parts(installed: metadata.Distribution, extra: str) -> "Iterable[Requirement]":
    """Return what an extra of an installed distribution requires, such as ``ray[train]``."""
    from packaging.requirements import Requirement

    parts = map(Requirement, installed.requires or [])
    return [part for part in parts if part.marker and part.marker.evaluate({"extra": extra})]


if __name__ == "__main__":
    missing = find_missing([extra for extra in sys.argv[1].split(",") if extra])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        sys.exit(f"it lacks {', '.join(missing[:3])}{more}")
