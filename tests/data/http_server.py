"""A local HTTP server that serves files the way bad servers do."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faulty:
    """Files to serve, what goes wrong on which request, and what was asked.

    Attributes:
        files: path -> content.
        faults: what happens to the next requests, in order, then nothing more: "drop" (half of it, then the connection
            ends), "truncate" (half of it under an honest length of that half), "corrupt" (other bytes), "500", "404",
            "html", "ignore range", "length X" (X is told as its length). Of an answer to a range: "whole as rest" (the
            whole file in place of the rest), "short rest" (100 bytes of it), "other total", "other tag", "no place"
            (without Content-Range).
        redirects: path -> path that it is answered with.
        seen: (path, Range header) of every request.
        agents: what the requests called themselves.
        etag: version that is told with every file; empty tells none.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.redirects: dict[str, str] = {}
        self.agents: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        self.etag = '"one"'
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path.partition("?")[0], request.headers.get("Range", "")
        self.seen.append((path, wanted))
        self.agents.add(request.headers["User-Agent"])
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("500", "404") or path not in self.files:
            request.send_response(int(fault or 404))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        content = self.files[path]
        if fault == "html":
            content = b"<html>please log in</html>"
        if fault == "corrupt":
            content = bytes(byte ^ 255 for byte in content)
        if fault == "truncate":
            content = content[: len(content) // 2]
        start = 0
        same = request.headers.get("If-Range", "") == self.etag
        if wanted and same and fault not in ("ignore range", "html"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        if start >= len(content) > 0 and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        partial, end = start > 0, start + 100 if fault == "short rest" else len(content)
        if fault == "whole as rest":
            start = 0
        request.send_response(206 if partial else 200)
        request.send_header("Content-Type", "text/html" if fault == "html" else "application/octet-stream")
        length = fault.removeprefix("length ") if fault.startswith("length ") else str(end - start)
        request.send_header("Content-Length", length)
        if partial and fault != "no place":
            total = len(content) + 7 * (fault == "other total")
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        if self.etag:
            request.send_header("ETag", '"other"' if fault == "other tag" else self.etag)
        request.end_headers()
        rest = content[start:end]
        request.wfile.write(rest[: len(rest) // 2] if fault == "drop" else rest)
        if fault == "drop" or fault.startswith("length "):
            request.close_connection = True


@contextmanager
def serving():
    """A `Faulty` whose `url` is served until the block ends."""
    faulty = Faulty()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):  # noqa: N802, http.server's name
            faulty.answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients that hang up are part of the tests, not worth a traceback
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    faulty.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield faulty
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
