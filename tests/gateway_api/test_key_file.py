"""The key file, and where a gateway without one may listen."""

import hashlib
from pathlib import Path

import pytest

from banyan_gateway.auth import KeyRing, Tenant, check_exposure, read_keys
from banyan_gateway.errors import ApiError
from banyan_runtime.settings import SettingsError


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_keys_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# keys\n\none:{digest('k1')}\ntwo:{digest('k2')}:team\n")
    ring = read_keys(path)
    assert ring.tenant_of(b"Bearer k1") == Tenant("one", "tenant/one")
    assert ring.tenant_of(b"bearer k2") == Tenant("two", "group/team")
    with pytest.raises(ApiError, match="not known"):
        ring.tenant_of(b"Bearer k3")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one", "line 1: expected tenant:sha256"),
        (f"one:{digest('a')}\none:short", "line 2"),
        (f"one:{digest('a')}:", "line 1"),
        (f"one:{digest('a')}\ntwo:{digest('a')}", "line 2: this key appears twice"),
        ("# only a comment\n", "no key"),
    ],
)
def test_wrong_key_file(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(SettingsError, match=reason):
        read_keys(path)


def test_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="readable key file"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "[::1]"])
def test_open_on_loopback(host: str) -> None:
    check_exposure(f"{host}:8000", KeyRing(), allow_open=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "example.org"])
def test_open_elsewhere_needs_a_word(host: str) -> None:
    with pytest.raises(SettingsError, match="BANYAN_ALLOW_OPEN=1"):
        check_exposure(f"{host}:8000", KeyRing(), allow_open=False)
    check_exposure(f"{host}:8000", KeyRing(), allow_open=True)
    check_exposure(f"{host}:8000", KeyRing({b"d": Tenant("a", "g")}), allow_open=False)
