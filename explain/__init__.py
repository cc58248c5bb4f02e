"""explain: where and when a video network looked. Methods, drawing and the command `stabn-explain`.

What is heavy is resolved on first use, so that `import explain` and `stabn-explain --help` stay instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explain.core import Explanation, explain

__all__ = ["METHODS", "TITLES", "Explanation", "explain"]

METHODS: dict[str, str] = {  # name: "module:function", a function (model, clip, target, **options) -> Explanation
    "stabn": "explain.core:stabn_attention",
}
# What pictures call them.
TITLES: dict[str, str] = {
    "stabn": "ST-ABN attention",
}


def __getattr__(name: str) -> Any:
    if name in ("Explanation", "explain"):
        return getattr(importlib.import_module("explain.core"), name)
    raise AttributeError(f"module 'explain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
