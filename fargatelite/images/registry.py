"""Client of the OCI distribution API, on urllib3: manifests and blobs, with retries and auth.

An Authorization header goes to the registry (and the token service that it names) and nowhere else:
redirects are followed here, by hand, and another host gets the request without it (CVE-2020-15157).
"""

from __future__ import annotations

import re
import ssl
import urllib.parse
from collections.abc import Iterator
from typing import Any

import msgspec
import urllib3
from urllib3.util import Retry, Timeout

from fargatelite.errors import (
    DigestMismatch,
    ImageError,
    ImageInvalid,
    ImageNotFound,
    RegistryDenied,
    RegistryUnavailable,
)
from fargatelite.images.credentials import Credentials
from fargatelite.images.manifest import ACCEPT, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES
from fargatelite.images.reference import Reference
from fargatelite.names import is_digest

__all__ = ["Registry", "Resolved"]

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60  # of silence; contract 3.9: one minute of inactivity ends a pull
MANIFEST_ATTEMPTS = 5  # Fargate's texts say so (contract 3.9)
CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 60  # a registry may ask for more; nobody waits an hour for a task to start
MAX_TOKEN_BYTES = 1 << 20  # real ones have some 10 KiB
BLOB_RESUMES = 4  # broken downloads that are continued by Range

_CHALLENGE = re.compile(r'([a-zA-Z_]+)=(?:"([^"]*)"|([^\s,]+))')
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference names at this moment."""

    digest: str
    content_type: str
    size: int


class _Token(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


class _CappedRetry(Retry):
    """urllib3's Retry, with a bound on what a registry may make us wait."""

    def get_retry_after(self, response: Any) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, MAX_RETRY_AFTER_S)


def _retries(attempts: int) -> Retry:
    return _CappedRetry(
        total=attempts - 1,
        connect=attempts - 1,
        read=attempts - 1,
        redirect=0,
        status=attempts - 1,
        other=0,
        allowed_methods=None,
        status_forcelist=(408, 429, 500, 502, 503, 504),
        backoff_factor=0.2,
        backoff_max=5,  # contract 3.9
        backoff_jitter=0.2,
        raise_on_status=False,
        respect_retry_after_header=True,
    )


