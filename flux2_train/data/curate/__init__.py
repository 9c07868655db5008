"""A data folder looked at, changed and made by people: what the browser of pictures and the making nodes need."""
