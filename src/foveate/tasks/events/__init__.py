"""What the task of survival reads from tables, and how it draws its answers."""

from __future__ import annotations
