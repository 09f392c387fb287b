"""The command line: thin doors to the rooms, one file a command, imported when it is asked for."""
