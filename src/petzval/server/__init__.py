"""One box that draws for everybody: the studio's server, its jobs, its API and its page.

`create_app(settings, engine)` builds the application around any engine; `petzval serve` runs it. An
accepted job is in the database before it is answered, a picture is a whole file before it is
told, and what a killed server left unfinished is drawn after its restart.
"""
