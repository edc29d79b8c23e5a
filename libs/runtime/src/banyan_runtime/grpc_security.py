"""How channels are secured: not at all, or by mTLS with certificates of one authority."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from banyan_runtime.settings import SettingsError


@dataclass(frozen=True, slots=True)
class ChannelSecurity:
    """How channels are protected: plain, or mutual TLS with one key pair and one CA per mesh."""

    key: bytes = b""
    certificate: bytes = b""
    authority: bytes = b""

    @classmethod
    def plain(cls) -> ChannelSecurity:
        return cls()

    @classmethod
    def mtls(cls, key: Path, certificate: Path, authority: Path) -> ChannelSecurity:
        """From three PEM files. Raises OSError when one cannot be read or used."""
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # gRPC itself would blame the address
        trial.load_cert_chain(certificate, key)
        trial.load_verify_locations(authority)
        return cls(key.read_bytes(), certificate.read_bytes(), authority.read_bytes())

    @classmethod
    def parse(cls, spec: str) -> ChannelSecurity:
        """From the setting `BANYAN_CHANNELS`: `plain`, or `mtls:KEY,CERTIFICATE,AUTHORITY`.

        Raises SettingsError, also when a file cannot be read.
        """
        if spec == "plain":
            return cls.plain()
        kind, _, files = spec.partition(":")
        paths = [Path(file) for file in files.split(",")]
        if kind != "mtls" or len(paths) != 3:
            raise SettingsError(
                f"BANYAN_CHANNELS={spec}: expected plain, or mtls:KEY,CERTIFICATE,AUTHORITY with "
                "three PEM files."
            )
        try:
            return cls.mtls(*paths)
        except OSError as error:
            expected = f"expected three PEM files that belong together ({error.strerror})"
            raise SettingsError(f"BANYAN_CHANNELS={spec}: {expected}.") from None

    @property
    def is_plain(self) -> bool:
        return not self.key

    def server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.authority, require_client_auth=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
