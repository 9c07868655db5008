"""A run in several processes of this machine, which one program starts, shows and ends."""
