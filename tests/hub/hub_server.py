"""A stand-in for the Hugging Face Hub on loopback: as much of its HTTP API as pushing and loading a model takes.

It keeps repositories with commits, branches and pull requests in a folder, and checks what it is sent: tokens and what
they may do, sizes and SHA-256 of uploads, metadata of model cards. As on the Hub, weights go by the LFS protocol to a
storage server of its own, other files in the commit. It speaks no Xet, takes no upload in parts, and knows models, and
Spaces to read from.

To try commands without the Hub:

    python tests/hub/hub_server.py --port 8765 --folder runs/hub
    export HF_ENDPOINT=http://127.0.0.1:8765 HF_TOKEN=hf_write HF_HUB_DISABLE_XET=1
    coordformer push FOLDER tester/model
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# token: user, which is also the namespace that it may write to, and what it may do
ACCOUNTS = {"hf_write": ("tester", "write"), "hf_read": ("tester", "read"), "hf_stranger": ("stranger", "write")}
MAX_REGULAR = 10 * 2**20  # bytes of a file in a commit; larger ones, and all weights, go by LFS
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refusal(Exception):
    """An answer of the API that is an error; `code` is what the client tells missing things apart by."""

    def __init__(self, status, message, code=None, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


def blob_id(content):
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The stand-in: `with Hub(folder) as hub`, then `hub.url` is the endpoint.

    `requests` lists what was asked, `received` the SHA-256 of every object that was uploaded. `script[route]` lists
    what happens to the next requests of a route (the names of the `Api` methods, `store` for an upload): None answers
    properly, a number is a status, "drop" closes the connection half-way, "hold" sets `holding` half-way and waits for
    the client to go.
    """

    def __init__(self, folder, port=0):
        self.folder = Path(folder)
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.requests, self.received, self.script, self.holding = [], [], {}, threading.Event()
        self.secret = secrets.token_bytes()
        self.servers = [Server(("127.0.0.1", port), Api), Server(("127.0.0.1", 0), Storage)]
        for server in self.servers:
            server.hub = self
        # Hosts of two names, as on the Hub: what a redirect says of a file counts only where it leads to another one.
        hosts = zip(("127.0.0.1", "localhost"), self.servers, strict=True)
        self.url, self.storage_url = (f"http://{name}:{server.server_port}" for name, server in hosts)
        state = self.folder / "repos.json"
        self.repos = json.loads(state.read_text()) if state.exists() else {}

    def __enter__(self):
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def object_path(self, oid):
        return self.folder / "objects" / oid

    def signature(self, method, oid):
        return hmac.new(self.secret, f"{method} {oid}".encode(), "sha256").hexdigest()

    def signed_url(self, method, oid):
        return f"{self.storage_url}/{oid}?signature={self.signature(method, oid)}"

    def write_file(self, content):
        self.object_path(blob_id(content)).write_bytes(content)
        return {"oid": blob_id(content), "size": len(content), "lfs": False}

    def write_commit(self, repo, ref, parent, message, files):
        commit = {"parent": parent, "message": message, "files": files}
        sha = hashlib.sha1(json.dumps(commit, sort_keys=True).encode()).hexdigest()
        repo["commits"][sha] = commit
        repo["refs"][ref] = sha
        self.save()
        return sha

    def save(self):
        temporary = self.folder / "repos.json.tmp"
        temporary.write_text(json.dumps(self.repos))
        os.replace(temporary, self.folder / "repos.json")

    def add_space(self, repo_id, folder):
        """A public Space that holds the files of a folder."""
        repo = self.repos[f"spaces/{repo_id}"] = {"private": False, "refs": {}, "commits": {}}
        files = {path.name: self.write_file(path.read_bytes()) for path in Path(folder).iterdir() if path.is_file()}
        self.write_commit(repo, "main", None, "initial commit", files)

    def files(self, repo_id, revision="main"):
        """Files of a repository by path: `oid`, `size`, `lfs`."""
        repo = self.repos[repo_id]
        return repo["commits"][repo["refs"][revision]]["files"]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 50

    def handle_error(self, *_):
        """A client that hangs up is part of the play."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def follow_script(self, route):
        """Whether the request was answered as planned, which is badly."""
        with self.server.hub.lock:
            self.server.hub.requests.append((route, self.path))
            plan = self.server.hub.script.get(route)
            act = plan.pop(0) if plan else None
        if act is None:
            return False
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length // 2)
        self.close_connection = True
        if act == "hold":
            self.server.hub.holding.set()
            self.rfile.read()
        elif act != "drop":
            self.rfile.read(length - length // 2)
            self.answer(act, {"error": "planned failure"}, Connection="close")
        return True


class Storage(Handler):
    """The objects, by their SHA-256, for whoever has a signed address."""

    def check(self, method):
        url = urlsplit(self.path)
        oid = url.path[1:]
        given = parse_qs(url.query).get("signature", [""])[0]
        if not hmac.compare_digest(given, self.server.hub.signature(method, oid)):
            return self.answer(403, b"SignatureDoesNotMatch", Connection="close")
        if "Authorization" in self.headers:
            return self.answer(400, b"the token left the Hub", Connection="close")
        return oid

    def do_PUT(self):
        hub = self.server.hub
        if self.follow_script("store") or not (oid := self.check("PUT")):
            return
        if "Content-Length" not in self.headers:
            return self.answer(411, b"MissingContentLength", Connection="close")
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=hub.folder, suffix=".part", delete=False) as file:
            while left and (piece := self.rfile.read(min(left, 2**20))):
                digest.update(piece)
                left -= file.write(piece)
        if left or digest.hexdigest() != oid:
            os.unlink(file.name)
            return self.answer(400, b"BadDigest", Connection="close")
        os.replace(file.name, hub.object_path(oid))
        hub.received.append(oid)
        self.answer(200, ETag=f'"{oid}"')

    def do_GET(self):
        if not self.follow_script("fetch") and (oid := self.check("GET")):
            self.answer(200, self.server.hub.object_path(oid).read_bytes(), ETag=f'"{oid}"')


class Api(Handler):
    """The Hub itself; each route's function returns what `answer` takes."""

    def do_GET(self):
        hub, url = self.server.hub, urlsplit(self.path)
        verb = "GET" if self.command == "HEAD" else self.command
        matches = [(re.fullmatch(pattern, url.path), route) for each, pattern, route in ROUTES if each == verb]
        match, route = next((found for found in matches if found[0]), (None, None))
        if match is None:
            return self.answer(404, {"error": f"{verb} {url.path} is not in this stand-in"}, Connection="close")
        if self.follow_script(route.__name__):
            return
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with hub.lock:
                status, body, headers = route(self, *(unquote(part or "") for part in match.groups()))
        except Refusal as refusal:
            status, body, headers = refusal.status, refusal.body, {"X_Error_Message": str(refusal)}
            if refusal.code:
                headers["X_Error_Code"] = refusal.code
        self.answer(status, body, **headers)

    do_POST = do_HEAD = do_GET

    # --- who may do what ---

    def account(self):
        """User and role; None without a token."""
        if (header := self.headers.get("Authorization")) is None:
            return None
        if (account := ACCOUNTS.get(header.removeprefix("Bearer "))) is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def readable(self, repo_id):
        account, repo = self.account(), self.server.hub.repos.get(repo_id)
        if repo is None or (repo["private"] and (account is None or account[0] != repo_id.split("/")[0])):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id, create_pr=False):
        repo, account = self.readable(repo_id), self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if account[1] != "write" or not (create_pr or account[0] == repo_id.split("/")[0]):
            raise Refusal(403, f"You have no right to write to {repo_id}")
        return repo

    def commit_of(self, repo, revision):
        sha = repo["refs"].get(revision, revision)
        if sha not in repo["commits"]:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo["commits"][sha]["files"]

    # --- routes ---

    def whoami(self):
        if (account := self.account()) is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": account[1]}}
        return 200, {"type": "user", "name": account[0], "orgs": [], "auth": token}, {}

    def validate_card(self):
        content = json.loads(self.body)["content"]
        metadata = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            if metadata and not isinstance(yaml.safe_load(metadata[1]), dict):
                raise yaml.YAMLError("the metadata is no mapping")
            if metadata and yaml.safe_load(metadata[1]).get("license") == "none":  # the Hub has a list of them
                raise yaml.YAMLError('"license" must be one of [apache-2.0, mit, ...]')
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return 200, {"errors": [], "warnings": warnings}, {}

    def create_repo(self):
        hub, asked, account = self.server.hub, json.loads(self.body), self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = asked.get("organization") or account[0]
        repo_id = f"{namespace}/{asked['name']}"
        if account[1] != "write" or namespace != account[0]:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if repo_id in hub.repos:
            raise Refusal(409, "You already created this model repo", url=f"{hub.url}/{repo_id}")
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = hub.repos[repo_id] = {"private": bool(private), "refs": {}, "commits": {}}
        hub.write_commit(repo, "main", None, "initial commit", {".gitattributes": hub.write_file(GIT_ATTRIBUTES)})
        return 200, {"name": repo_id, "url": f"{hub.url}/{repo_id}"}, {}

    def create_branch(self, repo_id, branch):
        repo = self.writable(repo_id)
        if branch in repo["refs"]:
            raise Refusal(409, "Reference already exists")
        if branch.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {branch}")
        repo["refs"][branch], _ = self.commit_of(repo, json.loads(self.body or b"{}").get("startingPoint", "main"))
        self.server.hub.save()
        return 200, {}, {}

    def preupload(self, repo_id, revision):
        _, present = self.commit_of(self.writable(repo_id, "create_pr" in self.query), revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": (
                    "lfs" if file["path"].endswith(".safetensors") or file["size"] > MAX_REGULAR else "regular"
                ),
                "shouldIgnore": False,
                "oid": present.get(file["path"], {}).get("oid"),
            }
            for file in json.loads(self.body)["files"]
        ]
        return 200, {"files": files}, {}

    def lfs_batch(self, repo_id):
        hub, asked = self.server.hub, json.loads(self.body)
        # The branch is left out of the request where it becomes a pull request.
        self.writable(repo_id, create_pr="ref" not in asked)
        objects = []
        for one in asked["objects"]:
            actions = {
                "upload": {"href": hub.signed_url("PUT", one["oid"])},
                "verify": {"href": f"{hub.url}/{repo_id}.git/info/lfs/verify"},
            }
            objects.append(one if hub.object_path(one["oid"]).exists() else {**one, "actions": actions})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def lfs_verify(self, repo_id):
        self.writable(repo_id, create_pr=True)
        one = json.loads(self.body)
        self.require_object(one["oid"], one["size"])
        return 200, {}, {}

    def require_object(self, oid, size):
        path = self.server.hub.object_path(oid)
        if not path.exists() or path.stat().st_size != size:
            raise Refusal(400, f"LFS object {oid} of {size} bytes was not uploaded")

    def commit(self, repo_id, revision):
        hub, create_pr = self.server.hub, "create_pr" in self.query
        repo = self.writable(repo_id, create_pr)
        if revision not in repo["refs"]:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent, files = self.commit_of(repo, revision)
        files, header = dict(files), {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                content = base64.b64decode(value["content"], validate=True)
                if len(content) > MAX_REGULAR or value["path"].endswith(".safetensors"):
                    raise Refusal(400, f"{value['path']} has to go by LFS")
                files[value["path"]] = hub.write_file(content)
            elif item["key"] == "lfsFile":
                self.require_object(value["oid"], value["size"])
                files[value["path"]] = {"oid": value["oid"], "size": value["size"], "lfs": True}
            elif item["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise Refusal(400, f"{item['key']} of {value.get('path')} cannot be done")
        if header.get("parentCommit", parent) != parent:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo["refs"])
        ref = f"refs/pr/{number}" if create_pr else revision
        sha = hub.write_commit(repo, ref, parent, header["summary"], files)
        page = f"{hub.url}/{repo_id}"
        reply = {"success": True, "commitUrl": f"{page}/commit/{sha}", "commitOid": sha}
        return 200, {**reply, "pullRequestUrl": f"{page}/discussions/{number}" if create_pr else None}, {}

    def model_info(self, repo_id, revision=None):
        repo = self.readable(repo_id)
        sha, files = self.commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        return 200, {"id": repo_id, "sha": sha, "private": repo["private"], "tags": [], "siblings": siblings}, {}

    def tree(self, repo_id, revision, folder):
        _, files = self.commit_of(self.readable(repo_id), revision)
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for path, file in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            first, rest, _ = path.removeprefix(prefix).partition("/")
            if rest and self.query.get("recursive", "").lower() != "true":
                entries[prefix + first] = {"type": "directory", "path": prefix + first, "oid": "0" * 40, "size": 0}
                continue
            entries[path] = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
            if file["lfs"]:
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file['oid']}\nsize {file['size']}\n"
                entries[path]["oid"] = blob_id(pointer.encode())
                entries[path]["lfs"] = {"oid": file["oid"], "size": file["size"], "pointerSize": len(pointer)}
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return 200, list(entries.values()), {}

    def refs(self, repo_id):
        refs = self.readable(repo_id)["refs"].items()
        pulls = [{"name": ref, "ref": ref, "targetCommit": sha} for ref, sha in refs if ref.startswith("refs/")]
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha}
            for ref, sha in refs
            if not ref.startswith("refs/")
        ]
        return 200, {"branches": branches, "tags": [], "converts": [], "pullRequests": pulls}, {}

    def resolve(self, repo_id, revision, path):
        hub = self.server.hub
        sha, files = self.commit_of(self.readable(repo_id), revision)
        if (file := files.get(path)) is None:
            headers = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found", "X_Repo_Commit": sha}
            return 404, {"error": "Entry not found"}, headers
        if not file["lfs"]:
            content = hub.object_path(file["oid"]).read_bytes()
            return 200, content, {"ETag": f'"{file["oid"]}"', "X_Repo_Commit": sha}
        headers = {
            "Location": hub.signed_url("GET", file["oid"]),
            "X_Repo_Commit": sha,
            "X_Linked_ETag": f'"{file["oid"]}"',
            "X_Linked_Size": str(file["size"]),
        }
        return 302, b"", headers

    def no_xet(self, repo_id, *_):
        raise Refusal(501, "this stand-in speaks no Xet; set HF_HUB_DISABLE_XET=1")


REPO, REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Api.whoami),
    ("POST", "/api/validate-yaml", Api.validate_card),
    ("POST", "/api/repos/create", Api.create_repo),
    ("POST", f"/api/models/{REPO}/branch/{REVISION}", Api.create_branch),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Api.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", Api.lfs_batch),
    ("POST", f"/{REPO}\\.git/info/lfs/verify", Api.lfs_verify),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Api.commit),
    ("GET", f"/api/models/{REPO}", Api.model_info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", Api.model_info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/(.+))?", Api.tree),
    ("GET", f"/api/models/{REPO}/refs", Api.refs),
    ("GET", f"/((?:spaces/)?{REPO[1:]}/resolve/{REVISION}/(.+)", Api.resolve),
    ("GET", f"/api/models/{REPO}/xet-(?:read|write)-token/{REVISION}", Api.no_xet),
]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--folder", type=Path, required=True, help="keeps the repositories")
    arguments = parser.parse_args()
    with Hub(arguments.folder, arguments.port) as hub:
        print("In another terminal:")
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN=hf_write HF_HUB_DISABLE_XET=1")
        print("coordformer push FOLDER tester/NAME", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
