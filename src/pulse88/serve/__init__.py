"""`pulse88 serve`: a page for musicians, and the HTTP API that it and others use (docs/api.md).

One process answers (app, guard, takes, duet) and computes nothing; workers, which are processes of their own, hold the
model and do all that takes time or reads what strangers send (worker, room). Between them go messages; whatever a
worker knows it was told in a message, so that any of them can be lost.
"""
