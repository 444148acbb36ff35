"""TLS: the files are tried before the gateway starts, so that what is wrong with them can be said."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from app.settings import Settings, UnusableSetting


def tls_options(settings: Settings) -> dict[str, Any]:
    """The options of uvicorn; none without a certificate. Raises :class:`UnusableSetting`.

    A client certificate is asked for but not demanded in the handshake: probes have none. It is
    :class:`app.middleware.authentication.Authentication` that demands it.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None:
        for name, path in (("tls_key", key), ("tls_client_ca", client_ca)):
            if path is not None:
                raise UnusableSetting(f"{name} needs a certificate: give tls_certificate too.")
        return {}
    _try_files(certificate, key, client_ca)
    options: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key}
    if client_ca is not None:
        options |= {"ssl_ca_certs": str(client_ca), "ssl_cert_reqs": ssl.CERT_OPTIONAL}
    return options


def _try_files(certificate: Path, key: Path | None, client_ca: Path | None) -> None:
    for name, path in (("tls_certificate", certificate), ("tls_key", key), ("tls_client_ca", client_ca)):
        if path is None:
            continue
        try:
            path.read_bytes()
        except OSError as error:
            raise UnusableSetting(f"{name} {path} cannot be read: {error.strerror}.") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except _Encrypted:
        raise UnusableSetting(
            f"tls_key {key or certificate} is encrypted: a key without a passphrase is needed."
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UnusableSetting(
                f"tls_key {key or certificate} is not the key of tls_certificate {certificate}."
            ) from None
        both = f"tls_certificate {certificate} and tls_key {key}" if key else f"tls_certificate {certificate}"
        raise UnusableSetting(f"{both} must hold a certificate chain and its private key, in PEM.") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError:
            raise UnusableSetting(f"tls_client_ca {client_ca} must hold certificates, in PEM.") from None


class _Encrypted(Exception):
    pass


def _refuse_to_ask() -> str:
    """OpenSSL would ask for the passphrase at the terminal."""
    raise _Encrypted
