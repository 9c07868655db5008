"""nano: a small FLUX.2 trained from nothing on scenes that this package draws itself."""
