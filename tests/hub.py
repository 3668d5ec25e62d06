"""A model hub on the loopback interface, for the real client: repositories that are created, committed to and read.

Large files (`LFS`) take the way that they take on the Hub: batch, upload, verify, and a pointer in the commit.
Repositories live in memory; the server stops with the `with` block. Whatever it receives is kept, and what it is to
fail at can be told (`Fault`).
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import huggingface_hub
import transformers
from huggingface_hub import constants


TOKEN = "hf_testtesttesttesttest"
"""The one token that may write, and read what is private."""

LFS = (".safetensors", ".parquet", ".png")
"""Endings of files that are too large for a commit itself."""


class Repository(dict):
    """Content by path."""

    def __init__(self, private=False):
        super().__init__()
        self.private = private
        self.messages = []

    @property
    def sha(self):
        """Of the latest commit."""
        return f"{len(self.messages):040x}"


@dataclass
class Fault:
    """What goes wrong: the next requests whose line holds a text.

    Attributes:
        line: part of the request's method and path.
        status: what is answered; 0 cuts the connection in the middle of what is sent.
        times: how often.
    """

    line: str
    status: int = 500
    times: int = 1


class Hub(ThreadingHTTPServer):
    """Repositories by `models/me/name` or `datasets/me/name`; the requests, and the bytes of all but their tokens."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.blobs = {}
        self.requests = []
        self.received = []
        self.faults = []
        self.lfs = True

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args):
        """Quiet: a connection that is cut on purpose ends in an exception here."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Quiet."""

    def do_POST(self):
        asked = self._asked()
        if asked is None:
            return
        path, body = asked
        routes = {
            r"/api/repos/create": self._create,
            r"/api/((?:models|datasets)/[^/]+/[^/]+)/preupload/[^/]+": self._modes,
            r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/lfs/verify": self._verify,
            r"/api/((?:models|datasets)/[^/]+/[^/]+)/commit/[^/]+": self._commit,
            r"/api/((?:models|datasets)/[^/]+/[^/]+)/paths-info/[^/]+": self._paths,
        }
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
            return
        if not self._may_write():
            self._error(401, "Invalid credentials in Authorization header")
            return
        self._route(routes, path, body)

    def do_PUT(self):
        asked = self._asked()
        if asked is None:
            return
        path, body = asked
        oid = path.removeprefix("/lfs/")
        if hashlib.sha256(body).hexdigest() != oid:
            self._error(400, "The content is not what was announced")
            return
        self.server.blobs[oid] = body
        self._answer(200, b"", {})

    def do_GET(self):
        asked = self._asked()
        if asked is None:
            return
        routes = {
            r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/revision/.+)?": self._about,
            r"/api/((?:models|datasets)/[^/]+/[^/]+)/tree/[^/]+(?:/(.*))?": self._tree,
            r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)": self._file,
        }
        self._route(routes, asked[0])

    do_HEAD = do_GET

    # ---- writing ----

    def _create(self, body):
        wanted = json.loads(body)
        owner, short = wanted.get("organization") or "me", wanted["name"].split("/")[-1]
        name = f"{wanted.get('type') or 'model'}s/{owner}/{short}"
        known = name in self.server.repositories
        if not known:
            self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
        url = f"{self.server.endpoint}/{name.removeprefix('models/')}"
        self._json({"url": url, "error": "You already created this repo"}, 409 if known else 200)

    def _modes(self, body, name):
        repository = self.server.repositories.get(name)
        if repository is None:
            self._missing("RepoNotFound")
            return
        self._json({"files": [self._mode(file["path"], repository) for file in json.loads(body)["files"]]})

    def _mode(self, path, repository):
        """How a file is to come, and what is there of it."""
        large = self.server.lfs and path.endswith(LFS)
        mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {**mode, "oid": _oid(path, repository[path])} if path in repository else mode

    def _batch(self, body, *_):
        self._json({"transfer": "basic", "objects": [self._action(wanted) for wanted in json.loads(body)["objects"]]})

    def _action(self, wanted):
        if wanted["oid"] in self.server.blobs:
            return wanted
        upload = {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{self.server.endpoint}/lfs/verify"}}}

    def _verify(self, body):
        wanted = json.loads(body)
        fits = len(self.server.blobs.get(wanted["oid"], b"")) == wanted["size"]
        self._answer(200 if fits else 404, b"{}", {})

    def _commit(self, body, name):
        repository = self.server.repositories[name]
        for entry in map(json.loads, filter(None, body.decode().split("\n"))):
            value = entry["value"]
            if entry["key"] == "header":
                repository.messages.append(value["summary"])
            elif entry["key"] == "file":
                repository[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository[value["path"]] = self.server.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del repository[value["path"]]
        url = f"{self.server.endpoint}/{name}/commit/{repository.sha}"
        self._json({"success": True, "commitOid": repository.sha, "commitUrl": url})

    # ---- reading ----

    def _about(self, name):
        repository = self._readable(name)
        if repository is not None:
            files = [{"rfilename": file} for file in repository]
            about = {"siblings": files, "sha": repository.sha, "private": repository.private}
            self._json({"id": name.split("/", 1)[1], "lastModified": "2026-01-01T00:00:00.000Z", **about})

    def _tree(self, name, folder):
        repository = self._readable(name)
        if repository is None:
            return
        under = f"{folder}/" if folder else ""
        inside = {path: content for path, content in repository.items() if path.startswith(under)}
        if under and not inside:
            self._missing("EntryNotFound")
        elif parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true":
            self._json([_entry(path, content) for path, content in inside.items()])
        else:
            first = {under + path.removeprefix(under).split("/")[0]: path for path in inside}
            entries = [
                _entry(path, repository[path])
                if path in repository
                else {"type": "directory", "path": path, "oid": "0"}
                for path in first
            ]
            self._json(entries)

    def _paths(self, body, name):
        repository, wanted = self._readable(name), parse_qs(body.decode()).get("paths", [])
        if repository is not None:
            self._json([_entry(path, repository[path]) for path in wanted if path in repository])

    def _file(self, kind, name, path):
        repository = self._readable(f"{kind or 'models/'}{name}")
        if repository is None:
            return
        if path not in repository:
            self._missing("EntryNotFound")
            return
        tag = hashlib.sha1(repository[path]).hexdigest()
        self._answer(200, repository[path], {"ETag": f'"{tag}"', "X-Repo-Commit": repository.sha})

    def _readable(self, name):
        """The repository; nothing, and an answer, if it is not there or not for this reader."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self._may_write()):
            self._missing("RepoNotFound")
            return None
        return repository

    def _may_write(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # ---- plumbing ----

    def _asked(self):
        """Path and body; nothing if the request is one that fails."""
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.server.requests.append(line)
        length = int(self.headers.get("Content-Length") or 0)
        fault = next((fault for fault in self.server.faults if fault.times and fault.line in line), None)
        if fault is not None:
            fault.times -= 1
            self.rfile.read(length if fault.status else length // 2)
            if fault.status:
                self._error(fault.status, "Something went wrong")
            else:
                self.close_connection = True
                self.connection.close()
            return None
        body = self.rfile.read(length)
        headers = "\n".join(
            f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "authorization"
        )
        self.server.received.append(f"{self.command} {self.path}\n{headers}\n".encode() + body)
        if self.headers.get("Content-Type") == "application/x-ndjson":
            # Content is encoded there: kept in the clear, so that it can be searched.
            contents = re.findall(rb'"content": "([^"]*)"', body)
            self.server.received += [base64.b64decode(content) for content in contents]
        return path, body

    def _route(self, routes, path, *given):
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                answer(*given, *match.groups())
                return
        self._missing("RepoNotFound")

    def _json(self, value, status=200):
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code):
        self._answer(404, b"{}", {"X-Error-Code": code})

    def _error(self, status, message):
        self._answer(status, json.dumps({"error": message}).encode(), {"X-Error-Message": message})

    def _answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(path, content):
    if path.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
    large = {"lfs": {"oid": entry["oid"], "size": len(content), "pointerSize": 100}}
    return {**entry, **large} if path.endswith(LFS) else entry


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


def client_environment(hub, home, token=TOKEN):
    """Environment of a process whose Hub client talks to `hub` alone."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def connect(hub, monkeypatch, home, token=TOKEN):
    """The same for this process, whose client read its environment long ago."""
    for name, value in client_environment(hub, home, token).items():
        monkeypatch.setenv(name, value)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
