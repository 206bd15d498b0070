"""The frame of the report: one HTML file with its style inside, nothing fetched and nothing run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["Section", "note", "page", "table"]

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#59636e;--line:#e2e6ea;--paper:#fff;--ground:#f5f6f8;
--ours:#1f5fbf;--other:#8a949e;--wash:#eef4fc}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a2abb5;--line:#323941;--paper:#1b2026;--ground:#13161a;
--ours:#74adff;--other:#7d8791;--wash:#1e2a3b}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:980px;margin:0 auto;padding:36px 20px 64px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}
h2{font-size:19px;margin:0 0 6px}
h3{font-size:15px;margin:22px 0 6px}
p{margin:6px 0;max-width:72ch}
.soft,figcaption{color:var(--soft)}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px 24px 22px;margin-top:18px}
section.absent{background:none;border-style:dashed;color:var(--soft);padding:12px 24px}
section.absent h2{font-size:15px;display:inline;margin-right:10px}
section.absent p{display:inline}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin:10px 0 4px;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:5px 14px 5px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:13px}
th:first-child,td:first-child,.text{text-align:left}
td.text{white-space:normal;min-width:14ch;overflow-wrap:anywhere}
tr.ours td:first-child{font-weight:650;color:var(--ours)}
tr.ours td{background:var(--wash)}
tr.ours td:first-child,td:first-child,th:first-child{padding-left:10px}
.ci{display:block;color:var(--soft);font-size:12px}
.charts{display:flex;flex-wrap:wrap;gap:18px 26px;margin-top:10px}
figure{margin:8px 0 0;min-width:0}
figcaption{font-size:13px;font-weight:600;margin-bottom:2px}
svg{max-width:100%;height:auto;display:block}
svg text{fill:var(--soft);font-size:11.5px;font-variant-numeric:tabular-nums}
svg text.name{font-size:13px}svg text.name.ours,svg text.value.ours{fill:var(--ours);font-weight:650}
svg text.value{fill:var(--ink);font-size:12px}
.grid{stroke:var(--line)}
.guide{stroke:var(--other);stroke-dasharray:4 4}
.line{fill:none;stroke:var(--ours);stroke-width:2;stroke-linejoin:round}
.line.other{stroke:var(--other);stroke-dasharray:5 4}
rect{stroke:var(--paper);stroke-width:.7}rect.depth0{fill:var(--ours);fill-opacity:.72}
rect.depth1{fill:var(--ours);fill-opacity:.36}rect.rest{fill:var(--other);fill-opacity:.3}
rect:hover{fill-opacity:1}svg text.inside{fill:var(--ink);pointer-events:none}
.whisker{stroke-width:2.5;stroke-linecap:round;opacity:.55}
.whisker.ours{stroke:var(--ours)}.whisker.other{stroke:var(--other)}
circle.ours{fill:var(--ours)}circle.other{fill:var(--other)}
.user{border-top:1px solid var(--line);margin-top:16px;padding-top:2px}
.user:first-of-type{border-top:0}
ol.history{margin:4px 0;padding-left:0;list-style:none;display:flex;flex-wrap:wrap;gap:6px}
ol.history li{border:1px solid var(--line);border-radius:6px;padding:2px 9px;font-size:13px;max-width:100%}
.hit{color:var(--ours);font-weight:650}
footer{color:var(--soft);font-size:13px;margin-top:22px}
@media (max-width:600px){section{padding:16px}main{padding:22px 12px 48px}}
"""


class Section:
    """A titled part of the page; without a body it is one sentence that says why it is empty."""

    def __init__(self, title: str, body: str = "", absent: str = "") -> None:
        self.title, self.body, self.absent = title, body, absent

    def html(self) -> str:
        """The section as HTML."""
        if self.absent:
            return f'<section class="absent"><h2>{escape(self.title)}</h2><p>{escape(self.absent)}</p></section>'
        return f"<section><h2>{escape(self.title)}</h2>{self.body}</section>"


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole file."""
    body = "\n".join(section.html() for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>\n'
        f"{body}\n<footer>{escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
    )


def note(text: str) -> str:
    """A sentence in the softer colour."""
    return f'<p class="soft">{escape(text)}</p>'


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    ours: Sequence[bool] = (),
    text: Sequence[int] = (),
    intervals: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """A table; every cell is escaped.

    Args:
        columns: headings.
        rows: cells.
        ours: which rows stand out.
        text: columns that hold prose, set to the left and wrapped.
        intervals: small print below the cell of a (row, column).
    """
    small = intervals or {}

    def cell(row: int, column: int, value: str) -> str:
        below = f'<span class="ci">{escape(small[row, column])}</span>' if (row, column) in small else ""
        kind = ' class="text"' if column in text else ""
        return f"<td{kind}>{escape(value)}{below}</td>"

    head = "".join(
        f"<th{' class=text' if place in text else ''}>{escape(name)}</th>" for place, name in enumerate(columns)
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = "".join(
        f"<tr{' class=ours' if place < len(ours) and ours[place] else ''}>"
        + "".join(cell(place, column, value) for column, value in enumerate(row))
        + "</tr>"
        for place, row in enumerate(rows)
    )
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
