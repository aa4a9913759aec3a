"""The Xet storage behind the loopback Hub: takes what `hf_xet` uploads. Knows no repository.

Importing it adds its routes. It keeps the chunks of every block (xorb) under their SHA-256: a file of one chunk (8 KiB
and less) that cannot be compressed is there when a commit names it.
"""

import hashlib

from tests.loopback_hub import REPO, Handler, Refused, route

HEADER_BYTES = 8  # of a chunk: version, compressed size (3 bytes), compression, size (3 bytes)
UNCOMPRESSED = 0


@route("GET", f"/api/{REPO}/xet-write-token/(?P<revision>.+)")
def write_token(request: Handler, body: bytes, kind: str, repo_id: str, revision: str):
    request.repository(kind, repo_id, write=True)
    return {"casUrl": request.hub.url, "accessToken": "xet", "exp": 4102444800}  # the year 2100


@route("POST", "/v1/xorbs/default/(?P<oid>[0-9a-f]{64})")
def take_block(request: Handler, body: bytes, oid: str):
    place = 0
    while place + HEADER_BYTES < len(body) and body[place] == 0:  # version 0; a footer may follow
        header = body[place : place + HEADER_BYTES]
        stored, size = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        if header[4] != UNCOMPRESSED or stored != size:
            raise Refused(400, "BadRequest", "this storage takes only what cannot be compressed")
        place += HEADER_BYTES + size
        chunk = body[place - size : place]
        request.hub.large_files[hashlib.sha256(chunk).hexdigest()] = chunk
    return {"was_inserted": True}


@route("POST", "/v1/shards")
def take_listing(request: Handler, body: bytes):
    return {"result": 1}


@route("POST", "/v1/telemetry")
def take_telemetry(request: Handler, body: bytes):
    return {}
