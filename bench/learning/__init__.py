"""How fast a concept is learned, how far it leaks and how much of the base is kept, for each option of a run."""
