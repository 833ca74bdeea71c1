"""DFFG_OFFLINE=1: a server that counts sees nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dffg.errors import InputError
from dffg.models.load import load_model
from dffg.offline import no_connections


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.visits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.visits = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: HTTPServer, name: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"http://127.0.0.1:{server.server_port}/{name}").close()


def test_offline_nobody_connects(server, monkeypatch):
    monkeypatch.setenv("DFFG_OFFLINE", "1")
    with no_connections(), pytest.raises(urllib.error.URLError, match="DFFG_OFFLINE is set, so no connection is made"):
        ask(server, "inside")
    ask(server, "after")
    assert server.visits == ["/after"]


@pytest.mark.parametrize("value", [None, "0"])
def test_online_everybody_connects(server, monkeypatch, value):
    monkeypatch.delenv("DFFG_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("DFFG_OFFLINE", value)
    with no_connections():
        ask(server, "inside")
    assert server.visits == ["/inside"]


def test_torchvision_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DFFG_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"resnet18 cannot be loaded: .*DFFG_OFFLINE is set"):
        load_model("torchvision:resnet18")


def test_hugging_face_is_not_asked(tmp_path):
    """In a process of its own: the library reads its variable when it is imported."""
    environment = {**os.environ, "DFFG_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    call = "from dffg.models.load import load_model; load_model('timm:hf-hub:timm/resnet18.a1_in1k')"
    ended = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True, check=False)
    assert "DFFG_OFFLINE is set, so nothing is downloaded: fetch" in ended.stderr, ended.stderr
    assert "Retrying" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
