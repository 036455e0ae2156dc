"""One HTML page to browse a run: source, mask and edits side by side, all inside the file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from .jobs import Case, Data, Result
from .pie_bench import DamagedEntry
from .store import Store
from .tables import decibel

SIDE = 192
QUALITY = 85
SHOWN = {
    "published_psnr": "PSNR published", "corrected_psnr": "corrected", "exact_psnr": "to exact",
}  # fmt: skip
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
 body {{ font: 14px/1.4 system-ui, sans-serif; margin: 0 16px 40px; color: #222; }}
 header {{ position: sticky; top: 0; background: #fff; padding: 8px 0; }}
 section {{ border-bottom: 1px solid #ddd; padding: 12px 0; }}
 .row {{ display: flex; flex-wrap: wrap; gap: 8px; }}
 figure {{ margin: 0; width: {side}px; }} figcaption {{ font-size: 12px; overflow-wrap: anywhere; }}
 img {{ width: {side}px; display: block; image-rendering: auto; }}
 .failed {{ width: {side}px; min-height: {side}px; background: #f4e9e9; font-size: 12px; }}
 b {{ font-weight: 600; }} .hidden {{ display: none; }}
</style></head><body>
<header><b>{title}</b> <span>{note}</span>
 <label>type <select id="type"><option value="">all</option>{types}</select></label>
 <label>words <input id="words" type="search"></label>
 {methods}</header>
"""
TAIL = """<script>
const type = document.getElementById("type"), words = document.getElementById("words");
function show() {
  const wanted = words.value.toLowerCase();
  for (const section of document.querySelectorAll("section"))
    section.classList.toggle("hidden", (type.value && section.dataset.type !== type.value)
      || !section.querySelector("p").textContent.toLowerCase().includes(wanted));
}
type.onchange = words.oninput = show;
for (const box of document.querySelectorAll("header input[type=checkbox]"))
  box.onchange = () => document.querySelectorAll(`figure[data-column="${box.value}"]`)
    .forEach(figure => figure.classList.toggle("hidden", !box.checked));
</script></body></html>
"""


def write_page(
    file: Path, title: str, data: Data, keys: Sequence[str], methods: Sequence[str], store: Store
) -> None:
    """Write the page case by case, so that only one case's pictures are in memory."""
    columns = ["source", "mask", *methods, "exact"]
    types = sorted({data.cases[key].type_name for key in keys})
    note = "" if len(keys) == len(data.cases) else f"{len(keys)} of {len(data.cases)} cases"
    with file.open("w", encoding="utf-8") as page:
        page.write(HEAD.format(
            title=html.escape(title), note=note, side=SIDE,
            types="".join(f"<option>{html.escape(name)}</option>" for name in types),
            methods=" ".join(box(i, name) for i, name in enumerate(columns)),
        ))  # fmt: skip
        for key in keys:
            write_case(page, data, data.cases[key], methods, store)
        page.write(TAIL)


def box(number: int, name: str) -> str:
    """Write the switch of a column."""
    return f'<label><input type="checkbox" value="{number}" checked> {html.escape(name)}</label>'


def write_case(
    page: TextIO, data: Data, case: Case, methods: Sequence[str], store: Store
) -> None:
    """Write one case."""
    page.write(
        f'<section data-type="{html.escape(case.type_name, quote=True)}"><p><b>'
        f"{html.escape(case.key)}</b> {html.escape(case.type_name)}: "
        f"{html.escape(case.source_prompt)} <b>to</b> {html.escape(case.target_prompt)}"
        f"{' · ' if case.instruction else ''}{html.escape(case.instruction)}</p>"
        '<div class="row">\n'
    )
    for number, caption, body in figures(data, case, methods, store):
        page.write(
            f'<figure data-column="{number}">{body}<figcaption>{caption}</figcaption></figure>\n'
        )
    page.write("</div></section>\n")


def figures(
    data: Data, case: Case, methods: Sequence[str], store: Store
) -> Iterator[tuple[int, str, str]]:
    """Yield a case's pictures: number of the column, caption, what shows it."""
    try:
        source = case.image()
    except DamagedEntry as error:
        yield 0, "source", refusal(str(error))
        return
    yield 0, "source", image(source)
    mask = case.mask()
    if mask is not None:
        shade = np.where(mask[..., None], source, source // 5)
        yield 1, "where it may change", image(shade)
    for number, name in enumerate(methods, 2):
        result = store.read(name, case.key)
        if result is None:
            continue
        path = store.picture(name, case.key)
        body = refusal(result.error) if result.error else image(np.asarray(Image.open(path)))
        yield number, caption_of(result), body
    try:
        exact = data.exact(case)
    except DamagedEntry as error:
        yield 2 + len(methods), "exact", refusal(str(error))
        return
    if exact is not None:
        yield 2 + len(methods), "exact", image(exact)


def caption_of(result: Result) -> str:
    """Name a method and its main numbers."""
    found = result.metrics
    numbers = [f"{text} {decibel(found[name])}" for name, text in SHOWN.items() if name in found]
    if "right" in found:
        numbers.append("right" if found["right"] else "not right")
    return f"<b>{html.escape(result.method)}</b><br>{', '.join(numbers)}"


def refusal(error: str) -> str:
    """Write why there is no picture."""
    return f'<div class="failed">{html.escape(error)}</div>'


def image(picture: np.ndarray) -> str:
    """Write a picture, made small, as a part of the page."""
    small = Image.fromarray(picture).convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="">'
