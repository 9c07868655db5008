"""A run while it trains: what it tells, and what is asked of it. Both are files in its folder."""