class Registry:
    """One registry host, for one repository's images."""

    def __init__(
        self,
        reference: Reference,
        credentials: Credentials | None,
        *,
        insecure: bool = False,
        attempts: int = MANIFEST_ATTEMPTS,
    ) -> None:
        self._reference = reference
        self._credentials = credentials
        self._authorization: str | None = None
        self._attempts = attempts
        host = reference.registry
        if host == "docker.io":
            host = "registry-1.docker.io"
        self._base = f"{'http' if insecure else 'https'}://{host}"
        self._pool = urllib3.PoolManager(
            timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            headers={"User-Agent": "fargatelite"},
            ssl_context=None if insecure else ssl.create_default_context(),
            maxsize=8,
        )

    # ---- requests ----

    def _open(
        self, method: str, url: str, headers: dict[str, str], *, preload: bool
    ) -> urllib3.BaseHTTPResponse:
        """One request with redirects and, on 401, one round of authentication."""
        origin = urllib.parse.urlsplit(url)[:2]
        asked_for_token = False
        for _ in range(MAX_REDIRECTS + 2):
            is_ours = urllib.parse.urlsplit(url)[:2] == origin
            sent = dict(headers)
            if is_ours and self._authorization is not None:
                sent["Authorization"] = self._authorization
            try:
                response = self._pool.request(
                    method, url, headers=sent, redirect=False, preload_content=preload,
                    retries=_retries(self._attempts),
                )  # fmt: skip
            except urllib3.exceptions.HTTPError as error:
                raise self._unavailable(error) from error
            if response.status == 401 and is_ours and not asked_for_token:
                asked_for_token = True
                challenge = response.headers.get("WWW-Authenticate", "")
                self._finish(response)
                self._authenticate(challenge)
                continue
            location = response.get_redirect_location()
            if location:
                self._finish(response)
                try:
                    url = urllib.parse.urljoin(url, location)
                    urllib.parse.urlsplit(url)
                except ValueError as error:
                    raise ImageError(
                        f"{self._reference}: redirected to {location[:100]!r}, which is no address"
                    ) from error
                if origin[0] == "https" and not url.startswith("https://"):
                    raise ImageError(f"{self._reference}: redirected from https to {url[:100]}")
                continue
            return response
        raise RegistryUnavailable(f"{self._reference}: over {MAX_REDIRECTS} redirects")

    @staticmethod
    def _finish(response: urllib3.BaseHTTPResponse) -> None:
        """Reads what is left of a short answer, so that its connection serves the next request."""
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and len(length) < 5:
            response.drain_conn()
        else:
            response.close()

    def _unavailable(self, error: Exception) -> RegistryUnavailable:
        cause = error
        if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
            cause = error.reason
        text = str(cause).split(": ", 1)[-1]
        return RegistryUnavailable(
            f"pull image manifest has been retried {self._attempts} time(s): failed to resolve ref "
            f"{self._reference}: cannot reach {self._base}: {text}; check the registry and the "
            "network"
        )

    def _authenticate(self, challenge: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        values = {m[1].lower(): m[2] or m[3] or "" for m in _CHALLENGE.finditer(rest)}
        if scheme.lower() == "basic":
            if self._credentials is None:
                raise RegistryDenied(
                    f"{self._reference}: no basic auth credentials; log in with docker, podman or "
                    "skopeo, or set credHelpers"
                )
            self._authorization = self._credentials.basic()
        elif scheme.lower() == "bearer" and values.get("realm"):
            self._authorization = f"Bearer {self._fetch_token(values)}"
        else:
            raise RegistryDenied(
                f"{self._reference}: 401 with an unknown challenge {challenge[:80]!r}"
            )

    def _fetch_token(self, values: dict[str, str]) -> str:
        realm = values["realm"]
        if not realm.startswith("https://") and not self._base.startswith("http://"):
            raise RegistryDenied(f"{self._reference}: token service {realm[:100]!r} without TLS")
        scope = values.get("scope") or f"repository:{self._reference.repository}:pull"
        query = {"scope": scope}
        if values.get("service"):
            query["service"] = values["service"]
        headers = {}
        credentials = self._credentials
        try:
            if credentials is not None and credentials.identity_token:
                response = self._pool.request(
                    "POST", realm, redirect=False, preload_content=False,
                    retries=_retries(self._attempts),
                    fields={
                        "grant_type": "refresh_token",
                        "refresh_token": credentials.identity_token,
                        "client_id": "fargatelite",
                        **query,
                    },
                    encode_multipart=False,
                )  # fmt: skip
            else:
                if credentials is not None:
                    headers["Authorization"] = credentials.basic()
                response = self._pool.request(
                    "GET", f"{realm}?{urllib.parse.urlencode(query)}", headers=headers,
                    redirect=False, preload_content=False, retries=_retries(self._attempts),
                )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise self._unavailable(error) from error
        if response.status != 200:
            response.close()
            raise RegistryDenied(
                f"{self._reference}: the token service answered {response.status}; check the "
                "credentials"
            )
        try:
            data = self._bounded(response, MAX_TOKEN_BYTES, "token")
            token = msgspec.json.decode(data, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryDenied(f"{self._reference}: the token service gave no token") from error
        text = token.token or token.access_token
        if not text or not _TOKEN.fullmatch(text):  # it becomes part of a header
            raise RegistryDenied(f"{self._reference}: the token service gave no token")
        return text

    def _raise_for(self, response: urllib3.BaseHTTPResponse, what: str) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        response.close()
        prefix = (
            f"pull image manifest has been retried {self._attempts} time(s): "
            f"failed to resolve ref {self._reference}: "
        )
        if status == 404:
            raise ImageNotFound(f"{prefix}{self._reference}: not found")
        if status in (401, 403):
            raise RegistryDenied(
                f"{prefix}unexpected status {status} for {what}: access denied; log in with docker,"
                " podman or skopeo, or check the execution role"
            )
        if status == 429:
            raise RegistryUnavailable(f"{prefix}429 Too Many Requests: the registry throttles")
        if status >= 500:
            raise RegistryUnavailable(f"{prefix}unexpected status {status} for {what}")
        raise ImageError(f"{prefix}unexpected status {status} for {what}")

    # ---- what is asked ----

    def _manifest_url(self, target: str) -> str:
        return f"{self._base}/v2/{self._reference.repository}/manifests/{target}"

    def resolve(self) -> Resolved | None:
        """The digest that the reference has now, by one HEAD; None when the registry does not say.

        Raises: ImageNotFound, RegistryDenied, RegistryUnavailable, ImageError.
        """
        response = self._open(
            "HEAD", self._manifest_url(self._reference.target), {"Accept": ACCEPT}, preload=True
        )
        self._raise_for(response, "manifest")
        digest = response.headers.get("Docker-Content-Digest", "")
        if not is_digest(digest):
            return None
        length = response.headers.get("Content-Length", "")[:20]
        return Resolved(
            digest=digest,
            content_type=response.headers.get("Content-Type", ""),
            size=int(length) if length.isascii() and length.isdigit() else 0,
        )

    def _bounded(self, response: urllib3.BaseHTTPResponse, limit: int, what: str) -> bytes:
        data = b""
        try:
            for chunk in response.stream(64 * 1024, decode_content=True):
                data += chunk
                if len(data) > limit:
                    raise ImageInvalid(f"{self._reference}: {what} of over {limit} bytes")
        except urllib3.exceptions.HTTPError as error:
            raise self._unavailable(error) from error
        finally:
            # What was read to its end is back in the pool already; any other cannot be used again.
            response.close()
        return data

    def fetch_manifest(self, target: str) -> tuple[bytes, str]:
        """The bytes of a manifest or index, and its content type."""
        response = self._open("GET", self._manifest_url(target), {"Accept": ACCEPT}, preload=False)
        self._raise_for(response, "manifest")
        content_type = response.headers.get("Content-Type", "")
        return self._bounded(response, MAX_MANIFEST_BYTES, "manifest"), content_type

    def fetch_small_blob(self, digest: str) -> bytes:
        """A blob that fits in memory (an image configuration)."""
        response = self._open("GET", self._blob_url(digest), {}, preload=False)
        self._raise_for(response, "config")
        return self._bounded(response, MAX_CONFIG_BYTES, "config")

    def _blob_url(self, digest: str) -> str:
        return f"{self._base}/v2/{self._reference.repository}/blobs/{digest}"

    def stream_blob(self, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a blob as they arrive; a broken download is continued by Range.

        Raises: DigestMismatch when the registry sends more or fewer bytes than the manifest says;
            RegistryUnavailable.
        """
        done, breaks = 0, 0
        while True:
            headers = {"Range": f"bytes={done}-"} if done else {}
            response = self._open("GET", self._blob_url(digest), headers, preload=False)
            if done and response.status == 416:  # nothing follows what we have
                response.close()
                raise self._truncated(digest, done, size)
            self._raise_for(response, f"layer {digest[:19]}")
            skip = 0
            if done and response.status != 206:
                skip = done  # it does not know Range: the beginning comes again
            try:
                for received in response.stream(CHUNK_BYTES, decode_content=False):
                    chunk = received[skip:]
                    skip = max(0, skip - len(received))
                    if not chunk:
                        continue
                    done += len(chunk)
                    if done > size:
                        raise DigestMismatch(
                            f"layer {digest} has over {size} bytes, which its manifest says; "
                            "the registry is wrong or lying"
                        )
                    yield chunk
            except urllib3.exceptions.HTTPError as error:
                breaks += 1
                if breaks > BLOB_RESUMES:
                    raise RegistryUnavailable(
                        f"ref pull has been retried {BLOB_RESUMES} time(s): failed to copy: layer "
                        f"{digest} broke off after {done} of {size} bytes: {error}"
                    ) from error
                continue
            finally:
                response.close()
            if done == size:
                return
            breaks += 1
            if breaks > BLOB_RESUMES:
                raise self._truncated(digest, done, size)

    @staticmethod
    def _truncated(digest: str, done: int, size: int) -> DigestMismatch:
        return DigestMismatch(
            f"layer {digest} ends after {done} of {size} bytes; the registry's copy is truncated"
        )

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()
