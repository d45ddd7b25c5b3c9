"""A hub of one repository on this machine: as much of the HTTP interface of the Hugging Face hub as tests need."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """The files of the repository by name, and the requests that were made."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            if not self.server.files:
                self._send(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")
            elif "tree" in parts:
                self._json([self._entry(name) for name in self.server.files])
            else:
                siblings = [{"rfilename": name} for name in self.server.files]
                self._json({"id": "me/model", "sha": COMMIT, "siblings": siblings})
        elif "resolve" in parts and parts[-1] in self.server.files:
            content = self.server.files[parts[-1]]
            etag = hashlib.sha1(content).hexdigest()
            self._send(content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Content_Type="application/octet-stream")
        else:
            self._send(b'{"error": "Not found"}', 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            self._json({"url": f"{self.server.url}/me/model", "id": "me/model"})
        elif "preupload" in path:
            asked = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            self._json({"files": [{"path": one["path"], **mode} for one in asked]})
        elif path.startswith("/api/validate-yaml"):
            self._json({"errors": [], "warnings": []})
        elif "commit" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/me/model/commit/{COMMIT}"
            self._json({"commitOid": COMMIT, "commitUrl": url, "success": True})
        else:
            self._send(b"{}", 404)

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
