"""The command line: `isohub list | help | load | lock | prefetch | cache | trust | demo`, one file a command group.

`isohub --help` answers at once, so nothing here imports torch, `isohub.api` or rich where it is imported
itself; a command imports what it needs when it runs.
"""
