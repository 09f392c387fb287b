"""A world so small that it can be judged exactly: coloured shapes on grey, captions, a judge.

    world      what may stand where, and how it is drawn; nothing is read from a file
    captions   a scene in words, wholly or in part, with what those words ask for
    judge      which scene a picture shows, and which of the things asked for it has
    freedom    what no caption names, and how much of it a set of pictures uses

A picture has a few tens of tokens, so that a real experiment (several arms, several seeds) takes
minutes on a processor. Because position within a cell and the grey of the background are never
named, the variety that a model ought to have is known, too.
"""
