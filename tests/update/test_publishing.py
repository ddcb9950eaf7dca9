"""What a publisher makes is what a node takes."""

import datetime
import stat

import pytest
from support.release_server import make_wheel

from meshnode.errors import ReleaseRefused, UpdateError
from meshnode.update.publishing import make_key, make_release, sign
from meshnode.update.release import decode_key, verify_release


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "meshnode-9.1.0-py3-none-any.whl"
    path.write_bytes(make_wheel("9.1.0"))
    return path


def release(wheel, **changes):
    return make_release(wheel, **{"sequence": 3, "days": 30, "channel": "stable", "url": wheel.name} | changes)


def verified(document, keys):
    now = datetime.datetime.now(datetime.UTC)
    return verify_release(
        document, keys=frozenset(map(decode_key, keys)), threshold=2, channel="stable", now=now
    ).release


def test_two_people_sign_one_after_the_other(tmp_path, wheel):
    document = tmp_path / "release.json"
    document.write_bytes(release(wheel))
    keys = [make_key(tmp_path / name) for name in ("one", "two")]
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    assert sign(document, tmp_path / "one")[0] == keys[0]
    with pytest.raises(ReleaseRefused, match="by 1 of the keys"):
        verified(document.read_bytes(), keys)
    sign(document, tmp_path / "one")
    sign(document, tmp_path / "two")
    found = verified(document.read_bytes(), keys)
    assert (found.version, found.sequence, found.requires_python) == ("9.1.0", 3, ">=3.11")
    assert found.artifacts[0].url == wheel.name


def test_a_key_is_never_overwritten(tmp_path):
    make_key(tmp_path / "one")
    with pytest.raises(UpdateError, match="never overwritten"):
        make_key(tmp_path / "one")
    with pytest.raises(UpdateError, match="cannot write"):
        make_key(tmp_path / "nowhere" / "one")


def test_what_is_no_wheel_of_meshnode_is_not_released(tmp_path, wheel):
    other = tmp_path / "other.whl"
    for data, words in ((b"", "is no wheel"), (make_wheel("1.0", name="other"), "a wheel of other")):
        other.write_bytes(data)
        with pytest.raises(UpdateError, match=words):
            release(other)
    with pytest.raises(UpdateError, match="cannot read"):
        release(tmp_path / "none.whl")
    with pytest.raises(ReleaseRefused, match="expired"):
        release(wheel, days=-1)


def test_what_is_no_key_and_what_is_no_document_are_said(tmp_path, wheel):
    document, key = tmp_path / "release.json", tmp_path / "key"
    document.write_bytes(release(wheel))
    key.write_text("short")
    with pytest.raises(UpdateError, match="is no key"):
        sign(document, key)
    make_key(tmp_path / "good")
    document.write_text("{}")
    with pytest.raises(ReleaseRefused, match="not a release document"):
        sign(document, tmp_path / "good")
