"""The demo that the package ships: two versions of one small hub repository, ready to be compared.

`repository.py` makes a git repository with the tags `v1` and `v2` out of the folders in `digits/`, and
gives the images that both versions can be measured on. `plain_torch_hub.py` shows, in a throw-away
interpreter, what becomes of the two when one process loads both with `torch.hub`.
"""
