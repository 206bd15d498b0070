"""Passages about items, answers that cite them, and questions to tables. Nothing of the core imports this folder."""

__all__: list[str] = []
