from models import VERSION


def last(x):
    return x + {"v1": 1, "v2": 1000}[VERSION]
