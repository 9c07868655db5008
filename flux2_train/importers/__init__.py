"""Other trainers' configuration files as jobs of ours, with a report of what became of every key."""
