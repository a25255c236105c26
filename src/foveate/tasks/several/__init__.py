"""Several labels of one image: their texts, scores and figures."""

from __future__ import annotations
