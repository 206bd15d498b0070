"""From raw tables to a prepared dataset."""

from recsys.pipelines.prepare.build import prepare_frames

__all__ = ["prepare_frames"]
