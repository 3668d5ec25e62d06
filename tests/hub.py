"""A model hub on the loopback interface, for the real client: repositories that are created, committed to and read.

It answers `uploadMode: "regular"` for every file, so that contents arrive in the commit itself. Repositories live in
memory; the server stops with the `with` block.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


SHA = "0" * 39 + "1"
"""The one commit of every repository."""


class Hub(ThreadingHTTPServer):
    """Repositories by `models/me/name` or `datasets/me/name`, each with its files; and what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.requests = []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Quiet."""

    def do_POST(self):
        path, body = self._asked()
        if path == "/api/repos/create":
            wanted = json.loads(body)
            owner, short = wanted.get("organization") or "me", wanted["name"].split("/")[-1]
            name = f"{wanted.get('type') or 'model'}s/{owner}/{short}"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.endpoint}/{name.removeprefix('models/')}"})
        elif match := re.fullmatch(r"/api/(.+)/preupload/\w+", path):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._json({"files": modes})
        elif match := re.fullmatch(r"/api/(.+)/commit/\w+", path):
            repository = self.server.repositories[match[1]]
            for line in filter(None, body.decode().split("\n")):
                entry = json.loads(line)
                if entry["key"] == "file":
                    repository[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"{self.server.endpoint}/{match[1]}/commit/{SHA}"
            self._json({"success": True, "commitOid": SHA, "commitUrl": url})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._missing("RepoNotFound")

    def do_GET(self):
        path, _ = self._asked()
        if match := re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/revision/.+)?", path):
            self._about(match[1])
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(f"{match[1] or 'models/'}{match[2]}", match[3])
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def _about(self, name):
        if name not in self.server.repositories:
            self._missing("RepoNotFound")
            return
        files = [{"rfilename": file} for file in self.server.repositories[name]]
        self._json({"id": name.split("/", 1)[1], "sha": SHA, "siblings": files, "private": False})

    def _file(self, name, file):
        repository = self.server.repositories.get(name)
        if repository is None or file not in repository:
            self._missing("RepoNotFound" if repository is None else "EntryNotFound")
            return
        tag = hashlib.sha1(repository[file]).hexdigest()
        self._answer(200, repository[file], {"ETag": f'"{tag}"', "X-Repo-Commit": SHA})

    def _asked(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code):
        self._answer(404, b"{}", {"X-Error-Code": code})

    def _answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub():
    """A hub for the length of the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def client_environment(hub, home):
    """Environment of a process whose Hub client talks to `hub` alone."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
