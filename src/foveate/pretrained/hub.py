"""Find a network's published weights on this disk, and check whether they can be fetched."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

_PATIENCE_S = 1.0
_NAMES = ("model.safetensors", "pytorch_model.bin")


def find_stored_file(config: Any) -> Path | None:
    """Find the file of weights that an earlier run has fetched; None where there is none.

    Args:
        config: timm's `PretrainedCfg` of the network.
    """
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = config.hf_hub_id.partition("@")
        for name in filter(None, (config.hf_hub_filename, *_NAMES)):
            file = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(file, str):
                return Path(file)
    if config.url:
        import torch

        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(config.url).path).name
        return path if path.is_file() and path.suffix in (".pth", ".pt", ".bin") else None
    return None


def why_unreachable(config: Any) -> str:
    """Check within two seconds whether weights can be fetched; return why not, "" if they can.

    Respects ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and the proxies of the environment.

    Args:
        config: timm's `PretrainedCfg` of the network.
    """
    from huggingface_hub import constants

    if config.hf_hub_id:
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        address = constants.ENDPOINT
    elif config.url:
        address = config.url
    else:
        return "they lie at no known address"
    problem = ["no answer"]
    # In a thread, since resolving a host's name has no time limit of its own.
    attempt = threading.Thread(target=_try_connection, args=(address, problem), daemon=True)
    attempt.start()
    attempt.join(1.5 * _PATIENCE_S)
    host = urlsplit(address).hostname
    return f"{host}: {problem[0]}" if problem[0] else ""


def _try_connection(address: str, problem: list[str]) -> None:
    """Open a connection and close it; set ``problem[0]`` to the error's text, or "" without one."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    try:
        if proxy and not proxy_bypass(host):
            _try_proxy(proxy, host, port)
        else:
            socket.create_connection((host, port), timeout=_PATIENCE_S).close()
        problem[0] = ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem[0] = re.sub(r"\[Errno.*?\] ", "", str(error)) or type(error).__name__


def _try_proxy(proxy: str, host: str, port: int) -> None:
    """Ask a proxy for a connection to a host, and close it."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not parts.scheme.startswith("http"):
        place = (parts.hostname or "", parts.port or 1080)
        socket.create_connection(place, timeout=_PATIENCE_S).close()
        return
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    address = (parts.hostname or "", parts.port or 80)
    connection = http.client.HTTPConnection(*address, timeout=_PATIENCE_S)
    connection.set_tunnel(host, port, headers)
    try:
        connection.connect()
    finally:
        connection.close()
