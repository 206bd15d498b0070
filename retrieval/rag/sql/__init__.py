"""Questions to tables: the items, and the events of the user who asks. Reading only."""

__all__: list[str] = []
