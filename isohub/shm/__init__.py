"""Memory and the descriptors that name it: what the operating system gives to parent and worker.

`common_copy` is what several workers have in common, `pages` replaces the pages of memory that is mapped, `watcher` and
`write_watch` tell who writes to it.

`segment` is one sealed piece of shared memory, `arena` hands out blocks of segments, `tensors` lays
tensors into blocks and finds them there, `values` says whole values, `channel` carries frames.
"""
