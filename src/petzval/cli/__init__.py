"""The command line: thin doors to the rooms, one file a command, torch imported only by those that run."""
