"""A hub of models, asked by ``huggingface_hub``: the files of a repository, and their bytes.

``HF_ENDPOINT``, ``HF_TOKEN`` (or the token that ``hf auth login`` saved) and ``HF_HUB_OFFLINE``
hold as in every program that uses that library. It is imported when a hub is asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from runtime.catalog.fetching import Body, Broken
from runtime.catalog.names import HubName, hub_name
from runtime.catalog.store import StoredFile, is_plain_path
from runtime.errors import FetchFailed
from supervision.frozen import frozen

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

TIMEOUT_S: Final = 30.0
"""Until a server answers, and between two pieces of what it sends."""
_TRANSIENT: Final = {408, 425, 429, 500, 502, 503, 504}


@frozen
class Listing:
    """The files of a repository at one commit."""

    repo: str
    """As the hub spells it."""
    revision: str
    files: tuple[StoredFile, ...]


class Hub:
    """Asks one hub; FetchFailed where ``huggingface_hub`` is not installed, or must not ask."""

    def __init__(self, name: HubName, endpoint: str | None = None) -> None:
        """``name`` is the model that is asked for; ``endpoint`` replaces ``HF_ENDPOINT``."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # it asks for more than the model
        try:
            from huggingface_hub import HfApi, is_offline_mode
        except ImportError as error:
            raise FetchFailed(
                str(name),
                f"fetching needs the extra `hub` ({error}): pip install 'llama-actors[hub]'",
            ) from error
        if is_offline_mode():
            raise FetchFailed(
                str(name), "HF_HUB_OFFLINE is set, so nothing is fetched; unset it to fetch it"
            )
        logging.getLogger("huggingface_hub").setLevel(
            logging.ERROR
        )  # what matters is an error of ours
        self._name = name
        self._api: HfApi = HfApi(endpoint=endpoint, library_name="llama-actors")

    @property
    def endpoint(self) -> str:
        """The address of the hub."""
        return str(self._api.endpoint)

    def listing(self) -> Listing:
        """The files of the repository as it is now; FetchFailed where it cannot be read."""
        try:
            with self._explained():
                found = self._api.model_info(
                    self._name.repo, files_metadata=True, timeout=TIMEOUT_S
                )
        except Broken as error:
            raise FetchFailed(
                str(self._name),
                f"{self.endpoint} cannot be reached ({error}); is this machine online? HF_ENDPOINT "
                "names another hub",
            ) from error
        if not found.sha:
            raise FetchFailed(str(self._name), f"{self.endpoint} named no revision of it")
        files = (_file(one) for one in found.siblings or ())
        spelt = hub_name(found.id)
        repo = self._name.repo if spelt is None else spelt.repo
        return Listing(repo, found.sha, tuple(one for one in files if one is not None))

    @contextlib.contextmanager
    def body(self, revision: str, path: str, start: int) -> Iterator[Body]:
        """The bytes of a file from ``start`` on; raises Broken or FetchFailed, while read too."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there
            build_hf_headers,
            hf_raise_for_status,
        )

        url = hf_hub_url(self._name.repo, path, revision=revision, endpoint=self.endpoint)
        headers = build_hf_headers(library_name="llama-actors") | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            self._explained(),
            get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response,
        ):
            hf_raise_for_status(response)
            begins = _start(response.headers) if response.status_code == 206 else 0
            yield Body(begins, response.iter_bytes())  # as it comes: a break loses none of it

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors of the library as ours."""
        import httpx2
        from huggingface_hub import errors as theirs

        repo = self._name.repo
        try:
            yield
        except theirs.OfflineModeIsEnabled as error:
            raise self._failed("HF_HUB_OFFLINE is set, so nothing is fetched") from error
        except theirs.GatedRepoError as error:
            raise self._failed(
                f"{repo} is gated: accept its terms at {self.endpoint}/{repo}, then set HF_TOKEN "
                "to a token that may read it",
            ) from error
        except theirs.RepositoryNotFoundError as error:
            raise self._failed(
                f"there is no {repo} at {self.endpoint}, or it is private: check the name, or set "
                "HF_TOKEN to a token that may read it",
            ) from error
        except theirs.HfHubHTTPError as error:
            status = error.response.status_code
            if status in _TRANSIENT:
                raise Broken(f"the hub answered {status}") from error
            raise self._failed(_refusal(status, repo, self.endpoint)) from error
        except httpx2.TransportError as error:
            raise Broken(str(error) or type(error).__name__) from error

    def _failed(self, detail: str) -> FetchFailed:
        return FetchFailed(str(self._name), detail)


def _refusal(status: int, repo: str, endpoint: str) -> str:
    if status in (401, 403):
        return (
            f"{endpoint} does not let this token read {repo} ({status}); set HF_TOKEN to one that "
            "may"
        )
    if status == 404:
        return f"{endpoint} no longer has that file of {repo}; try again"
    return f"{endpoint} answered {status} for {repo}"


def _start(headers: Any) -> int:
    """The first byte of an answer with a part of a file: ``bytes 100-199/200``."""
    words = str(headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    if not words.strip().isdecimal():
        raise Broken("the server sent a part without saying which")
    return int(words)


def _file(one: RepoSibling) -> StoredFile | None:
    """A file by what the hub states of it; None for one that could not be verified."""
    if not is_plain_path(one.rfilename):
        return None
    if one.lfs is not None:
        return StoredFile(one.rfilename, one.lfs.size, f"sha256:{one.lfs.sha256}")
    if one.size is None or one.blob_id is None:
        return None
    return StoredFile(one.rfilename, one.size, f"git-sha1:{one.blob_id}")
