from curating import chromium, dialog, folder, newest_server, tab  # noqa: F401  fixtures
from data_routes import client, get, place, post, routes  # noqa: F401  fixtures
