"""moto's S3 on a port, by moto's own Python: every seventh request fails, and every fifth takes a second.

python object_store.py PORT
"""

import sys
import threading
import time

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
counting = threading.Lock()
count = 0
inner = DomainDispatcherApplication(create_backend_app)


def spoilt(environ, start_response):
    global count
    if environ["PATH_INFO"].startswith("/moto-api"):
        return inner(environ, start_response)
    with counting:
        count += 1
        number = count
    if number % 5 == 0:
        time.sleep(1)
    if number % 7 == 0:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
        return [BUSY]
    return inner(environ, start_response)


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), spoilt, threaded=True)
