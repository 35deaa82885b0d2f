"""Who may call: first the Host, then the Origin, then the key. Decisions only; pure.

A browser sends requests for any page to any address, this machine's included. A page cannot choose
its Origin, and a name that a page's owner made point here is in Host, so both are looked at before
anything else, on every method: a POST of plain text asks for no permission first.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from runtime.gateway.keys import ANYONE, Key, Keys, given_key
from runtime.gateway.wire.failure import Failure, Fault, Refused

ANY_PAGE: Final = "*"
LOCAL_PAGES: Final = "localhost"
OPEN_PATHS: Final = frozenset({"/health", "/v1/health", "/readyz", "/"})
"""What needs no key: it tells nothing but that the gateway runs."""
PAGE: Final = "/llama/ui/"
"""Beginning of the paths of the page's files, which need none either."""


def check_host(given: list[bytes], known: Iterable[str], *, is_unix: bool = False) -> str:
    """The Host of a request, in lower case and without its port; Refused.

    An IP address is right: no name of others leads to it. So are localhost and what is configured.
    """
    if len(given) != 1 or (not given[0] and not is_unix):
        raise Refused(Failure(Fault.INVALID, "the request needs one Host header"))
    host = given[0].decode("latin-1").strip().lower()
    name = _name_of(host)
    if is_unix or _is_address(name) or name == "localhost" or name.endswith(".localhost"):
        return host
    if name in {one.lower() for one in known}:
        return host
    raise Refused(
        Failure(
            Fault.FORBIDDEN,
            f"this gateway is not called {name!r}; use its address, or add the name to "
            "gateway.hosts",
        )
    )


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_origin(origin: bytes | None, host: str, known: Iterable[str]) -> bytes | None:
    """The origin of the page that calls, None where no page does; Refused where it may not.

    ``known``: origins; ``localhost`` for every page of this machine, ``*`` for every page.
    """
    if origin is None:
        return None
    text = origin.decode("latin-1").strip().lower()
    names = {one.lower().rstrip("/") for one in known}
    with contextlib.suppress(ValueError):  # no URL: some page without an address
        place = urlsplit(text)
        is_web = place.scheme in ("http", "https")
        if (
            names & {text, ANY_PAGE}
            or (is_web and place.netloc == host)
            or (is_web and LOCAL_PAGES in names and _is_here(place.hostname or ""))
        ):
            return origin
    raise Refused(
        Failure(
            Fault.FORBIDDEN,
            f"a page of {text!r} may not call this gateway; add it to gateway.origins if it should",
        )
    )


def check_site(headers: Mapping[bytes, bytes], known: Iterable[str]) -> None:
    """Refused where a page elsewhere loads this as an image, a script or the like.

    A browser sends no Origin then, and shows the page nothing; but the request would run. To follow
    a link is right.
    """
    site, mode = headers.get(b"sec-fetch-site", b""), headers.get(b"sec-fetch-mode", b"")
    is_foreign = site in (b"cross-site", b"same-site") and mode != b"navigate"
    if is_foreign and b"origin" not in headers and ANY_PAGE not in known:
        raise Refused(Failure(Fault.FORBIDDEN, "another site's page may not load this"))


def _is_here(name: str) -> bool:
    if _is_address(name):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


def check_key(
    headers: Mapping[bytes, bytes], keys: Keys | None, path: str, today: datetime.date
) -> Key:
    """Whose request it is; Refused. Without keys: ``ANYONE``."""
    if keys is None:
        return ANYONE
    if path in OPEN_PATHS or path.startswith(PAGE):
        return Key()
    given = given_key(headers)
    if given is None:
        raise Refused(
            Failure(Fault.NO_KEY, "send a key: Authorization: Bearer KEY, or x-api-key: KEY")
        )
    found = keys.find(given)
    if found is None:
        raise Refused(Failure(Fault.NO_KEY, "this gateway does not know that key"))
    if not found.is_valid(today):
        raise Refused(Failure(Fault.NO_KEY, f"the key {found.name!r} is valid no more"))
    return found


def check_model(key: Key, model: str) -> None:
    """Refused where a key may not use a model."""
    if not key.may_use(model):
        names = ", ".join(key.models) or "none"
        raise Refused(
            Failure(
                Fault.FORBIDDEN,
                f"the key {key.name!r} may not use the model {model!r}; it may use: {names}",
                "model",
            )
        )
