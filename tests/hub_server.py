"""The Hugging Face Hub on this machine: as much of its protocol as pushing, listing and loading a model need.

    with Hub() as hub:
        subprocess.run([...], env=hub.environment(home))
        hub.repos["tester/model"]["config.json"]  # what was pushed, bytes

`HF_ENDPOINT` is read when huggingface_hub is imported, so whatever speaks to this Hub needs a process of its own.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
REPO = "(?P<repo>[^/]+/[^/]+)"


class Hub(ThreadingHTTPServer):
    """Repositories in memory, each a dict from path to content; only the newest commit of each is kept."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.broken: set[tuple[str, str]] = set()  # (repository, path) of files that it announces, but fails to send
        self.is_full = False  # and takes no commit
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """The variables of a process that knows this Hub only, with its own cache in `home`."""
        own = ("HF_", "TRANSFORMERS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        reached = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        # The last: transformers would ask a service on the internet to convert the pickles of a repository.
        left_out = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION")
        return inherited | reached | dict.fromkeys(left_out, "1")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def create(self, body: bytes) -> None:
        options = json.loads(body)
        repo = f"{options.get('organization') or 'tester'}/{options['name']}"
        self.server.repos.setdefault(repo, {})
        self.send_json({"url": f"{self.server.endpoint}/{repo}"})

    def validate(self, body: bytes) -> None:
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str) -> None:
        files = [file["path"] for file in json.loads(body)["files"]]
        self.send_json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})

    def commit(self, body: bytes, repo: str) -> None:
        if self.server.is_full:
            return self.send(507)
        files = self.server.repos[repo]
        for item in map(json.loads, body.splitlines()):
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        oid = commit_of(files)
        self.send_json({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def info(self, body: bytes, repo: str) -> None:
        files = self.server.repos[repo]
        siblings = [{"rfilename": path} for path in files]
        self.send_json({"id": repo, "sha": commit_of(files), "private": False, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, repo: str, path: str | None) -> None:
        files = {name: content for name, content in self.server.repos[repo].items() if name.startswith(path or "")}
        if not files:
            return self.send(404, error="EntryNotFound")
        self.send_json([{"type": "file", "path": p, "size": len(c), "oid": blob_of(c)} for p, c in files.items()])

    def resolve(self, body: bytes, repo: str, path: str) -> None:
        files = self.server.repos[repo]
        if (repo, path) in self.server.broken and self.command == "GET":
            return self.send(403)
        if path not in files:
            return self.send(404, error="EntryNotFound", commit=commit_of(files))
        self.send(200, files[path], commit=commit_of(files), etag=blob_of(files[path]))

    ROUTES = [
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate),
        ("POST", f"/api/models/{REPO}/preupload/main", preupload),
        ("POST", f"/api/models/{REPO}/commit/main", commit),
        ("GET", f"/api/models/{REPO}(/revision/[^/]+)?", info),
        ("GET", f"/api/models/{REPO}/tree/[^/]+(/(?P<path>.+))?", tree),
        ("GET", f"/{REPO}/resolve/[^/]+/(?P<path>.+)", resolve),
    ]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        method = "GET" if self.command == "HEAD" else self.command
        if method == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401)
        for verb, pattern, act in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                if "repo" in match.groupdict() and match["repo"] not in self.server.repos:
                    return self.send(404, error="RepoNotFound")
                return act(self, body, **match.groupdict())
        self.send(404)

    do_GET = do_HEAD = do_POST = answer

    def send_json(self, content) -> None:
        self.send(200, json.dumps(content).encode())

    def send(self, status: int, content: bytes = b"", **headers: str) -> None:
        names = {"error": "X-Error-Code", "commit": "X-Repo-Commit", "etag": "ETag"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(names[name], value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


def blob_of(content: bytes) -> str:
    """git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    """A name of this state of a repository, in the form of a commit."""
    return hashlib.sha1("".join(f"{path} {blob_of(files[path])}\n" for path in sorted(files)).encode()).hexdigest()
