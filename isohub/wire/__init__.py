"""What may cross between a parent and a worker, and how it is checked. No torch, no I/O.

`values` is what can be said, `tree` turns Python objects into it and back, `specs` describes tensors
and modules, `messages` are the sentences, `codec` makes them bytes, `framing` puts a length in front,
and `lifecycle` says when which may be said.
"""
