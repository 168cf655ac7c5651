"""What isohub writes down of its work, for people and programs that look at it later."""
