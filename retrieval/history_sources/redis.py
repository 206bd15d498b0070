"""Histories in Redis: one store for services in several processes or on several machines."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from recsys.errors import Closed, DamagedHistory, InputError, SourceUnavailable, shown
from recsys.events import Event
from recsys.retrieval.history_sources.event_text import event_texts, events_of, id_text
from recsys.retrieval.history_sources.source import Mark, Tail, all_of

__all__ = ["RedisHistories"]

FORMAT = 1
"""Part of every key, so that another format lives beside this one."""
PIECE = 20_000
"""Events read of one user at a time: a long history must not keep the server from others."""
_APPEND = """
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
local place = tonumber(ARGV[1])
if last[2] then place = tonumber(last[2]) + 1 end
for row = 2, #ARGV do
    place = place + redis.call('ZADD', KEYS[1], 'NX', place, ARGV[row])
end
return place
"""  # scores are n, n + 1, n + 2, … in order of arrival; an equal body is there once
FIRST_BYTES = 5
"""Of the score that a new key begins with, drawn at random: events after a deletion have other scores than those before
it, so that whoever remembers some of these notices. Far below 2^53, up to which scores are exact."""
_log = logging.getLogger(__name__)


class RedisHistories:
    """Users' events in sorted sets, one key a user, scored by arrival.

    An append is one atomic script, so that writers in any process keep an order; equal events are members once. What
    an acknowledged event survives is up to the server: with ``appendonly yes`` and ``appendfsync always`` what
    :class:`~recsys.retrieval.history_sources.sqlite.SqliteHistories` promises, with ``everysec`` all but about the
    last second, without ``appendonly`` nothing since its last snapshot. A server that may evict keys loses histories.
    Both are logged as warnings when the source is opened.

    A connection that broke is made anew by itself; commands that were under way are repeated, which is safe, since a
    repeated append adds nothing. Any number of threads may use one instance.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        *,
        prefix: str = "recsys",
        timeout_s: float = 2.0,
        num_retries: int = 2,
    ) -> None:
        """Connect, and see that a server answers.

        Args:
            url: as redis-py reads it: ``redis://[user:password@]host:port/db``, ``rediss://`` (TLS), ``unix://``.
            prefix: keys are ``PREFIX:events:1:ID``.
            timeout_s: for connecting, and for the server's answer to one command.
            num_retries: repeats of a command whose connection broke, with growing pauses.

        Raises:
            InputError: the client library is not installed, the URL is none, or a number is out of range.
            SourceUnavailable: no server answers.
        """
        try:
            import redis
            from redis.backoff import ExponentialBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise InputError("histories in Redis need the client; install recsys[serving]") from error
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < float("inf"):
            raise InputError(f"timeout_s must be a positive number of seconds, got {shown(timeout_s)}")
        if isinstance(num_retries, bool) or not isinstance(num_retries, int) or num_retries < 0:
            raise InputError(f"num_retries must be 0 or more, got {shown(num_retries)}")  # below, the client never ends
        self._redis_error = redis.RedisError
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), num_retries),
                retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            )
        except (ValueError, TypeError, AttributeError):
            raise _no_address(url) from None
        connection = self._client.connection_pool.connection_kwargs
        self._where = "Redis at " + str(connection.get("path") or f"{connection.get('host')}:{connection.get('port')}")
        self._prefix = f"{prefix}:events:{FORMAT}:"
        self._script = self._client.register_script(_APPEND)
        self._closed = False
        try:
            with self._failures("reached"):
                self._warn(self._client.info())
        except (ValueError, TypeError):  # a name that no host has, or an option that the client does not know
            raise _no_address(url) from None

    def events(self, user_ids: Sequence[Any]) -> list[list[Event] | None]:
        """See :meth:`HistorySource.events`; all users travel together."""
        return all_of(self, user_ids)

    def tails(self, user_ids: Sequence[Any], marks: Sequence[Mark | None]) -> list[Tail]:
        """See :meth:`TailSource.tails`."""
        keys = [self._prefix + id_text(user_id) for user_id in user_ids]
        self._check()
        with self._failures("read"):
            found = self._members(keys, [0 if mark is None else mark.place for mark in marks])
            # Of an earlier event that was removed, the others take the places: another one, or score, stands there.
            continues = [mark is not None and found[row][:1] == [mark.state] for row, mark in enumerate(marks)]
            lost = [row for row, mark in enumerate(marks) if mark is not None and not continues[row]]
            for row, members in zip(lost, self._members([keys[row] for row in lost], [0] * len(lost)), strict=True):
                found[row] = members
        try:
            tails = []
            for members, mark, same in zip(found, marks, continues, strict=True):
                begin = mark.place if same and mark is not None else 0
                last = Mark(begin + len(members) - 1, members[-1]) if members else None
                tails.append(Tail(events_of(body for body, _ in members[int(same) :]), last, same))
            return tails
        except (TypeError, ValueError) as error:
            reason = f"holds events that cannot be read ({error}); restore a copy"
            raise DamagedHistory(f"{self._where} {reason}") from error

    def append(self, user_id: Any, events: Sequence[Event]) -> None:
        """See :meth:`HistorySource.append`; no events, no user."""
        key, bodies = self._prefix + id_text(user_id), event_texts(events)
        self._check()
        if bodies:
            members = [
                body if event.timestamp is not None else f"{body}{os.urandom(12).hex()}"
                for body, event in zip(bodies, events, strict=True)
            ]  # an event without a time equals no other, yet must be added once if this command is repeated
            with self._failures("written"):
                self._script(keys=[key], args=[int.from_bytes(os.urandom(FIRST_BYTES), "big"), *members])

    def forget(self, user_id: Any) -> None:
        """Delete all events of a user.

        Raises:
            InputError, SourceUnavailable: as :meth:`append`.
        """
        key = self._prefix + id_text(user_id)
        self._check()
        with self._failures("written"):
            self._client.delete(key)

    def close(self) -> None:
        """See :meth:`HistorySource.close`."""
        self._closed = True
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _members(self, keys: Sequence[str], begins: Sequence[int]) -> list[list[tuple[bytes, float]]]:
        """What each key holds from a place on, with scores; all keys travel together, a long one in several pieces.

        A piece begins with the last member of the one before. Where another stands there, events were deleted in
        between, and what was read is no history of any moment: it is read again.
        """
        members: list[list[tuple[bytes, float]]] = [[] for _ in keys]
        unread = list(range(len(keys)))
        while unread:
            pipeline = self._client.pipeline(transaction=False)
            for row in unread:
                begin = begins[row] + max(len(members[row]) - 1, 0)
                pipeline.zrange(keys[row], begin, begin + PIECE - 1, withscores=True)
            asked, unread = unread, []
            for row, found in zip(asked, pipeline.execute(), strict=True):
                piece, known = [(body, score) for body, score in found], members[row]
                if known and piece[:1] != known[-1:]:
                    members[row] = []
                    unread.append(row)
                    continue
                known += piece[1:] if known else piece
                if len(piece) == PIECE:
                    unread.append(row)
        return members

    def _warn(self, info: Any) -> None:
        if not info.get("aof_enabled"):
            _log.warning("%s keeps no append-only file: acknowledged events may be lost when it stops", self._where)
        if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
            _log.warning(
                "%s evicts keys when memory is short (%s), histories too; set maxmemory-policy noeviction",
                self._where,
                info.get("maxmemory_policy"),
            )

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"{self._where} was closed here; connect again with RedisHistories(…)")

    @contextmanager
    def _failures(self, verb: str) -> Iterator[None]:
        """Turn errors of the client into ours."""
        try:
            yield
        except self._redis_error as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if "WRONGTYPE" in reason:  # one user's key, with which others have nothing to do
                todo = "another program wrote that key; give a prefix of your own"
                raise DamagedHistory(f"{self._where} cannot be {verb}: {reason}; {todo}") from error
            raise SourceUnavailable(
                f"{self._where} cannot be {verb}: {reason}; see that it runs, then retry"
            ) from error


def _no_address(url: Any) -> InputError:
    """What to tell of a URL that the client cannot read; mostly a password is why, so that none is quoted."""
    if isinstance(url, str):
        place, mark, options = re.sub("//.*@", "//…@", url).partition("?")
        url = place + mark + re.sub("=[^&]*", "=…", options)
    return InputError(
        f"{shown(url)} is no address of a Redis server, or has options that the client does not know; try "
        "redis://127.0.0.1:6379/0, and write odd characters of a password as %23 for #"
    )
