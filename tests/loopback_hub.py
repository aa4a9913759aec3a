"""A Hugging Face Hub on loopback for tests: repositories, commits, large files, tokens, and faults on demand.

Speaks the HTTP interface of the Hub as `huggingface_hub`, `transformers`, `peft` and `datasets` call it, and keeps
everything in memory. Knows no model and no audio.

    with LoopbackHub() as hub:
        subprocess.run(command, env=os.environ | hub.environment(home))
        assert "config.json" in hub.files("user/model")
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import constants

TOKEN = "hf_loopbackWriteToken"
READ_TOKEN = "hf_loopbackReadToken"
LARGE_FILE_BYTES = 10 << 20
LARGE_FILE_PATTERNS = ("*.safetensors", "*.bin", "*.wav", "*.flac", "*.parquet")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, content: bytes) -> bool:
    return len(content) > LARGE_FILE_BYTES or any(fnmatch.fnmatch(path, pattern) for pattern in LARGE_FILE_PATTERNS)


def remote_oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path, content) else git_oid(content)


def file_entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": git_oid(content)}
    if is_large(path, content):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 134}
    return entry


@dataclass
class Repository:
    """One repository; a commit is an immutable `{path: content}`."""

    private: bool
    variables: dict[str, str] = field(default_factory=dict)  # of a Space
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by sha, oldest first
    titles: dict[str, str] = field(default_factory=dict)  # by sha
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], title: str, ref: str = "main") -> str:
        listing = json.dumps([[path, git_oid(files[path])] for path in sorted(files)])
        sha = hashlib.sha1(f"{listing}{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.refs[ref] = files, title, sha
        return sha

    @property
    def card_data(self) -> dict:
        readme = self.commits[self.refs["main"]].get("README.md", b"").decode()
        header = re.match(r"---\n(.*?)\n---", readme, re.DOTALL)
        return yaml.safe_load(header[1]) if header else {}


@dataclass
class Fault:
    """The next `times` requests of `method` whose path matches `pattern` fail."""

    method: str
    pattern: str
    status: int  # 0 closes the connection without an answer
    times: int
    message: str
    after: bool  # the request is carried out, only its answer is lost

    def takes(self, method: str, path: str) -> bool:
        hit = self.times > 0 and method == self.method and re.search(self.pattern, path) is not None
        self.times -= hit
        return hit


class LoopbackHub:
    """The server and its state; a context manager.

    `user` owns the namespaces through `TOKEN`; `READ_TOKEN` may only read.
    """

    def __init__(self, namespaces: tuple[str, ...] = ("user", "org")):
        self.namespaces = namespaces
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token: str = TOKEN) -> dict[str, str]:
        """Variables that send a client process here, with caches under `home`; an empty `token` means none."""
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return own | {"HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}

    def attach(self, monkeypatch) -> None:
        """Sends this very process here, as one who may write; waits between attempts take no time."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        files = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)  # made of the endpoint at import
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", self.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the endpoint of its first call
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)

    def fail(
        self, method: str, pattern: str, status: int, times: int = 1, message: str = "broken", after: bool = False
    ):
        self.faults.append(Fault(method, pattern, status, times, message, after))

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> str:
        """Commits `files` to the repository, which is made if it is not there; returns the sha."""
        if (kind, repo_id) not in self.repositories:
            self.repositories[kind, repo_id] = Repository(private)
        repository = self.repositories[kind, repo_id]
        if "main" not in repository.refs:
            repository.commit(
                {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
            )
        return repository.commit(repository.commits[repository.refs["main"]] | files, "by hand") if files else ""

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[kind, repo_id]
        return repository.commits[repository.refs.get(revision, revision)]

    def log(self, repo_id: str, kind: str = "model") -> list[str]:
        """Commit titles, oldest first."""
        return list(self.repositories[kind, repo_id].titles.values())

    def state(self) -> dict:
        """What an onlooker can see: every repository's branches."""
        return {key: dict(repository.refs) for key, repository in self.repositories.items()}


ROUTES: list[tuple[str, re.Pattern, Callable]] = []
REPO = r"(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
FILE_REPO = r"(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"


def route(method: str, pattern: str):
    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Refused(Exception):
    """An answer other than 200: status, the Hub's error code, message."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for a delayed acknowledgement
    hub: LoopbackHub

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content_Type": "application/json", "Content_Length": str(len(content))} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        fault = next((fault for fault in self.hub.faults if fault.takes(self.command, path)), None)
        if fault and not fault.after:
            return self.break_off(fault)
        try:
            status, answer, headers = self.dispatch(path, body)
        except Refused as refusal:
            status, code, message = refusal.args
            answer, headers = {"error": message}, {"X_Error_Code": code, "X_Error_Message": message}
        if fault:
            return self.break_off(fault)
        self.answer(status, answer, **headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def break_off(self, fault: Fault) -> None:
        if fault.status == 0:
            self.close_connection = True
        else:
            self.answer(fault.status, {"error": fault.message}, X_Error_Message=fault.message)

    def dispatch(self, path: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        command = "GET" if self.command == "HEAD" else self.command
        for method, pattern, function in ROUTES:
            if method == command and (match := pattern.fullmatch(path)):
                result = function(self, body, **match.groupdict())
                return result if isinstance(result, tuple) else (200, result, {})
        raise Refused(404, "NotFound", f"no route {self.command} {path}")

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def demand_write(self, namespace: str) -> None:
        if self.token not in (TOKEN, READ_TOKEN):
            raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")
        if self.token == READ_TOKEN or namespace not in self.hub.namespaces:
            raise Refused(403, "Forbidden", f'You don\'t have the rights to write under the namespace "{namespace}"')

    def repository(self, kind: str | None, repo_id: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get((kind or "model", repo_id))
        if repository is None or (repository.private and self.token not in (TOKEN, READ_TOKEN)):
            raise Refused(401 if not self.token else 404, "RepoNotFound", "Repository not found")
        if write:
            self.demand_write(repo_id.split("/")[0])
        return repository

    def snapshot(self, kind: str | None, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(kind, repo_id)
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]


@route("GET", "/api/whoami-v2")
def whoami(request: Handler, body: bytes):
    roles = {TOKEN: "write", READ_TOKEN: "read"}
    if request.token not in roles:
        raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")
    access = {"displayName": "loopback", "role": roles[request.token]}
    return {"type": "user", "name": "user", "orgs": [{"name": "org"}], "auth": {"accessToken": access}}


@route("POST", "/api/repos/create")
def create_repository(request: Handler, body: bytes):
    wanted = json.loads(body)
    namespace, kind = wanted.get("organization") or "user", wanted.get("type") or "model"
    repo_id = f"{namespace}/{wanted['name']}"
    url = f"{request.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    request.demand_write(namespace)
    if (kind, repo_id) in request.hub.repositories:
        return 409, {"error": "You already created this repo", "url": url}, {}
    private = wanted.get("private", False) or wanted.get("visibility") == "private"
    request.hub.add(repo_id, {}, kind, private)
    return {"url": url, "name": repo_id, "id": repo_id}


@route("DELETE", "/api/repos/delete")
def delete_repository(request: Handler, body: bytes):
    wanted = json.loads(body)
    kind, repo_id = wanted.get("type") or "model", f"{wanted.get('organization') or 'user'}/{wanted['name']}"
    request.repository(kind, repo_id, write=True)
    del request.hub.repositories[kind, repo_id]
    return {}


@route("GET", "/api/spaces/(?P<repo_id>[^/]+/[^/]+)/variables")
def space_variables(request: Handler, body: bytes, repo_id: str):
    return {name: {"value": value} for name, value in request.repository("space", repo_id).variables.items()}


@route("POST", "/api/spaces/(?P<repo_id>[^/]+/[^/]+)/variables")
def set_space_variable(request: Handler, body: bytes, repo_id: str):
    wanted = json.loads(body)
    request.repository("space", repo_id, write=True).variables[wanted["key"]] = wanted["value"]
    return space_variables(request, b"", repo_id)


@route("DELETE", "/api/spaces/(?P<repo_id>[^/]+/[^/]+)/variables")
def delete_space_variable(request: Handler, body: bytes, repo_id: str):
    del request.repository("space", repo_id, write=True).variables[json.loads(body)["key"]]
    return space_variables(request, b"", repo_id)


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Handler, body: bytes):
    header = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
    try:
        yaml.safe_load(header[1] if header else "")
    except yaml.YAMLError as error:
        return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
    return {"errors": [], "warnings": []}


@route("POST", f"/api/{REPO}/preupload/(?P<revision>.+)")
def preupload(request: Handler, body: bytes, kind: str, repo_id: str, revision: str):
    request.repository(kind, repo_id, write=True)
    _, files = request.snapshot(kind, repo_id, revision)
    answers = []
    for wanted in json.loads(body)["files"]:
        path, present = wanted["path"], files.get(wanted["path"])
        large = wanted["size"] > LARGE_FILE_BYTES or is_large(path, b"")
        oid = None if present is None else remote_oid(path, present)
        answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return {"files": answers}


@route("POST", rf"/{FILE_REPO}\.git/info/lfs/objects/batch")
def large_file_batch(request: Handler, body: bytes, kind: str | None, repo_id: str):
    request.repository(kind, repo_id, write=True)
    objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]]
    for entry in objects:
        if entry["oid"] not in request.hub.large_files:
            entry["actions"] = {"upload": {"href": f"{request.hub.url}/_large/{entry['oid']}"}}
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/_large/(?P<oid>[0-9a-f]{64})")
def large_file_put(request: Handler, body: bytes, oid: str):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(422, "BadContent", "the content does not have the announced sha256")
    request.hub.large_files[oid] = body
    return {}


@route("POST", f"/api/{REPO}/commit/(?P<revision>.+)")
def commit(request: Handler, body: bytes, kind: str, repo_id: str, revision: str):
    repository = request.repository(kind, repo_id, write=True)
    sha, files = request.snapshot(kind, repo_id, revision)
    files, title = dict(files), ""
    for line in body.splitlines():
        operation = json.loads(line)
        key, value = operation["key"], operation["value"]
        if key == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, sha):
                raise Refused(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = request.hub.large_files[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise Refused(400, "BadRequest", f"unknown operation {key}")
    oid = repository.commit(files, title, revision)
    return {"success": True, "commitOid": oid, "commitUrl": f"{request.hub.url}/{repo_id}/commit/{oid}"}


@route("GET", f"/api/{REPO}(?:/revision/(?P<revision>.+))?")
def info(request: Handler, body: bytes, kind: str, repo_id: str, revision: str | None):
    repository = request.repository(kind, repo_id)
    sha, files = request.snapshot(kind, repo_id, revision or "main")
    return {
        "id": repo_id,
        "sha": sha,
        "private": repository.private,
        "tags": repository.card_data.get("tags", []),
        "siblings": [file_entry(path, content) for path, content in sorted(files.items())],
    }


@route("GET", f"/api/{REPO}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?")
def tree(request: Handler, body: bytes, kind: str, repo_id: str, revision: str, folder: str | None):
    _, files = request.snapshot(kind, repo_id, revision)
    folder = (folder or "").strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in sorted(files.items()) if path.startswith(prefix)}
    if folder and not inside:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
    parts = [path.removeprefix(prefix).split("/") for path in inside]
    folders = sorted({prefix + "/".join(names[:depth]) for names in parts for depth in range(1, len(names))})
    entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]
    entries += [file_entry(path, content) for path, content in inside.items()]
    if request.query.get("recursive", ["false"])[0].lower() in ("1", "true"):
        return entries
    return [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]


@route("GET", f"/{FILE_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: Handler, body: bytes, kind: str | None, repo_id: str, revision: str, path: str):
    sha, files = request.snapshot(kind, repo_id, revision)
    if path not in files:
        message = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found", "X_Repo_Commit": sha}
        return 404, {"error": "Entry not found"}, message
    content = files[path]
    etag = f'"{remote_oid(path, content)}"'
    headers = {
        "Content_Type": "application/octet-stream",
        "ETag": etag,
        "X_Repo_Commit": sha,
        "Accept_Ranges": "bytes",
    }
    if is_large(path, content):
        headers |= {"X_Linked_Etag": etag, "X_Linked_Size": str(len(content))}
    if part := re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
        first, last = int(part[1]), int(part[2] or len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, content[first : last + 1], headers
    return 200, content, headers
