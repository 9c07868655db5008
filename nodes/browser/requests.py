"""How a route reads what the browser sends. Every route that changes something reads its request with ``body``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps

from aiohttp import web

from ...flux2_train.bounded import from_json
from ...flux2_train.errors import UserError
from ...flux2_train.names import problem
from ...flux2_train.names import shown as escaped

MOST_BYTES = 4096
LONGEST_NAME = 255  # bytes: a run whose name was taken has a number behind it

Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


def in_words(route: Route) -> Route:
    """The same route; a UserError that it raises is answered with status 400 and ``{"error": SENTENCE}``."""

    @wraps(route)
    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await route(request)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)

    return answered


async def body(request: web.Request, example: str, most: int = MOST_BYTES) -> dict:
    """The JSON object in a request of at most ``most`` bytes.

    Only ``application/json`` is taken: a page of another site can send a form, but not this type.
    Raises UserError with ``example``, the object that the route expects.
    """
    if request.content_type != "application/json" or not 0 < (request.content_length or 0) <= most:
        raise UserError(f"Send {example} as application/json, at most {most} bytes.")
    try:
        found = from_json((await request.read()).decode())
    except ValueError as error:
        raise UserError(f"The request is not {example}.") from error
    if not isinstance(found, dict):
        raise UserError(f"The request is not {example}.")
    return found


def run_name(value: object) -> str:
    """``value`` if it can be a run's name. Raises UserError otherwise: a path is no name."""
    if not isinstance(value, str) or problem(value, LONGEST_NAME):
        raise UserError(f"{escaped(str(value))!r} is no run's name.")
    return value
