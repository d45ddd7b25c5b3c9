"""Installation on machines of a cloud: dist-scvi with the tested versions, in a separate environment."""

import sys

from dist_scvi.launch.clusters.templates import constraints, render_script

_UV = "0.13.8"


def install_script(requirement: str, *more: str, files: dict[str, str]) -> str:
    """Return the script that writes `files` into ``~/dist-scvi`` and installs `requirement`, Ray, and `more` there.

    Raises
    ------
    ValueError
        If `requirement` is an option, or a path that depends on the working directory.
    """
    where = requirement.rpartition(" @ ")[2].strip()
    path = "://" not in where and ("/" in where or where.startswith((".", "~")) or where.endswith(".whl"))
    if not where or requirement.startswith("-") or (path and not where.startswith("/")):
        raise ValueError(
            f"--install {requirement!r}: a URL such as https://host/dist_scvi.whl or git+https://host/repository, a "
            "requirement such as dist-scvi==1.0, or an absolute path, which the machines have, is needed"
        )
    files = {**files, "constraints.txt": constraints()}
    values = {
        "file_names": list(files),
        "file_texts": list(files.values()),
        "uv_version": _UV,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": [requirement, "ray[default,train]", *more],
    }
    return render_script(values, "write_files", "install")
