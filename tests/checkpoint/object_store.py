"""A stand-in for Google's object store: what TensorStore's driver asks of it, on a dict."""

import http.server
import json
import re
import threading
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    """Objects of all buckets by name; one version each."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for 40 ms
    wbufsize = 1 << 16
    objects: dict[str, bytes] = {}  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", headers=()):
        self.send_response(code)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def call(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(r"(/upload)?/storage/v1/b/[^/]+/o(?:/([^/]*))?", url.path)
        name = urllib.parse.unquote(found[2] or "")
        if self.command == "POST":
            self.objects[query["name"]] = body
            self.answer(200, json.dumps(described(query["name"], body)).encode())
        elif self.command == "GET" and not name:
            low, high = query.get("startOffset", ""), query.get("endOffset", "\uffff")
            inside = sorted((n, b) for n, b in self.objects.items() if low <= n < high)
            self.answer(200, json.dumps({"items": [described(*item) for item in inside]}).encode())
        elif name not in self.objects:
            self.answer(404)
        elif self.command == "DELETE":
            del self.objects[name]
            self.answer(204)
        else:
            self.send(self.objects[name])

    def send(self, data):
        headers = [("x-goog-generation", "1")]
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers.append(("Content-Range", f"bytes {first}-{last}/{len(data)}"))
            return self.answer(206, data[first : last + 1], headers)
        return self.answer(200, data, headers)

    do_GET = do_POST = do_DELETE = call


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256  # TensorStore opens many connections at once


def described(name, body):
    return {"name": name, "generation": "1", "metageneration": "1", "size": str(len(body))}


def serve():
    """Starts the store on a free port; returns the server."""
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
