"""The page of a run in a real browser: nothing overflows, no label is clipped or covered, both colour schemes."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exafield import page
from made_run import make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
WIDTHS = (320, 390, 768, 1200)

# Puts the page into frames of several widths, and notes what sticks out and which labels of a drawing touch.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="found"></pre>%s<script>
onload = () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
    const said = text => found.push(frame.width + ": " + text);
    if (!page.querySelector("h1")) said("no page");
    if (root.scrollWidth > width) said("the page is " + root.scrollWidth + " wide");
    for (const svg of page.querySelectorAll("svg")) {
      const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")];
      const boxes = texts.map(text => text.getBoundingClientRect());
      boxes.forEach((a, i) => {
        if (a.left < box.left - 1 || a.right > box.right + 1 || a.top < box.top - 1 || a.bottom > box.bottom + 1)
          said("clipped: " + texts[i].textContent);
        boxes.slice(0, i).forEach((b, j) => {
          if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
            said("covered: " + texts[i].textContent + " and " + texts[j].textContent);
        });
      });
    }
  }
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>"""


def browse(page: Path, profile: Path, *more: str) -> str:
    """Opens a page; returns what became of its markup."""
    flags = ("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    flags += ("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--dump-dom")
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    command = [str(BROWSER), *flags, *root, f"--user-data-dir={profile}", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def shot(page: Path, folder: Path, *more: str) -> tuple[str, np.ndarray]:
    """The markup, and the upper part of the page as pixels."""
    path = folder / "shot.png"
    markup = browse(page, folder / "profile", f"--screenshot={path}", "--window-size=1100,1600", *more)
    with Image.open(path) as image:
        return markup, np.asarray(image.convert("L"), dtype=float)


def test_the_page_is_shown_in_both_colour_schemes(tmp_path: Path) -> None:
    path = page.write(make_run(tmp_path / "run", metric="<b>&amp;</b>"))
    markup, light = shot(path, tmp_path)
    assert "<h1>microscopy</h1>" in markup
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in markup
    assert markup.count("<svg") >= 5
    assert len(re.findall(r'<path d="M[\d.]+ [\d.]+ L', markup)) >= 5
    _, dark = shot(path, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light.mean() > 200
    assert dark.mean() < 60
    for pixels in (light, dark):  # something is drawn in every quarter of the height
        assert all(part.std() > 4 for part in np.array_split(pixels, 4))


def test_nothing_sticks_out_and_no_label_is_clipped(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run", ranks=3, metric="a_metric_with_a_name_that_is_long_and_has_no_blank_in_it_at_all"
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    for number, (value, step) in enumerate([(-1.5e-7, 1e6), (123456.7, 2e6), (1e-12, 3e6), (9.99e11, 12345678)]):
        record = {"kind": "train", "step": step, "time": 0.0, "wide": value, "narrow": 1.0 + 1e-5 * number}
        lines.append(json.dumps(record | {"log": 10.0 ** (3 * number)}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = page.write(folder).read_text(encoding="utf-8")
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert bare != text
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{html.escape(bare)}"></iframe>' for width in WIDTHS)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE % frames, encoding="utf-8")
    markup = browse(probe, tmp_path / "profile", "--window-size=1300,2000")
    found = markup.partition('<pre id="found">')[2].partition("</pre>")[0]
    assert found == "[]"
