"""
A Hub for tests: repositories in memory behind the part of the Hub's HTTP interface that `huggingface_hub`,
`transformers`, `peft` and `datasets` publish and load through. It knows users by their tokens, keeps private what is
private, has branches and pull requests, and can be made to refuse or to hold uploads.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


USERS = {"hf_tester": "tester", "hf_guest": "guest"}  # by token
_DATE = "2026-01-01T00:00:00.000Z"
_LARGE = (".bin", ".parquet", ".png", ".pt", ".safetensors")  # kept as large files, whatever their size
_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", None: "model"}


def git_oid(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(_LARGE)


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository: commits, of which branches and pull requests each name one."""

    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, title: str, files: dict[str, bytes]) -> Commit:
        """Puts a commit at the head of `ref`."""
        names = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
        sha = hashlib.sha1(repr((len(self.commits), title, names)).encode()).hexdigest()
        self.commits[sha] = Commit(sha, title, files)
        self.refs[ref] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a pull request or a commit's name."""
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]].files


class HubServer(ThreadingHTTPServer):
    """
    The server, and what it holds: `repos` by kind and id, large files by their SHA-256 in `large`, and in `log` method
    and path of every request. The next uploads of large files are answered with the statuses in `refusals`. Once there
    are `capacity` large files, uploads of more hang, and `hangs` is set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.refusals: list[int] = []
        self.capacity: int | None = None
        self.hangs, self.ends = threading.Event(), threading.Event()
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repo(self, id: str, kind: str = "model") -> Repo:
        return self.repos[kind, id]

    def uploads(self) -> list[str]:
        """SHA-256 of each large file that was sent, in order."""
        return [path.removeprefix("/large/") for method, path in self.log if method == "PUT"]


@contextlib.contextmanager
def serve() -> Iterator[HubServer]:
    """Runs a server while the block does."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ends.set()
        server.shutdown()
        server.server_close()


