"""Adapters from peft, which Linears they sit on, and the files they are saved in."""
