NAME = "diffusers"
TABLES = {}


def recognise(values):
    return False
