"""The set-up of the two commands, on a small checkout; pip and uv are scripts that record their arguments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = sys._base_executable  # pip and venv are not those of the environment of these tests
PYPROJECT = """\
[project]
name = "dist-scvi"
dependencies = ["packaging>=1"]
[project.optional-dependencies]
test = ["surely-not-installed>=2"]
"""
PYTHON = """\
#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then
    case " $* " in *" --without-pip "*) ;; *) [ ! -e "$STUB/no_ensurepip" ] || exit 1 ;; esac
    set -- "$@" --without-pip
fi
exec {python} "$@"
"""
PIP = """\
import os, sys
from pathlib import Path
stub = Path(os.environ["STUB"])
where = "base" if sys.prefix == sys.base_prefix else "venv"
if "--report" in sys.argv:
    print('"url": "https://host/torch-2.0.0' + (stub / "build").read_text() + '.whl"')
elif "--version" not in sys.argv:
    with (stub / "log").open("a") as log:
        print(where, "pip", *sys.argv[1:], file=log)
    print("Collecting torch", flush=True)
    while (stub / "slow").exists() and (stub / "err").read_text().count(": Collecting") < 2:
        pass
    sys.exit("no network" if (stub / "fails").exists() else 0)
"""
NO_PIP = """\
import os, sys
from pathlib import Path
if sys.prefix != sys.base_prefix and (Path(os.environ["STUB"]) / "no_ensurepip").exists():
    raise ImportError("no pip here")
"""
UV = """\
#!/bin/bash
case "$*" in
--version) echo "uv 1.2.3" && exit ;;
*--dry-run*) echo " + torch==2.0.0$(cat "$STUB/build")" && exit ;;
esac
echo "uv $*" >> "$STUB/log"
if [ "$1" = venv ]; then {python} -m venv --without-pip "${{@: -1}}"; fi
"""


class Checkout:
    """A small checkout, in which set-up is run as the two commands run it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.stub = folder / "a checkout", folder / "stub"
        (self.root / "launch").mkdir(parents=True)
        for name in ("setup.sh", "check_environment.py"):
            shutil.copy(ROOT / "launch" / name, self.root / "launch")
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "constraints.txt").write_text("torch==2.0.0\n")
        (self.stub / "bin").mkdir(parents=True)
        (self.stub / "pip").mkdir()
        (self.stub / "pip" / "__init__.py").write_text(NO_PIP)
        (self.stub / "pip" / "__main__.py").write_text(PIP)
        (self.stub / "build").write_text("+cpu")
        self.command("python3", PYTHON.format(python=BASE))
        self.command("sleep", "#!/bin/bash\nexec /bin/sleep 0.05\n")
        self.environment: dict[str, str] = {}
        self.says = ""

    def command(self, name: str, text: str) -> None:
        (self.stub / "bin" / name).write_text(text)
        (self.stub / "bin" / name).chmod(0o755)

    def set_up(self, extras: str = "", *, code: int = 0) -> str:
        """Set up for a command that needs `extras`; return the Python that it would run."""
        script = f'. "{self.root}/launch/setup.sh"; use_environment {extras!r}; command -v python'
        environment = {"PATH": f"{self.stub}/bin:/usr/bin:/bin", "STUB": str(self.stub), "PYTHONPATH": str(self.stub)}
        with (self.stub / "err").open("w") as err:
            found = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                env=environment | self.environment,
                cwd=self.stub,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                timeout=60,
                check=False,
            )
        self.says = (self.stub / "err").read_text()
        assert found.returncode == code, self.says
        return found.stdout.strip()

    def installations(self) -> list[str]:
        """Return what was installed since this was called last."""
        log = self.stub / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def empty_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


def test_each_command_installs_what_it_needs_once_and_on_top_of_the_other(checkout: Checkout) -> None:
    python = str(checkout.root / ".venv" / "bin" / "python")
    install = "venv pip install --no-compile --progress-bar off --constraint constraints.txt --editable"
    assert checkout.set_up() == python
    assert checkout.installations() == [f"{install} ."]
    assert checkout.set_up("soma,test") == python
    assert checkout.installations() == [f"{install} .[soma,test]"]
    for extras in ("", "soma,test"):
        checkout.set_up(extras)
    assert checkout.installations() == []


