"""The HTML report, in a real browser."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from mlx_embeddinggemma.bench import html, record, report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
needs_browser = pytest.mark.skipif(
    not (BROWSER or shutil.which(MAC)), reason="needs Chromium or Chrome"
)


def model(name, megabytes, scores, slow):
    quality = {
        task: {str(dim): {"score": s - 0.02 * i, "items": [s] * 20} for i, dim in enumerate((768, 128))}
        for task, s in scores.items()
    }
    measured = {
        "load_s": 0.3,
        "first_vector_s": 0.5,
        "latency": [{"tokens": n, "samples_s": [slow * n / 1e4] * 3} for n in (16, 256)],
        "batches": [{"texts": 4, "tokens": 256, "samples_s": [slow]}],
        "corpus": {"texts": 9, "tokens": 900, "samples_s": [slow]},
        "memory_mb": {"idle": 60.0, "idle_peak": 70.0, "load_peak": 90.0 + megabytes},
        "mlx_mb": {"idle": 20.0, "load_peak": 40.0},
    }
    return {"name": name, "size_bytes": megabytes * 2**20, "speed": [measured], "quality": quality}


@pytest.fixture
def merged():
    machine = {"chip": "a chip", "cores": 2, "memory_gb": 8, "system": "Linux", "power": None}
    about = {"type": "Retrieval", "metric": "nDCG@10", "note": "", "gold": None}
    return report.Merged(
        [
            {
                "schema": record.SCHEMA,
                "when": "2026-01-01T00:00:00Z",
                "machine": machine | {"device": "CPU", "python": "3.11"},
                "versions": {"mlx": "0.32"},
                "commit": None,
                "tasks": {"One": about | {"published": 0.9}, "Two": about | {"published": None}},
                "models": [
                    model("bf16", 20, {"One": 0.9, "Two": 0.6}, 1.0),
                    model("</script><b>4bit", 5, {"One": 0.7, "Two": 0.7}, 2.0),
                    model("bad", 9, {"One": 0.5, "Two": 0.5}, 2.0),
                ],
            }
        ]
    )


def opened(page, tmp_path, script=""):
    """The page's elements as the browser has them, after its scripts and this one."""
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command = [str(BROWSER), *flags, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split("<main>")[1].split("</main>")[0]


def test_the_page_asks_the_network_for_nothing(merged):
    addresses = set(re.findall(r"https?://[^\"\' <]+", html.page(merged)))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe)|src=|@import|url\(", html.page(merged))


@needs_browser
def test_every_chart_and_table_is_drawn(merged, tmp_path):
    dom = opened(html.page(merged), tmp_path)
    assert dom.count("<svg") == 4
    assert re.findall(r"<h2>(.*?)</h2>", dom) == [
        "Quality against dimension",
        "Quality against size",
        "Latency against length",
        "Memory",
        "What to choose",
        "Size, start and memory",
        "Speed",
        "Quality",
        "Difference from bf16",
    ]
    assert "NaN" not in dom and "undefined" not in dom and "Infinity" not in dom
    # A model's name is text, whatever it holds.
    assert "<b>4bit" not in dom and "&lt;/script&gt;&lt;b&gt;4bit" in dom


@needs_browser
def test_a_row_of_differences_holds_every_dimension_with_its_interval(merged, tmp_path):
    rows = opened(html.page(merged), tmp_path).split("Difference from bf16")[1].split("<tr>")[2:]
    assert len(rows) == 6  # two variants, two tasks and their mean
    bad = next(row for row in rows if ">bad<" in row and ">One<" in row)
    assert re.findall(r'class=" ?worse ?">([^<]*)<', bad) == ["−40.00 [−40.00, −40.00]"] * 2
    better = next(row for row in rows if "4bit" in row and ">Two<" in row)
    assert better.count("+10.00 [+10.00, +10.00]") == 2 and "better" in better


@needs_browser
def test_the_pareto_front_leaves_out_what_is_larger_and_worse(merged, tmp_path):
    front = opened(html.page(merged), tmp_path).split("What to choose")[1].split("</section>")[0]
    assert "bf16" in front and "4bit" in front and ">bad<" not in front


@needs_browser
def test_a_click_on_a_head_sorts_the_table(merged, tmp_path):
    click = """
        const sections = [...document.querySelectorAll("section")];
        const table = sections.find(s => s.textContent.startsWith("Size"));
        const names = () => [...table.querySelectorAll("tbody tr")].map(r => r.cells[0].textContent[0]);
        const button = table.querySelectorAll("th button")[1];
        button.click(); const down = names(); button.click();
        document.querySelector("h1").textContent = JSON.stringify([down, names()]);
    """
    dom = opened(html.page(merged), tmp_path, click)
    down, up = json.loads(unescape(re.search(r"<h1>(.*?)</h1>", dom)[1]))
    assert down == ["b", "b", "<"] and up == ["<", "b", "b"]


@needs_browser
def test_records_without_speed_or_without_quality_make_a_page_too(merged, tmp_path):
    (one,) = merged.records
    slow = one | {"models": [m | {"speed": []} for m in one["models"]]}
    assert opened(html.page(report.Merged([slow])), tmp_path).count("<svg") == 2
    fast = one | {"tasks": {}, "models": [m | {"quality": {}} for m in one["models"]]}
    assert opened(html.page(report.Merged([fast])), tmp_path).count("<svg") == 2