class Refused(Exception):
    """An answer that is an error: status, the Hub's name of it, and more headers."""

    def __init__(self, status: int, code: str, headers: dict[str, str] | None = None):
        super().__init__(code)
        self.status, self.code, self.headers = status, code, headers or {}


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        """The server keeps a log of its own."""

    def handle_request(self) -> None:
        self.content = self._read()
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        path = url.path
        with self.server.lock:
            self.server.log.append((self.command, unquote(path)))
        try:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    return action(
                        self, **{name: value and unquote(value) for name, value in match.groupdict().items()}
                    )
            raise Refused(404, "NotFound")
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code, **refusal.headers}
            self.reply({"error": refusal.code}, refusal.status, headers)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def reply(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Sends bytes as they are and everything else as JSON."""
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.content)

    @property
    def user(self) -> str | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def find(self, kind: str | None, id: str, write: bool = False) -> Repo:
        """The repository, if there is one that the user may see, or write to."""
        repo = self.server.repos.get((_KINDS[kind], id))
        is_owner = self.user == id.split("/")[0]
        if repo is None or (repo.private and not is_owner):
            raise Refused(404 if self.user else 401, "RepoNotFound")
        if write and self.user is None:
            raise Refused(401, "Unauthorized")
        if write and not is_owner:
            raise Refused(403, "Forbidden")
        return repo

    def find_commit(self, kind: str | None, id: str, revision: str) -> tuple[Repo, Commit]:
        repo = self.find(kind, id)
        commit = repo.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        return repo, commit

    # Users and repositories

    def who_am_i(self) -> None:
        if self.user is None:
            raise Refused(401, "Unauthorized")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self.reply({"type": "user", "name": self.user, "orgs": [], "auth": token})

    def create_repo(self) -> None:
        asked = self.json
        owner = asked.get("organization") or self.user
        if self.user is None:
            raise Refused(401, "Unauthorized")
        if owner != self.user:
            raise Refused(403, "Forbidden")
        kind, id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        answer = {"url": self.url_of(kind, id), "name": id, "id": id}
        with self.server.lock:
            if (kind, id) in self.server.repos:
                return self.reply({"error": "You already created this repo", **answer}, 409)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            repo = self.server.repos[kind, id] = Repo(id, private)
            repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs\n"})
        self.reply(answer)

    def url_of(self, kind: str, id: str) -> str:
        return f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{id}"

    def create_branch(self, kind: str, id: str, branch: str) -> None:
        repo = self.find(kind, id, write=True)
        start = repo.at(self.json.get("startingPoint") or "main")
        if branch in repo.refs:
            raise Refused(409, "BranchExists")
        if start is None:
            raise Refused(404, "RevisionNotFound")
        repo.refs[branch] = start.sha
        self.reply({})

    def info(self, kind: str, id: str, revision: str | None) -> None:
        repo, commit = self.find_commit(kind, id, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        times = {"lastModified": _DATE, "createdAt": _DATE}
        counts = {"downloads": 0, "likes": 0, "gated": False, "disabled": False, "tags": []}
        about = {"_id": id, "id": id, "sha": commit.sha, "private": repo.private, "siblings": siblings}
        self.reply({**about, **counts, **times, **({"modelId": id} if kind == "models" else {})})

    def refs(self, kind: str, id: str) -> None:
        found = self.find(kind, id).refs.items()
        pulls = [
            {"name": name, "ref": name, "targetCommit": sha} for name, sha in found if name.startswith("refs/pr/")
        ]
        heads = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in found
            if not name.startswith("refs/")
        ]
        self.reply({"branches": heads, "converts": [], "tags": [], "pullRequests": pulls})

    # Reading

    def tree(self, kind: str, id: str, revision: str, folder: str | None) -> None:
        _, commit = self.find_commit(kind, id, revision)
        start = f"{folder}/" if folder else ""
        if start and not any(path.startswith(start) for path in commit.files):
            raise Refused(404, "EntryNotFound")
        below = {path: content for path, content in commit.files.items() if path.startswith(start)}
        folders = {path[: path.index("/", len(start))] for path in below if "/" in path[len(start) :]}
        if self.query.get("recursive", "").lower() in ("true", "1"):
            parts = [path.split("/")[:-1] for path in below]
            folders = {"/".join(one[: i + 1]) for one in parts for i in range(len(one))} - {folder}
        else:
            below = {path: content for path, content in below.items() if "/" not in path[len(start) :]}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": ""} for path in sorted(folders)]
        self.reply(entries + [_entry(path, content) for path, content in sorted(below.items())])

    def paths_info(self, kind: str, id: str, revision: str) -> None:
        _, commit = self.find_commit(kind, id, revision)
        text = self.content.decode()
        asked = self.json["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        folders = [path for path in asked if any(name.startswith(f"{path}/") for name in commit.files)]
        entries = [{"type": "directory", "path": path, "size": 0, "oid": ""} for path in folders]
        self.reply(entries + [_entry(path, commit.files[path]) for path in asked if path in commit.files])

    def resolve(self, kind: str | None, id: str, revision: str, path: str) -> None:
        _, commit = self.find_commit(kind, id, revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", headers)
        content = commit.files[path]
        digest = hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)
        headers["ETag"] = f'"{digest}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.reply(content, 200, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(content[first : last + 1], 206, headers)

    # Writing

    def preupload(self, kind: str, id: str, revision: str) -> None:
        repo = self.find(kind, id, write="create_pr" not in self.query)
        commit = repo.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        answers = []
        for file in self.json["files"]:
            there, mode = commit.files.get(file["path"]), "lfs" if is_large(file["path"]) else "regular"
            name: Callable[[bytes], str] = (
                git_oid if mode == "regular" else lambda one: hashlib.sha256(one).hexdigest()
            )
            oid = None if there is None else name(there)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answers})

    def large_files(self, kind: str | None, id: str) -> None:
        if self.user is None:
            raise Refused(401, "Unauthorized")
        self.find(kind, id)
        objects = []
        for one in self.json["objects"]:
            upload = {"href": f"{self.server.url}/large/{one['oid']}"}
            actions = {} if one["oid"] in self.server.large else {"actions": {"upload": upload}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        self.reply({"transfer": "basic", "objects": objects})

    def put_large(self, oid: str) -> None:
        server = self.server
        with server.lock:
            refusal = server.refusals.pop(0) if server.refusals else None
            is_full = server.capacity is not None and len(server.large) >= server.capacity
        if is_full:
            server.hangs.set()
            server.ends.wait()
            raise Refused(503, "Ends")
        if refusal is not None:
            raise Refused(refusal, "Refused")
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refused(400, "Corrupted")
        server.large[oid] = self.content
        self.reply({})

    def commit(self, kind: str, id: str, revision: str) -> None:
        is_pull_request = "create_pr" in self.query
        repo = self.find(kind, id, write=not is_pull_request)
        if self.user is None:
            raise Refused(401, "Unauthorized")
        parent = repo.at(revision)
        if parent is None or revision not in repo.refs:
            raise Refused(404, "RevisionNotFound")
        files, title = dict(parent.files), ""
        for line in self.content.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server.large:
                        raise Refused(400, "MissingLargeFile")
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case "deletedFolder":
                    start = value["path"].rstrip("/") + "/"
                    files = {path: content for path, content in files.items() if not path.startswith(start)}
                case other:
                    raise Refused(400, f"UnknownOperation {other}")
        with self.server.lock:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            commit = repo.commit(f"refs/pr/{number}" if is_pull_request else revision, title, files)
        url = self.url_of(_KINDS[kind], id)
        request = f"{url}/discussions/{number}" if is_pull_request else None
        about = {"commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}", "pullRequestUrl": request}
        self.reply({"success": True, "hookOutput": "", **about})

    def validate_card(self) -> None:
        self.reply({"errors": [], "warnings": []})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as listings have it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_large(path):
        sha = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
    return entry


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_PLACE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.who_am_i),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("GET", _REPO + r"(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    ("GET", _REPO + r"/refs", Handler.refs),
    ("GET", _REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", _REPO + r"/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("POST", _REPO + r"/branch/(?P<branch>[^/]+)", Handler.create_branch),
    ("POST", _REPO + r"/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", _REPO + r"/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", _PLACE + r"\.git/info/lfs/objects/batch", Handler.large_files),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", Handler.put_large),
    ("GET HEAD", _PLACE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
