"""Ports that are taken are named before anything is started."""

import socket

import pytest

from tests.e2e.deployment import free_ports
from triton_worker.serving.flags import parse_worker_flags
from triton_worker.serving.worker import WorkerError, _check_ports

FLAGS = ("--triton_port", "--triton_grpc_port", "--triton_metrics_port")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_port_of_triton_s_that_is_taken_is_named(flag: str) -> None:
    ports = dict(zip(FLAGS, free_ports(len(FLAGS)), strict=True))
    given = [word for name, port in ports.items() for word in (name, str(port))]
    settings = parse_worker_flags(
        ["-nc", "checkpoint", "-tmn", "tiny", "-tha", "127.0.0.1", *given, "--triton_grpc_address", "127.0.0.1"]
    )
    _check_ports(settings)
    taken = socket.create_server(("127.0.0.1", ports[flag]))
    with taken, pytest.raises(WorkerError, match=f"Port {ports[flag]} .*{flag}"):
        _check_ports(settings)
