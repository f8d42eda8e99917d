"""A small HTTP server that answers from a script: what stands in for a broken Ollama."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedServer:
    """Answers request n with `script[n]` (the last one again when the script is over).

    A step is a dict: `status`, and one of `json`, `text`, `lines` (newline-delimited JSON) and `sse`
    (server-sent events); `pause` seconds between lines, `hang` seconds before anything, `drop` to cut
    the connection where the end should be. `requests` are the JSON bodies received, `heads` the
    (path, headers) of them; `hung_up` is set when a client leaves in the middle of an answer.
    """

    def __init__(self, script: list[dict]):
        self.script, self.requests, self.heads, self.hung_up = script, [], [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append(json.loads(body) if body else {})
                self.answer()

            def do_GET(self):
                outer.requests.append({"path": self.path})
                self.answer()

            def answer(self):
                outer.heads.append((self.path, self.headers))
                step = outer.script[min(len(outer.requests), len(outer.script)) - 1]
                try:
                    outer.play(self, step)
                except OSError:
                    outer.hung_up.set()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def play(self, handler: BaseHTTPRequestHandler, step: dict) -> None:
        time.sleep(step.get("hang", 0))
        handler.send_response(step.get("status", 200))
        pieces = _pieces(step)
        if "drop" in step:  # promises more than it will send
            handler.send_header("Content-Length", str(sum(map(len, pieces)) + 100))
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(step.get("pause", 0))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _pieces(step: dict) -> list[bytes]:
    if "lines" in step:
        return [json.dumps(line).encode() + b"\n" for line in step["lines"]]
    if "sse" in step:
        events = [{"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", **e} for e in step["sse"]]
        return [b"data: " + json.dumps(e).encode() + b"\n\n" for e in events] + [b"data: [DONE]\n\n"]
    return [json.dumps(step["json"]).encode() if "json" in step else step.get("text", "").encode()]
