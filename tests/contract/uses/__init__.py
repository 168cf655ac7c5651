"""What people do with a module: one file for each kind of use."""
