"""Who is calling: API keys, of which only digests are stored, give the tenant.

Without a key file the gateway trusts every caller as tenant "default", and therefore refuses to
listen anywhere but on the loopback unless the operator says so.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from banyan_gateway.errors import ApiError
from banyan_runtime.settings import SettingsError

_LINE = re.compile(
    r"(?P<tenant>[A-Za-z0-9._-]{1,64}):(?P<digest>[0-9a-f]{64})(:(?P<group>[A-Za-z0-9._-]{1,64}))?"
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """`share_group` names who may share KV: the tenant alone, or a group that was declared."""

    name: str
    share_group: str


DEFAULT_TENANT = Tenant("default", "tenant/default")


class KeyRing:
    """Digests of API keys. With none, every caller is the default tenant."""

    def __init__(self, tenants: dict[bytes, Tenant] | None = None) -> None:
        self._tenants = tenants or {}

    @property
    def is_open(self) -> bool:
        return not self._tenants

    def tenant_of(self, authorization: bytes | None) -> Tenant:
        """The caller's tenant from the Authorization header. Raises ApiError 401.

        Compares with every digest, always: the time taken tells nothing about the keys.
        """
        if self.is_open:
            return DEFAULT_TENANT
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            message = "expected the header 'Authorization: Bearer <API key>'"
            raise ApiError(401, message, code="missing_api_key")
        given = hashlib.sha256(key.strip()).hexdigest().encode()
        found = None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(digest, given):
                found = tenant
        if found is None:
            raise ApiError(401, "this API key is not known", code="invalid_api_key")
        return found


def read_keys(path: Path) -> KeyRing:
    """A ring from lines `tenant:sha256-of-key-in-hex[:share_group]`; `#` begins a comment line.

    Raises SettingsError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        shown = f"BANYAN_GATEWAY_KEY_FILE={path}"
        raise SettingsError(f"{shown}: expected a readable key file ({reason}).") from None
    tenants: dict[bytes, Tenant] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            expected = "expected tenant:sha256-of-the-key-in-hex[:share_group]"
            raise SettingsError(f"{path} line {number}: {expected}.")
        digest = match["digest"].encode()
        if digest in tenants:
            raise SettingsError(f"{path} line {number}: this key appears twice.")
        group = f"group/{match['group']}" if match["group"] else f"tenant/{match['tenant']}"
        tenants[digest] = Tenant(match["tenant"], group)
    if not tenants:
        raise SettingsError(f"{path} holds no key: add a line or unset the key file.")
    return KeyRing(tenants)


def check_exposure(address: str, keys: KeyRing, allow_open: bool) -> None:
    """Raises SettingsError when strangers could call at `host:port` without a key."""
    host = address.rpartition(":")[0]
    if keys.is_open and not allow_open and not _is_loopback(host):
        raise SettingsError(
            f"BANYAN_GATEWAY_ADDRESS={address}: expected a loopback host, for there is no key "
            "file: set BANYAN_GATEWAY_KEY_FILE, or BANYAN_ALLOW_OPEN=1."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
