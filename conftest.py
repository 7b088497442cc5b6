"""Puts the environment in order before a test imports anything: Ray reads its settings when it is imported.

Stands here and not in `tests`, whose modules workers import, too.
"""

from tests.support.isolation import isolate

isolate()
