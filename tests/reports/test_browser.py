"""Reports in a browser: no error, tables that sort, plots that are drawn and change with what is chosen."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from experiments.reports.comparison import Run, write_comparison
from experiments.reports.result_tables import result_tables
from experiments.reports.run import write_report
from tests.made_results import CODES, METRICS, result

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is there to open reports with")

# Collects what goes wrong, and when all is drawn does what a reader would, and writes down what is then there.
PROBE = """<script>
const wrong = [];
for (const level of ["error", "warn"]) {
  console[level] = (...words) => wrong.push(words.join(" "));
}
addEventListener("error", event => wrong.push(event.message));
addEventListener("unhandledrejection", event => wrong.push(String(event.reason)));
function all(selector, root = document) {
  const found = [...root.querySelectorAll(selector)];
  for (const element of root.querySelectorAll("*")) {
    if (element.shadowRoot) found.push(...all(selector, element.shadowRoot));
  }
  return found;
}
const texts = (selector, root) => all(selector, root).map(element => element.textContent.trim());
const colours = canvas => {
  const data = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(data).size;
};
const wait = time => new Promise(done => setTimeout(done, time));
async function probe() {
  await wait(2000);
  const found = {section: {}};
  for (const section of document.querySelectorAll("section")) {
    const sizes = all("canvas", section).filter(canvas => canvas.width > 100).map(colours);
    found.section[section.id] = {cells: texts(".slick-cell", section), drawn: sizes};
  }
  for (const [name, act] of Object.entries(ACTIONS)) {
    act();
    await wait(1000);
    const section = document.getElementById(name);
    const rows = models(section).filter(model => model.booleans).map(model => model.booleans);
    found[name] = {cells: texts(".slick-cell", section), shown: shown(section), rows};
  }
  found.wrong = wrong;
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
}
function models(section) {
  const roots = new Set([...section.querySelectorAll("[data-root-id]")].map(root => root.dataset.rootId));
  const found = Bokeh.documents[0].roots().filter(root => roots.has(root.id));
  return found.flatMap(root => [...root.references()]);
}
const shown = section => models(section).flatMap(model => [...(model.data?.text ?? model.data?.count ?? [])]);
function choose(section, number, value) {
  const select = all("select", document.getElementById(section))[number];
  select.value = value;
  select.dispatchEvent(new Event("change"));
}
const ACTIONS = {ACTIONS};
addEventListener("load", probe);
</script>"""


def opened(folder, page, actions=""):
    """What the probe wrote down, and the picture of the page; no network can be reached."""
    path, picture = folder / "probed.html", folder / "page.png"
    head = PROBE.replace("{ACTIONS}", "{" + actions + "}")
    path.write_text(page.replace('<meta charset="utf-8">', '<meta charset="utf-8">' + head, 1), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [
        "--virtual-time-budget=20000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder}/user",
    ]
    command += [f"--user-data-dir={folder}/user", "--window-size=1260,3000", f"--screenshot={picture}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was not drawn: {done.stderr[-2000:]}"
    assert "Uncaught" not in done.stderr
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), picture


RESULTS = [
    result("Float", "", 98.0),
    *(
        result(row, alphabet, top1 + 2 * bits, error / bits)
        for row, top1, error in (("RTN", 85.0, 0.6), ("COMQ", 90.0, 0.2), ("GPTQ", 88.0, 0.3))
        for bits, alphabet in ((2, "2"), (3, "3"))
    ),
]


def test_a_report(tmp_path):
    tables = result_tables([one.cell for one in RESULTS], RESULTS, METRICS, [("RTN", "2", 88.5)])
    write_report(tmp_path / "report.html", "tiny", tables, RESULTS, {})
    actions = """
      table: () => { all(".slick-header-column", document.getElementById("table"))[1].click() },
      layers: () => choose("layers", 0, "3"),
      codes: () => { choose("codes", 0, "COMQ"); choose("codes", 1, "3"); choose("codes", 2, "blocks_0/fc2") },
      "layer-table": () => choose("layer-table", 0, "GPTQ"),
      bits: () => {
        const [legend] = models(document.getElementById("bits")).filter(model => model.items && model.click_policy);
        legend.items[1].renderers[0].visible = false;
      },
    """
    found, picture = opened(tmp_path, (tmp_path / "report.html").read_text(encoding="utf-8"), actions)
    assert found["wrong"] == []
    sections = found["section"]
    assert sections["table"]["cells"][:3] == ["RTN", "89.00 ± 0.50", "91.00 ± 0.50"]
    assert sections["paper"]["cells"] == ["RTN", "2", "88.50", "89.00 ± 0.50", "+0.50"]
    assert "8" in sections["sizes"]["cells"] and "blocks_0/fc1" in sections["layer-table"]["cells"]
    for name, count in (("bits", 4), ("layers", 1), ("codes", 1)):
        drawn = sections[name]["drawn"]
        assert len(drawn) >= count and max(drawn) > 5, (name, drawn)
    assert found["table"]["cells"][::3] == ["RTN", "GPTQ", "COMQ"]  # sorted by the numbers of the second column
    assert found["layers"]["shown"][:3] == ["1.33e-01", "4.44e-02", "6.67e-02"]
    assert found["codes"]["shown"] == list(CODES["3"])
    cells = found["layer-table"]["cells"]
    assert "1.00e-01" in cells and "2.00e-01" in cells and "4.00e-01" not in cells
    assert [True, False, True] in found["bits"]["rows"] and [True, True, False, False, True, True] in found["bits"][
        "rows"
    ]
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == 1260 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert (pixels != 255).any(-1).mean() > 0.02


def test_a_comparison(tmp_path):
    second = [result(one.cell.row, one.cell.alphabet, 97.0, 0.05) for one in RESULTS]
    write_comparison(tmp_path / "two.html", Run("a", RESULTS, {}), Run("b", second, {}))
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    error = "relative output error, mean over the layers"
    found, _ = opened(tmp_path, page, f"differences: () => choose('differences', 0, '{error}')")
    assert found["wrong"] == []
    sections = found["section"]
    assert sections["differences"]["cells"][8:14] == ["RTN", "2", "89", "97", "+8", "0.71"]
    assert max(sections["differences"]["drawn"]) > 5 and max(sections["layers"]["drawn"]) > 5
    assert found["differences"]["cells"][:5] == ["RTN", "2", "3.000e-01", "5.000e-02", "-2.500e-01"]
