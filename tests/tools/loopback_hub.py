"""As much of the Hugging Face Hub as its client asks for when it downloads, on the loopback address.

Small files are answered as they are, large ones (.safetensors, .bin) by a redirection to a store, as on the Hub.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")


class Hub:
    """`push` puts files into a repository; `asked` is every (method, path, Range) so far."""

    def __init__(self):
        self.commits, self.refs, self.asked = {}, {}, []
        self.private, self.gated, self.token = set(), set(), "hf_right"
        self.cuts = {}  # file -> how many bytes of it the next answer ends after
        self.broken = False  # whether every answer is an error of the server

    def push(self, name, files, ref="main"):
        """A commit with these files, {name: bytes}, as the branch or tag `ref`; returns its hash."""
        content = repr((name, sorted(files.items()), len(self.commits)))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[name, commit] = dict(sorted(files.items()))
        self.refs[name, ref] = commit
        return commit

    def fetched(self):
        """The files that were asked for, whether there or not."""
        return sorted({path.rpartition("/")[2] for method, path, _ in self.asked if "/resolve/" in path})

    @contextmanager
    def serve(self):
        """Answer on a free port; the address."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and content are two packets, and the second would wait 40 ms
            hub = self

            def do_GET(self):
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def answer(request):
    hub, path = request.hub, urlsplit(request.path).path
    hub.asked.append((request.command, unquote(path), request.headers["Range"]))
    if hub.broken:
        return refuse(request, 503, "", "down")
    if path.startswith("/store/"):
        _, _, name, commit, file = path.split("/", 4)
        return send(request, hub.commits[unquote(name), commit][file], {}, file)
    if path.startswith("/api/models/"):
        name, _, rest = path.removeprefix("/api/models/").partition("/revision/")
        kind = "revision"
        if not rest:
            name, _, rest = path.removeprefix("/api/models/").partition("/tree/")
            kind = "tree"
        revision = rest
    else:
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        kind = "resolve"
    name, revision, token = unquote(name), unquote(revision or "main"), request.headers["Authorization"]
    known = token == f"Bearer {hub.token}"
    if not any(name == other for other, _ in hub.commits) or (name in hub.private and not known):
        if token:
            return refuse(request, 404, "RepoNotFound", "Repository not found")
        return refuse(request, 401, "RepoNotFound", "Invalid username or password.")
    commit = hub.refs.get((name, revision), revision)
    if (name, commit) not in hub.commits:
        return refuse(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
    files = hub.commits[name, commit]
    if kind == "revision":
        siblings = [{"rfilename": file} for file in files]
        return send(request, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), {})
    if kind == "tree":
        listed = [{"type": "file", "path": file, "size": len(x), "oid": digest(x)} for file, x in files.items()]
        return send(request, json.dumps(listed).encode(), {})
    if name in hub.gated and not known:
        return refuse(request, 403, "GatedRepo", f"Access to model {name} is restricted")
    if file not in files:
        return refuse(request, 404, "EntryNotFound", "Entry not found")
    etag, size = f'"{digest(files[file])}"', str(len(files[file]))
    headers = {"X-Repo-Commit": commit, "ETag": etag}
    if file.endswith(LARGE):
        where = f"http://localhost:{request.server.server_port}/store/{name.replace('/', '%2F')}/{commit}/{file}"
        return send(
            request, b"", headers | {"Location": where, "X-Linked-Etag": etag, "X-Linked-Size": size}, status=302
        )
    return send(request, files[file], headers, file)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def refuse(request, status, code, message):
    send(request, b"", {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}), status=status)


def send(request, content, headers, file="", status=200):
    wanted = request.headers["Range"]
    if wanted:
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        content, status = content[start:], 206
    request.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(content))}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    cut = request.hub.cuts.pop(file, None)
    request.wfile.write(content[:cut])
    if cut is not None:
        request.close_connection = True
