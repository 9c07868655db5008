"""How the products of a run's frozen Linears are computed."""
