"""The program that a worker process runs. Started by name, imported by nobody."""
