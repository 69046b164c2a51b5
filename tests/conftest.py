"""Settings of all tests."""

from hypothesis import settings

# How long an example takes says something about the machine, so it's no reason to fail. Whether CI is set is kept.
settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")
