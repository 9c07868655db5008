"""Brings a published folder to a hub with ``huggingface_hub``, which ComfyUI's own requirements bring along.

The token is the one of the hub's own login, or of its environment variable HF_TOKEN. It is never a setting, so that no
graph, job or log can hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import UserError
from ...names import shown
from .contents import CARD, PATTERNS

NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def push(folder: Path, repository: str, public: bool = False) -> str:
    """Upload the folder into the model repository ``NAME`` or ``OWNER/NAME``, made if it is not there.

    Private unless ``public``; a repository that is public already is refused unless ``public`` says so. Returns its
    address. What has arrived once is not sent again, so after a broken connection the same call goes on. Raises
    UserError for a wrong name, without a login, and for what the hub refuses.
    """
    if not NAME.fullmatch(repository):
        raise UserError(f"{shown(repository)!r} is no repository's name: write OWNER/NAME, such as alice/zbot-lora.")
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} holds no {CARD}: publish a run into it first.")
    hub = _library()
    if not hub.get_token():
        raise UserError(
            "Nobody is logged in to the hub on this computer: run 'hf auth login' once, or set the environment "
            "variable HF_TOKEN."
        )
    with _in_words(hub, repository):
        api = hub.HfApi()
        made = api.create_repo(repository, private=not public, exist_ok=True)
        is_private = api.model_info(made.repo_id).private
        if not public and not is_private:
            raise UserError(
                f"{made.repo_id} is public: everybody sees what is uploaded. Say --public if that is what you want, "
                "or name another repository."
            )
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, allow_patterns=list(PATTERNS), commit_message="A LoRA for FLUX.2"
        )
    return str(made)


def _library():
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("The package huggingface_hub is missing: pip install huggingface_hub.") from error
    return huggingface_hub


@contextmanager
def _in_words(hub, repository: str) -> Iterator[None]:
    """Say what the hub or the network refuses in one sentence."""
    try:
        yield
    except hub.utils.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "")
        raise UserError(f"The hub refuses {repository} ({status}): {_reason(error, status)}") from error
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise UserError(
            f"The connection to the hub broke ({type(error).__name__}). Do the same again: what has arrived is not "
            "sent again."
        ) from error


def _reason(error: Exception, status: int | str) -> str:
    if status == 401:
        return "its token is not valid any more; run 'hf auth login' again."
    if status == 403:
        return "the token may not write there; make one with the right to write, or name a repository of your own."
    return shown(str(getattr(error, "server_message", "") or "").strip()) or "try again later."


def _is_of_the_network(error: Exception) -> bool:
    """Errors of the library's HTTP client: requests before version 1 (OSErrors), then httpx or httpx2."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore"))
