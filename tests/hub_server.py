"""A local stand-in of the Hugging Face Hub: the parts of its HTTP interface that downloads and uploads use."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Server that stores repositories in memory.

    Attributes:
        files: by repository (`user/model`), the contents by file name.
        requests: method and path of each request, in their order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Run a server in a thread."""
    with HubServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        """Answer `/user/model/resolve/REVISION/FILE`, with the headers and error codes of the hub."""
        path = self._note()
        repo, marker, rest = path.strip("/").partition("/resolve/")
        revision, _, name = unquote(rest).partition("/")
        if path.startswith("/api/models/"):
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not marker:
            self._answer(200, b"{}")
        elif repo not in self.server.files:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif name not in self.server.files[repo]:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            content = self.server.files[repo][name]
            etag = hashlib.sha256(content).hexdigest()
            self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        """Answer the requests of an upload: create, validate, preupload and commit."""
        path = self._note()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get("Authorization") == "Bearer wrong":
            self._answer(403, b'{"error": "you may not write here"}')
            return
        if path == "/api/repos/create":
            values = json.loads(body)
            repo = "/".join(filter(None, (values.get("organization"), values["name"])))
            self.server.files.setdefault(repo, {})
            self._json({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        elif "/preupload/" in path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for one in json.loads(body)["files"]]  # fmt: skip
            self._json({"files": files})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[repo][line["value"]["path"]] = base64.b64decode(
                        line["value"]["content"]
                    )
            url = f"{self.server.url}/{repo}/commit/{COMMIT}"
            self._json({"commitUrl": url, "commitOid": COMMIT, "success": True, "pullRequestUrl": None})
        else:  # the metadata of a card are checked by /api/validate-yaml
            self._json({"errors": [], "warnings": []})

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""

    def _note(self) -> str:
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
