"""Development sessions: `nox` runs check and test; `nox -l` lists the others."""

from pathlib import Path

import nox

nox.options.sessions = ["check", "test"]
nox.options.default_venv_backend = "virtualenv"
INSTALL = ("-c", "constraints.txt", "-e", ".[dev]")


@nox.session
def check(session: nox.Session) -> None:
    """Format, lint, types, layers and the shape of the tree."""
    session.install(*INSTALL)
    session.run("ruff", "format", "--check", "meshnode", "tests", "examples", "noxfile.py")
    session.run("ruff", "check", "meshnode", "tests", "examples", "noxfile.py")
    session.run("lint-imports")
    session.run("pytest", "tests/structure", "-q")  # mypy too, with trio's own types


@nox.session
def test(session: nox.Session) -> None:
    """The whole default suite; arguments go to pytest."""
    session.install(*INSTALL)
    session.run("pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What is promised of speed, memory, quality and the mesh, with its goals; `-- --only NAME`; docs/performance.md."""
    session.install(*INSTALL)
    session.run("python", "tests/bench/bench.py", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Meshes in trouble, on virtual time: 200 seeds, 50 with 50 nodes, the others with 4 to 6; then the shards, as `placement`.

    `-- --seeds N`, `-- --seed N --trace` or `-- --size NODES` play the meshes alone; `nox -s placement -- ...` the shards alone.
    """
    session.install(*INSTALL)
    environment = {"PYTHONPATH": "tests", "PYTHONHASHSEED": "0"}
    session.run("python", "-m", "simulation", *session.posargs, env=environment)
    if not session.posargs:
        session.run("python", "-m", "simulation.placement", env=environment)


@nox.session
def placement(session: nox.Session) -> None:
    """A day of 500 members who come and go, and where their shards lie: 20 seeds; `-- --seeds N`, `-- --nodes N`."""
    session.install(*INSTALL)
    session.run("python", "-m", "simulation.placement", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def browser(session: nox.Session) -> None:
    """The node's page in a headless Chromium, which must be installed; CHROME_PATH says where."""
    session.install(*INSTALL)
    session.run("pytest", "tests/dashboard", "-m", "browser", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The decoders of what peers send, with atheris for a minute, and the API of a real node, with schemathesis.

    Arguments go to libFuzzer (`-- -max_total_time=600`).
    """
    session.install(*INSTALL, "atheris>=3", "schemathesis>=4.32")
    arguments = session.posargs or ["-max_total_time=60"]
    session.run("python", "tests/fuzz/fuzz_decoders.py", str(Path(session.create_tmp()) / "corpus"), *arguments)
    session.run("python", "tests/fuzz/fuzz_api.py")
