"""What comes over the wire is exactly what was signed, or nothing is kept."""

import pytest
import trio
from support.release_server import artifact, make_document, run_release_server

from meshnode.config.urls import is_safe_url
from meshnode.errors import ReleaseRefused, UpdateError, UpdateUnavailable
from meshnode.flow.lanes import Lanes
from meshnode.update.fetching import Limits, connect, fetch_artifact, fetch_document
from meshnode.update.release import MAX_DOCUMENT_BYTES

pytestmark = pytest.mark.processes
WHEEL = bytes(range(256)) * 1200
LIMITS = Limits(stall=10.0, pause=0.0)


@pytest.fixture
def site():
    with run_release_server() as site:
        site.files["/meshnode.whl"] = WHEEL
        yield site


async def fetch(site, folder, limits=LIMITS, wheel=WHEEL):
    async with connect(limits, Lanes()) as client:
        await fetch_artifact(client, site.url, artifact(wheel), folder / "in" / "meshnode.whl", Lanes(), limits)


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_the_artifact_lies_beside_the_document(site, tmp_path):
    await fetch(site, tmp_path)
    assert (tmp_path / "in" / "meshnode.whl").read_bytes() == WHEEL
    assert left(tmp_path) == ["meshnode.whl"]


async def test_a_document_is_fetched_as_it_is(site):
    site.files["/release.json"] = make_document()
    async with connect(LIMITS, Lanes()) as client:
        assert await fetch_document(client, site.url, LIMITS) == site.files["/release.json"]


async def test_a_document_without_an_end_is_not_read_to_the_end(site):
    site.files["/release.json"] = b" " * (MAX_DOCUMENT_BYTES * 4)
    async with connect(LIMITS, Lanes()) as client:
        with pytest.raises(ReleaseRefused, match="longer than"):
            await fetch_document(client, site.url, LIMITS)


async def test_what_was_cut_goes_on_where_it_was(site, tmp_path):
    site.faults = ["cut"]
    await fetch(site, tmp_path)
    assert site.asked == [("/meshnode.whl", None), ("/meshnode.whl", f"bytes={len(WHEEL) // 2}-")]
    assert (tmp_path / "in" / "meshnode.whl").read_bytes() == WHEEL


async def test_a_server_without_ranges_begins_anew(site, tmp_path):
    site.faults = ["cut", "no ranges"]
    await fetch(site, tmp_path)
    assert (tmp_path / "in" / "meshnode.whl").read_bytes() == WHEEL


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (["short"] * 9, UpdateUnavailable, r"ended after \d+ of 307200 bytes"),
        ([503] * 9, UpdateUnavailable, "answers 503"),
        (["other bytes"], ReleaseRefused, "is not what was signed"),
        (["longer"], ReleaseRefused, "longer than the 307200 bytes that were signed"),
    ],
)
async def test_nothing_is_left_of_what_is_not_the_artifact(site, tmp_path, faults, error, words):
    site.faults = faults
    with pytest.raises(error, match=words):
        await fetch(site, tmp_path)
    assert left(tmp_path) == []


async def test_a_truncated_file_is_unavailable(site, tmp_path):
    site.files["/meshnode.whl"] = WHEEL[:-1]
    with pytest.raises(UpdateUnavailable, match="ended after 307199 of 307200 bytes"):
        await fetch(site, tmp_path)
    assert left(tmp_path) == []


async def test_a_server_that_falls_silent_is_given_up(site, tmp_path):
    site.faults = ["stall"] * 9
    with pytest.raises(UpdateUnavailable, match="sends nothing any more"):
        await fetch(site, tmp_path, Limits(stall=0.3, pause=0.0, tries=2))
    assert left(tmp_path) == []


async def test_cancelling_leaves_nothing(site, tmp_path):
    site.faults = ["stall"]
    with trio.move_on_after(0.5) as scope:
        await fetch(site, tmp_path)
    assert scope.cancelled_caught
    assert left(tmp_path) == []


async def test_a_full_disk_is_said_and_leaves_nothing(site, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "meshnode.whl.part").symlink_to("/dev/full")
    with pytest.raises(UpdateError, match="is full; free some space"):
        await fetch(site, tmp_path)
    assert left(tmp_path) == []
    assert not (tmp_path / "in" / "meshnode.whl.part").is_symlink()


async def test_nobody_is_there(site, tmp_path):
    site.base = "http://127.0.0.1:1"
    with pytest.raises(UpdateUnavailable, match="cannot be read"):
        await fetch(site, tmp_path)


async def test_a_redirect_is_followed_but_not_off_https(site, tmp_path):
    site.files |= {"/real.whl": WHEEL, "/meshnode.whl": "/real.whl"}
    await fetch(site, tmp_path)
    site.files["/meshnode.whl"] = "http://192.0.2.1/meshnode.whl"
    with pytest.raises(UpdateUnavailable, match="releases come over https"):
        await fetch(site, tmp_path)
    site.files["/meshnode.whl"] = "/meshnode.whl"
    with pytest.raises(UpdateUnavailable, match="redirected more than"):
        await fetch(site, tmp_path)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://example.com/release.json", True),
        ("http://127.0.0.1:8/x", True),
        ("http://[::1]/x", True),
        ("http://localhost:80/x", True),
        ("http://example.com/x", False),
        ("http://127.0.0.1.example.com/x", False),
        ("https://user:word@example.com/x", False),
        ("https://", False),
        ("file:///etc/passwd", False),
        ("https://example.com:port/", False),
        ("release.json", False),
    ],
)
def test_only_what_nobody_on_the_way_can_change_is_safe(url, safe):
    assert is_safe_url(url) is safe
