"""A server for `load talk`: it numbers the lines of each connection."""

import socketserver
import sys
import threading


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for number, line in enumerate(self.rfile, 1):
            self.wfile.write(b"%d %s" % (number, line))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def churn(stop):
    """Makes and drops objects, so that the heap is never at rest."""
    while not stop.wait(0.001):
        text = {n: str(n) * 10 for n in range(200)}
        assert text[199] == "199" * 10


threading.Thread(target=churn, args=(threading.Event(),), daemon=True).start()
Server(("", int(sys.argv[1])), Lines).serve_forever()
