"""What is taken for a release, and the sentence for everything that is not."""

import datetime
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.release_server import (
    KEYS,
    RAW_KEYS,
    STRANGER,
    artifact,
    key_text,
    make_document,
    make_release,
    sign_release,
)

from meshnode.errors import ReleaseRefused, UpdateBlocked
from meshnode.update.release import (
    MAX_DOCUMENT_BYTES,
    Seen,
    check_python,
    check_rollback,
    choose_artifact,
    decode_key,
    verify_release,
)

NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)


def verified(document, *, keys=RAW_KEYS, threshold=2, channel="stable", now=NOW):
    return verify_release(document, keys=keys, threshold=threshold, channel=channel, now=now)


def edited(document, change):
    value = json.loads(document)
    change(value)
    return json.dumps(value).encode()


def signed_text(text, keys=KEYS[:2]):
    """Sign text that `sign_release` would not."""
    import base64

    from meshnode.crypto.signing import signed_bytes

    payload = signed_bytes("release-1", text.encode())
    signatures = [{"key": key_text(key), "signature": base64.b64encode(key.sign(payload)).decode()} for key in keys]
    return json.dumps({"signed": text, "signatures": signatures}).encode()


def with_fields(**changes):
    return signed_text(json.dumps(json.loads(msgspec.json.encode(make_release())) | changes))


def test_what_two_of_three_keys_signed_is_a_release():
    release = make_release(version="9.1.0", sequence=7)
    assert verified(sign_release(release, KEYS[1:])).release == release


def test_a_document_may_be_written_anew_as_long_as_the_signed_text_stays():
    document = make_document()
    assert verified(edited(document, lambda value: None)).digest == verified(document).digest


def test_a_change_after_signing_is_seen():
    def change(value):
        value["signed"] = value["signed"].replace("9.0.0", "9.0.1")

    with pytest.raises(ReleaseRefused, match="changed after it was signed"):
        verified(edited(make_document(), change))


@given(st.data())
def test_no_byte_of_a_document_can_be_changed_so_that_it_says_something_else(data):
    document = bytearray(make_document())
    place = data.draw(st.integers(0, len(document) - 1))
    document[place] = data.draw(st.integers(0, 255))
    try:
        release = verified(bytes(document)).release
    except ReleaseRefused:
        return
    assert release == make_release()


def test_a_signature_of_other_bytes_is_seen():
    def change(value):
        value["signatures"][0]["signature"] = value["signatures"][1]["signature"]

    with pytest.raises(ReleaseRefused, match="is not good"):
        verified(edited(make_document(), change))


def test_one_key_twice_counts_once():
    def change(value):
        value["signatures"] *= 2

    with pytest.raises(ReleaseRefused, match=r"by 1 of the keys in updates\.keys, and 2 different ones"):
        verified(edited(make_document(keys=KEYS[:1]), change))


def test_who_signs_twice_has_signed_once():
    with pytest.raises(ReleaseRefused, match=r"by 1 of the keys in updates\.keys, and 2 different ones"):
        verified(make_document(keys=(KEYS[0], KEYS[0])))


def test_an_unknown_key_counts_for_nothing_and_does_no_harm():
    with pytest.raises(ReleaseRefused, match="by 1 of the keys"):
        verified(make_document(keys=(KEYS[0], STRANGER)))
    verified(make_document(keys=(STRANGER, *KEYS)))


def test_no_signatures_at_all():
    with pytest.raises(ReleaseRefused, match="by 0 of the keys"):
        verified(make_document(keys=()))


def test_a_signature_for_another_purpose_is_none():
    """The same key's signature of the same bytes without our domain."""
    import base64

    def change(value):
        for each, key in zip(value["signatures"], KEYS, strict=False):
            each["signature"] = base64.b64encode(key.sign(value["signed"].encode())).decode()

    with pytest.raises(ReleaseRefused, match="is not good"):
        verified(edited(make_document(), change))


