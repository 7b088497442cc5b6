"""What stands in a lease."""

import json
from typing import Any

from captcha_ray.storage import filesystem


def found(uri: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(filesystem.read(uri))
    return content
