from data_routes import client, get, place, post, routes  # noqa: F401  fixtures
