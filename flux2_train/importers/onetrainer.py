NAME = "onetrainer"
TABLES = {}


def recognise(values):
    return False
