"""What a person meets at the command line, without torch."""
