"""Worker processes as the parent sees them.

`launch` starts them from a forkserver, `worker` is the handle on one, `registry` owns them all,
`sharing` finds weights that several of them have, `shares` is one worker's part of it,
`arguments` packs what the caller passes, `logs` carries their output.
"""
