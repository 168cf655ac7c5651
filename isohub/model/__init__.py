"""What the caller holds: modules, objects and records that stand for what lives in a worker."""
