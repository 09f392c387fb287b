"""The routes: thin, one file for each kind of thing that is asked for."""
