"""A report as one self-contained HTML file: text, tables, pictures, nothing to load from elsewhere and no
scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #5d6873; --line: #d9dee3; --tint: #f5f7f9;
        --accent: #1f5f8b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 17px/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
main { max-width: 64rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .6rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.6rem 0 .4rem; }
p, ul, ol { margin: .55rem 0; max-width: 44rem; }
li { margin: .3rem 0; }
.lead { color: var(--soft); font-size: 1.05rem; margin-bottom: 1.4rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse;
        font: 13.5px/1.4 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
        font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .55rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
thead th { border-bottom: 2px solid var(--ink); font-weight: 600; vertical-align: bottom;
           white-space: normal; }
tr.rule td { border-top: 2px solid var(--line); }
tr.reference td { background: var(--tint); color: var(--soft); }
td.best { font-weight: 700; color: var(--accent); }
caption, figcaption { caption-side: bottom; text-align: left; color: var(--soft);
          font-size: .9rem; line-height: 1.45;
          padding-top: .5rem; max-width: 46rem; white-space: normal;
          font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
figure { margin: 1.4rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 4px;
      padding: .9rem 1rem; white-space: pre-wrap;
      font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line);
         color: var(--soft); font-size: .9rem; }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""

PIXELS_PER_INCH = 90


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file, which names its resolution."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def inches(picture: bytes) -> float | None:
    """Width of a PNG file, where it names its resolution: pixels (`IHDR`) over pixels per metre (`pHYs`)."""
    at = picture.find(b"pHYs")
    if at < 0 or picture[at + 12] != 1:
        return None
    pixels, per_metre = picture[16:20], picture[at + 4 : at + 8]
    return int.from_bytes(pixels) / int.from_bytes(per_metre) / 0.0254


class Page:
    """Collects the parts of a report in reading order; every method returns the page, so that calls can be
    chained.

    Args:
        title: the heading.
        lead: one sentence under it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{escape(lead)}</p>')

    def section(self, heading: str) -> Page:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(heading)}</h2>")
        return self

    def subsection(self, heading: str) -> Page:
        """Begin a part of a section."""
        self._parts.append(f"<h3>{escape(heading)}</h3>")
        return self

    def text(self, *paragraphs: str) -> Page:
        """Add paragraphs."""
        self._parts += [f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs]
        return self

    def items(self, items: Sequence[str], ordered: bool = False) -> Page:
        """Add a list."""
        tag = "ol" if ordered else "ul"
        inner = "".join(f"<li>{escape(item)}</li>" for item in items)
        self._parts.append(f"<{tag}>{inner}</{tag}>")
        return self

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str = "",
        *,
        best: Sequence[tuple[int, int]] = (),
        reference: Sequence[int] = (),
        rules: Sequence[int] = (),
    ) -> Page:
        """Add a table.

        Args:
            columns: its head.
            rows: the cells, as text; each row as long as `columns`.
            caption: what is shown.
            best: (row, column) of the cells to stress.
            reference: rows to shade (not candidates, something to compare with).
            rules: rows above which to draw a line.

        Raises:
            ValueError: a row of another length.
        """
        lines = []
        for i, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(
                    f"Row {i} of the table has {len(row)} cells for {len(columns)} columns: {list(row)}."
                )
            names = [name for name, wanted in (("reference", reference), ("rule", rules)) if i in wanted]
            head = f'<tr class="{" ".join(names)}">' if names else "<tr>"
            cells = "".join(
                f'<td class="best">{escape(cell)}</td>' if (i, j) in best else f"<td>{escape(cell)}</td>"
                for j, cell in enumerate(row)
            )
            lines.append(f"{head}{cells}</tr>")
        top = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        below = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="scroll"><table>{below}<thead><tr>{top}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )
        return self

    def pairs(self, values: Mapping[str, object], caption: str = "") -> Page:
        """Add a table of two columns without a head."""
        lines = "".join(
            f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in values.items()
        )
        below = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(f'<div class="scroll"><table>{below}<tbody>{lines}</tbody></table></div>')
        return self

    def figure(self, picture: Figure | bytes | Path, caption: str = "") -> Page:
        """Add a picture: a matplotlib figure, or a PNG file as bytes or path."""
        if isinstance(picture, Path):
            data = picture.read_bytes()
        elif isinstance(picture, bytes):
            data = picture
        else:
            data = png(picture)
        width = inches(data)
        # letters of one size in all pictures, whatever their width
        size = "" if width is None else f' style="width: {round(width * PIXELS_PER_INCH)}px"'
        source = base64.b64encode(data).decode()
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure><img alt="{escape(caption or self.title)}" src="data:image/png;base64,{source}"{size}>'
            f"{below}</figure>"
        )
        return self

    def code(self, text: str, summary: str = "") -> Page:
        """Add preformatted text, folded under `summary` where one is given."""
        block = f"<pre>{escape(text.rstrip())}</pre>"
        self._parts.append(
            f"<details><summary>{escape(summary)}</summary>{block}</details>" if summary else block
        )
        return self

    def provenance(self, config: str, seed: int, found: Mapping[str, str], command: str = "") -> Page:
        """Add the last section of every report: how to repeat the run."""
        self.section("To repeat this run")
        if command:
            self.code(command)
        self.text(f"Seed {seed}. The configuration below is also in config.yaml; feed it back with --config.")
        self.code(config, "Resolved configuration")
        return self.subsection("Versions").pairs(found)

    def html(self) -> str:
        """The whole page."""
        body = "\n".join(self._parts)
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def save(self, path: Path | str) -> Path:
        """Write the page; it appears whole or not at all."""
        from spatialdiff.runs import write_atomically

        return write_atomically(path, lambda file: file.write(self.html().encode()))
