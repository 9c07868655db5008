"""The graph's model while it trains: borrowed, its layers frozen, its velocity, its weights on the move."""