def test_an_expired_release_is_refused_and_one_second_earlier_not():
    document = signed_text(msgspec.json.encode(make_release(expires=NOW + datetime.timedelta(seconds=1))).decode())
    verified(document)
    with pytest.raises(ReleaseRefused, match="expired at 2026-11-24 00:00 UTC"):
        verified(document, now=NOW + datetime.timedelta(seconds=1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"product": "other"}, "release of 'other'"),
        ({"channel": "beta"}, "channel 'beta'"),
        ({"format": 2}, "format 2"),
        ({"sequence": 0}, "sequence 0"),
        ({"version": "newest"}, "not well-formed"),
        ({"version": "V1.0-rc1"}, "to be written 1.0rc1"),
        ({"version": "../../1.0"}, "not well-formed"),
        ({"requires_python": "three"}, "not well-formed"),
        ({"expires": "2099-01-01T00:00:00"}, "time zone"),
        ({"artifacts": []}, "no artifacts"),
        ({"note": "hello"}, "not well-formed"),
        ({"artifacts": [{"platform": "any", "url": "x", "bytes": 0, "blake3": "0" * 64}]}, "0 bytes"),
        ({"artifacts": [{"platform": "any", "url": "x", "bytes": 1 << 40, "blake3": "0" * 64}]}, "the limit"),
        ({"artifacts": [{"platform": "../x", "url": "x", "bytes": 5, "blake3": "0" * 64}]}, "no platform"),
        ({"artifacts": [{"platform": "any", "url": "x", "bytes": 5, "blake3": "beef"}]}, "no BLAKE3"),
    ],
)
def test_what_is_signed_and_still_not_for_us(changes, words):
    with pytest.raises(ReleaseRefused, match=words):
        verified(with_fields(**changes))


@pytest.mark.parametrize(
    "document", [b"", b"<html>", b"[]", b'{"signed": 1}', b"\xff", b'{"signed":"","signatures":[],"x":1}']
)
def test_what_is_no_document(document):
    with pytest.raises(ReleaseRefused, match="not a release document"):
        verified(document)


def test_a_document_has_a_limit():
    with pytest.raises(ReleaseRefused, match="longer than"):
        verified(b" " * (MAX_DOCUMENT_BYTES + 1))


def test_a_lower_sequence_is_a_downgrade():
    seen = verified(make_document(sequence=5)).seen()
    with pytest.raises(ReleaseRefused, match=r"a downgrade: release 9\.0\.0 has sequence 4"):
        check_rollback(verified(make_document(sequence=4)), seen)
    check_rollback(verified(make_document(sequence=5)), seen)
    check_rollback(verified(make_document(sequence=6)), seen)
    check_rollback(verified(make_document(sequence=1)), Seen())


def test_a_lower_version_is_a_downgrade_under_any_sequence():
    seen = verified(make_document(sequence=5, version="10.0")).seen()
    with pytest.raises(ReleaseRefused, match=r"a downgrade: version 9\.0 comes after 10\.0"):
        check_rollback(verified(make_document(sequence=6, version="9.0")), seen)


def test_one_sequence_is_one_release():
    seen = verified(make_document(sequence=5)).seen()
    with pytest.raises(ReleaseRefused, match="two different releases have sequence 5"):
        check_rollback(verified(make_document(b"another wheel", sequence=5)), seen)


def test_the_own_platform_comes_before_any_and_another_one_is_no_platform():
    own, common = artifact(b"own", "linux_x86_64"), artifact(b"all")
    assert choose_artifact(make_release(artifacts=(common, own)), "linux_x86_64") is own
    assert choose_artifact(make_release(artifacts=(common, own)), "linux_riscv64") is common
    with pytest.raises(UpdateBlocked, match="not released for linux_riscv64; it is there for linux_x86_64"):
        choose_artifact(make_release(artifacts=(own,)), "linux_riscv64")


def test_a_release_for_another_python_is_blocked():
    check_python(make_release(requires_python=">=3.11"), "3.11.4")
    with pytest.raises(UpdateBlocked, match=r"needs Python >=3\.14"):
        check_python(make_release(requires_python=">=3.14"), "3.11.4")


def test_nothing_is_signed_that_nobody_would_take():
    with pytest.raises(ReleaseRefused, match="expired"):
        sign_release(make_release(expires=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)), KEYS)


def test_a_key_is_base64_of_32_bytes():
    assert decode_key(key_text(KEYS[0])) in RAW_KEYS
    for text in ("", "AAAA", "!" * 44):
        with pytest.raises(ValueError, match="base64 of an Ed25519 public key"):
            decode_key(text)
