"""The network and what it does to an image first."""
