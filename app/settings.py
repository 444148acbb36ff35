"""What the gateway can be told, and from where: flags, then ``MULTIMODAL_*`` variables, then ``.env``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.media.url import AllowedDomains
from protocol.pictures import MAX_PICTURE_PIXELS

MIB = 2**20


class UnusableSetting(Exception):
    """A setting names something that does not serve, in a sentence for whoever starts the gateway."""


class Settings(BaseSettings):
    """Each field is a flag (``--port``) and a variable (``MULTIMODAL_PORT``)."""

    model_config = SettingsConfigDict(
        env_prefix="MULTIMODAL_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field(default="0.0.0.0", min_length=1, description="Address to listen on.")
    port: int = Field(default=8080, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(default=1, ge=1, le=256, description="Gateway processes that share the port.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line."
    )

    triton_grpc_url: str = Field(
        default="localhost:8001", description="Triton's gRPC endpoint, as host:port; of several workers, with commas."
    )
    worker_connect_seconds: float = Field(default=5.0, gt=0, description="Wait for the worker's first word at most.")
    worker_call_seconds: float = Field(default=30.0, gt=0, description="Wait for one control call at most.")

    max_body_bytes: int = Field(default=64 * MIB, ge=1024, description="Largest request body.")
    max_pictures: int = Field(default=16, ge=0, description="Most pictures in one request.")
    max_picture_bytes: int = Field(default=20 * MIB, ge=1, description="Largest picture, encoded.")
    max_picture_pixels: int = Field(
        default=MAX_PICTURE_PIXELS, ge=1, le=MAX_PICTURE_PIXELS, description="Most pixels in one picture."
    )
    max_prompt_characters: int = Field(default=1_000_000, ge=1, description="Longest prompt.")

    max_prompts: int = Field(default=32, ge=1, description="Most prompts in one batch.")

    allowed_media_domains: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts that pictures are fetched from, with commas between them: example.com, *.example.com (below "
        "it), example.com:8443 (else 80 and 443), or * for all public ones. None: picture URLs are off.",
    )
    media_seconds: float = Field(default=10.0, gt=0, description="A picture must be fetched within this time.")
    media_fetches: int = Field(default=32, ge=1, description="Most pictures fetched at once.")

    api_key_file: Path | None = Field(
        default=None, description="Callers need one of the keys in this file, a line each: KEY or NAME KEY."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Web origins whose pages may call, with commas between; * is all."
    )
    tls_certificate: Path | None = Field(default=None, description="Serve https with this certificate chain (PEM).")
    tls_key: Path | None = Field(default=None, description="The certificate's private key, if in a file of its own.")
    tls_client_ca: Path | None = Field(
        default=None, description="Callers need a certificate signed by one of these (PEM)."
    )

    max_concurrent_requests: int = Field(default=1024, ge=1, description="Most requests in flight, waiting included.")
    max_concurrent_per_key: int | None = Field(
        default=None, ge=1, description="Most requests in flight of one key, or of one address where there are no keys."
    )
    requests_per_minute_per_key: int | None = Field(
        default=None, ge=1, description="Most requests a minute of one key, or of one address."
    )
    max_bytes_in_flight: int = Field(default=1024 * MIB, ge=1024, description="Most bytes of bodies held at once.")
    max_connections: int = Field(default=2048, ge=1, description="Most connections.")
    head_seconds: float = Field(default=15.0, gt=0, description="A request's head must be here within this time.")
    body_seconds: float = Field(default=120.0, gt=0, description="A request's body must be here within this time.")
    write_seconds: float = Field(default=30.0, gt=0, description="A caller that reads nothing so long is cut off.")

    keep_alive_seconds: int = Field(default=75, ge=1, description="An idle connection is kept so long.")

    deadline_seconds: float = Field(default=300.0, gt=0, description="A request fails when it takes longer.")
    ping_seconds: float = Field(default=15.0, gt=0, description="A quiet event stream gets a comment this often.")
    drain_delay_seconds: float = Field(
        default=0.0, ge=0, description="Stay open so long at shutdown, not ready, before connections are refused."
    )
    shutdown_seconds: int = Field(default=30, ge=0, description="Requests in flight may take this long at shutdown.")

    otlp_endpoint: str = Field(
        default="", description="Send traces to this OTLP/gRPC collector, as http://host:4317. Off while empty."
    )

    @field_validator("allowed_media_domains", "cors_origins", mode="before")
    @classmethod
    def _are_split(cls, names: object) -> object:
        entries = [names] if isinstance(names, str) else names
        if not isinstance(entries, (list, tuple)):
            return entries
        return tuple(name for entry in entries for name in str(entry).replace(",", " ").split())

    @field_validator("allowed_media_domains")
    @classmethod
    def _are_domains(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        domains = tuple(map(str.lower, domains))
        AllowedDomains(domains)
        return domains

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"\*|https?://[^/\s*]+", origin):
                raise ValueError("must have the form https://host or https://host:port, without a path, or be *.")
        return origins

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_collector(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/\s]+", url):
            raise ValueError("must have the form http://host:port or https://host:port.")
        return url

    @field_validator("triton_grpc_url")
    @classmethod
    def _are_hosts_and_ports(cls, urls: str) -> str:
        if not all(re.fullmatch(r"[^/\s,]+:\d{1,5}", url) for url in _split(urls)):
            raise ValueError("must have the form host:port, without a scheme; several are separated by commas.")
        if len(set(_split(urls))) < len(_split(urls)):
            raise ValueError("must not name a worker twice.")
        return urls

    @property
    def triton_grpc_urls(self) -> list[str]:
        """An address for each worker."""
        return _split(self.triton_grpc_url)


def _split(urls: str) -> list[str]:
    return [url.strip() for url in urls.split(",")]
