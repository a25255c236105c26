"""Weights of the hub: cached files come first, and a missing network fails quickly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from foveate.pretrained.hub import find_stored_file, why_unreachable

CONFIG = SimpleNamespace(hf_hub_id="someone/net", hf_hub_filename=None, url=None)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serve_response(response: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that records requests and sends a response, or none for None."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                if response is not None:
                    requests.append(connection.recv(4096))
                    connection.sendall(response)
                else:
                    time.sleep(3)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], requests


def test_a_responding_hub_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_response(None) as (port, _):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert why_unreachable(CONFIG) == ""


def test_closed_ports_and_unknown_names_are_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert why_unreachable(CONFIG) == "127.0.0.1: Connection refused"
    monkeypatch.setattr(constants, "ENDPOINT", "https://no-such-host.invalid")
    assert why_unreachable(CONFIG).startswith("no-such-host.invalid: ")
    assert time.perf_counter() - begun < 4


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert why_unreachable(CONFIG) == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 200 Connection established\r\n\r\n", ""),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "hub.invalid: Tunnel connection failed: 403 Forbidden"),
    ],
)
def test_the_hub_is_requested_through_the_proxy(
    response: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with serve_response(response) as (port, requests):
        monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{port}")
        assert why_unreachable(CONFIG) == reason
    assert requests[0].startswith(b"CONNECT hub.invalid:443")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0" in requests[0]


def test_a_silent_proxy_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with serve_response(None) as (port, _):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        begun = time.perf_counter()
        assert why_unreachable(CONFIG) != ""
        assert time.perf_counter() - begun < 2


def test_networks_without_an_address_are_reported(tmp_path: Path) -> None:
    nowhere = SimpleNamespace(hf_hub_id=None, url=None)
    assert why_unreachable(nowhere) == "they lie at no known address"
    assert find_stored_file(nowhere) is None


BUILD = """
import sys, time, torch
from foveate.encoders import build_encoder
begun = time.perf_counter()
encoder = build_encoder("resnet10t")
seconds = time.perf_counter() - begun
print(encoder.from_scratch, seconds)
torch.save(encoder.net.state_dict(), sys.argv[1])
"""


def test_cached_weights_are_used_without_a_network(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = timm.create_model("resnet10t")
    hub_id = timm.get_pretrained_cfg("resnet10t").hf_hub_id
    folder = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(net.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    out = tmp_path / "net.pth"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "https://hub.invalid"}
    result = subprocess.run(
        [sys.executable, "-c", BUILD, out],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    from_scratch, seconds = result.stdout.split()
    assert from_scratch == "False"
    assert float(seconds) < 40  # retries take a minute
    stored = torch.load(out)
    torch.testing.assert_close(stored["layer4.0.conv1.weight"], net.layer4[0].conv1.weight.data)