def test_other_versions_are_installed_without_removing_what_is_there(checkout: Checkout) -> None:
    checkout.set_up()
    kept = checkout.root / ".venv" / "of the user"
    kept.touch()
    (checkout.root / "constraints.txt").write_text("torch==2.0.1\n")
    checkout.installations()
    checkout.set_up()
    assert len(checkout.installations()) == 1
    assert kept.exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_that_lacks_something_is_left_alone(
    checkout: Checkout, tmp_path: Path, variable: str
) -> None:
    other = empty_environment(tmp_path / "other")
    before = sorted(other.rglob("*"))
    checkout.environment[variable] = str(other)
    assert checkout.set_up() == str(checkout.root / ".venv" / "bin" / "python")
    assert f"{other} is left as it is and .venv is used: it lacks dist-scvi of {checkout.root}" in checkout.says
    assert sorted(other.rglob("*")) == before


@pytest.mark.parametrize(("extras", "lacks"), [("", None), ("test", "it lacks surely-not-installed>=2")])
def test_an_active_environment_is_used_if_it_holds_what_the_command_needs(
    checkout: Checkout, extras: str, lacks: str | None
) -> None:
    (checkout.root / "dist_scvi").mkdir()
    (checkout.root / "dist_scvi" / "__init__.py").touch()
    metadata = checkout.stub / "dist_scvi-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-scvi\nVersion: 1\n")
    checkout.environment |= {"VIRTUAL_ENV": sys.prefix, "PYTHONPATH": f"{checkout.root}:{checkout.stub}"}
    used = checkout.set_up(extras)
    assert used == str(Path(sys.prefix if lacks is None else checkout.root / ".venv") / "bin" / "python")
    assert (lacks or "") in checkout.says
    assert bool(checkout.installations()) == (lacks is not None)


def test_the_environment_of_these_tests_holds_what_the_tests_need() -> None:
    script = ROOT / "launch" / "check_environment.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-P", script, "test"], env=environment, check=True, cwd="/")


def test_uv_is_used_where_it_is_installed(checkout: Checkout) -> None:
    checkout.command("uv", UV.format(python=BASE))
    assert checkout.set_up("test") == str(checkout.root / ".venv" / "bin" / "python")
    made, installed = checkout.installations()
    assert made.endswith(f"--python {checkout.stub}/bin/python3 .venv")
    assert installed.endswith("--constraint constraints.txt --editable .[test]")


def test_a_python_without_pip_for_environments_fills_one_with_its_own(checkout: Checkout) -> None:
    (checkout.stub / "no_ensurepip").touch()
    checkout.set_up()
    [installed] = checkout.installations()
    assert installed.startswith("base pip --python .venv/bin/python install ")


def test_a_python_that_is_too_old_is_refused_unless_uv_brings_one(checkout: Checkout) -> None:
    checkout.command("python3", "#!/bin/bash\nexit 1\n")
    checkout.environment["PYTHON"] = "python3"
    checkout.set_up(code=1)
    assert "Python 3.11, 3.12 or 3.13 is needed, tried python3" in checkout.says
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("uv", [False, True])
def test_the_size_is_announced_and_how_to_take_the_build_for_cpus(checkout: Checkout, *, uv: bool) -> None:
    choice = "UV_TORCH_BACKEND=cpu" if uv else "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
    if uv:
        checkout.command("uv", UV.format(python=BASE))
    (checkout.stub / "build").write_text("")
    checkout.command("uname", "#!/bin/bash\necho Linux x86_64\n")
    checkout.set_up()
    assert "3 GB to download" in checkout.says
    assert choice in checkout.says
    (checkout.stub / "build").write_text("+cpu")
    shutil.rmtree(checkout.root / ".venv")
    checkout.set_up()
    assert "GB on disk" in checkout.says
    assert choice not in checkout.says


def test_a_long_installation_says_where_it_stands(checkout: Checkout) -> None:
    (checkout.stub / "slow").touch()
    checkout.set_up()
    assert "MB: Collecting torch" in checkout.says


def test_an_installation_that_failed_shows_why_and_is_tried_again(checkout: Checkout) -> None:
    (checkout.stub / "fails").touch()
    checkout.set_up(code=1)
    assert "no network" in checkout.says
    (checkout.stub / "fails").unlink()
    checkout.installations()
    checkout.set_up()
    assert len(checkout.installations()) == 1


def test_a_folder_that_set_up_did_not_make_is_not_replaced(checkout: Checkout) -> None:
    mine = checkout.root / ".venv" / "mine"
    mine.mkdir(parents=True)
    checkout.set_up(code=1)
    assert "remove it, then start again" in checkout.says
    assert mine.exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_commands() -> None:
    scripts = [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"]
    found = subprocess.run(["shellcheck", "--external-sources", *scripts], capture_output=True, text=True, check=False)
    assert len(scripts) == 4
    assert found.returncode == 0, found.stdout
