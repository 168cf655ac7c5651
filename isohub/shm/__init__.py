"""Memory and the descriptors that name it: what the operating system gives to parent and worker.

`segment` is one sealed piece of shared memory, `arena` hands out blocks of segments, `tensors` lays
tensors into blocks and finds them there, `values` says whole values, `channel` carries frames.
"""
