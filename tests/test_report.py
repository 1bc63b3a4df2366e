"""The page: everything it promises is on it, in a real browser too."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from conftest import ends_in_one_line, lines

import genotypes as gt
import plot_train_val
import report
import visualize
from records import comparison, files, reader
from tracking.run import Run

ROOT = Path(__file__).parent.parent


@pytest.fixture
def search_run(finished_search):
    return finished_search[0] / "searchs" / "s"


@pytest.fixture
def augment_run(finished_augment):
    return finished_augment[0] / "augments" / "a"


@pytest.fixture(scope="session")
def comparison_run(tmp_path_factory):
    """The page of three cells, with names of usual length and longer."""
    folder = tmp_path_factory.mktemp("compared") / "compares" / "c"
    folder.mkdir(parents=True)
    names = {"searchs/my-own-photographs": "found"}
    names |= {f"random:{1000 + n}": "random" for n in range(2)}
    space = {"primitives": gt.PRIMITIVES, "n_nodes": 2, "k": 2}
    text = gt.to_str(gt.draw("random", 1, space))
    size = {"params": 44_000, "madds": 1.65e6}
    candidates = [
        {"name": name, "kind": kind, "genotype": text, **size, "fault": ""}
        for name, kind in names.items()
    ]
    summary = {"candidates": candidates, "finished": True, "rank_by": "losses"}
    summary["next"] = f"python augment.py --genotype {folder} --quick"
    files.write_json(str(folder / "summary.json"), summary)
    for n, (name, seed) in enumerate((name, seed) for name in names for seed in (0, 1)):
        record = {"rung": 1, "candidate": name, "seed": seed, "epochs": 4, "top1": 0.8 + n / 200,
                  "loss": 0.7, "train_loss": 0.6}  # fmt: skip
        files.append_line(str(folder / "metrics.jsonl"), json.dumps(comparison.sealed(record)))
    report.draw_comparison(str(folder))
    return folder


def text_of(page):
    """What a person reads: the page without style, script and tags."""
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    page = re.sub(r'<span class="flag">(.*?)</span>', r"\1", page)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_page_of_a_search_says_everything(search_run):
    page = (search_run / "report.html").read_text(encoding="utf-8")
    text = text_of(page)
    best = json.loads((search_run / "genotype.json").read_text())
    network = json.loads((search_run / "summary.json").read_text())["network"]
    config = json.loads((search_run / "config.json").read_text())
    assert "Architecture search on digits (8x8)" in text
    assert "epochs finished 2 of 2" in text
    assert (
        f"best accuracy of the supernet {100 * best['top1']:.2f} % epoch {best['epoch']}, on the "
        f"alpha half; not that of the found cell" in text
    )
    assert "alpha half accuracy" not in text
    sure = json.loads((search_run / "summary.json").read_text())["how_sure"]
    assert f"kept edges that are decided {sure['decided']} of {sure['edges']}" in text
    assert f"{network['params'] / 1e6:.3f} M" in text
    assert f"{network['madds'] / 1e6:.1f} M multiply-adds at 8x8" in text
    assert "images per second" in text
    assert (
        "This search: second order (one-sided difference, eps 0.3, gradient of w reused)." in text
    )
    assert re.search(r"pictures [\d.]+ s, [\d.]+ % of it", text)
    assert "augment.py --genotype searchs/s" in text
    assert best["genotype"] in text
    assert "node 0 = " in text
    for key, value in {**config["flags"], **config["versions"]}.items():
        assert f"{key} {', '.join(value) if isinstance(value, list) else value}" in text
    for record in lines(search_run / "metrics.jsonl"):
        assert f"{record['loss']:.4f} {100 * record['top1']:.2f} %" in text
    for op, n in gt.count_ops(gt.load(search_run).normal).items():
        assert f"{n} {op}" in text
    assert text.count(" → ") == 10  # every edge
    assert page.count("<button") == 3  # two commands and the genotype
    assert page.count("data:image/png;base64,") == 4  # two cells, curves, alphas
    assert page.count("data:image/gif;base64,") == 2


def test_nothing_is_fetched_from_anywhere(search_run, augment_run):
    for run in (search_run, augment_run):
        page = (run / "report.html").read_text(encoding="utf-8")
        sources = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'>]+)", page)
        assert sources
        assert all(source.startswith("data:") for source in sources)
        assert not re.findall(r"url\(|@import|<link rel=.stylesheet|fetch\(|https?://", page)


def test_the_page_of_a_training(augment_run):
    text = text_of((augment_run / "report.html").read_text(encoding="utf-8"))
    last = lines(augment_run / "metrics.jsonl")[-1]
    assert "Training of a found cell on digits" in text
    assert f"last test accuracy {100 * last['top1']:.2f} %" in text
    assert "best test accuracy" in text
    assert "picked on the test split" in text
    assert "evaluate.py augments/a" in text
    assert gt.to_str(gt.load(augment_run)) in text
    assert {"normal.png", "reduce.png"} <= set(os.listdir(augment_run / "plots"))
    assert "supernet" not in text


def test_the_page_says_what_the_terminal_said(search_run, augment_run, finished_search):
    for run, out in ((search_run, finished_search[1]), (augment_run, None)):
        text = text_of((run / "report.html").read_text(encoding="utf-8"))
        summary = json.loads((run / "summary.json").read_text())
        assert summary["state"]["is"] == "finished"
        assert "finished after epoch 2 of 2." in text
        assert summary["verdict"]["text"] in text
        for step in [*summary["more"], {"command": summary["next"]}]:
            assert step["command"] in text
        for warning in summary["warnings"]:
            assert warning in text
        if out:
            warned = re.findall(r"^WARNING: (.*)", out, re.M)
            assert warned == summary["warnings"]
    found = reader.read_confusion(augment_run)
    page = (augment_run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 + len(found["wrong"])
    for wrong in found["wrong"]:
        assert f"{wrong['class']} taken for {wrong['taken_for']} ," in text_of(page)


def test_a_run_that_is_broken_off_says_so_and_how_to_go_on(search_run, here):
    shutil.copytree(search_run, "r")
    summary = json.loads(Path("r/summary.json").read_text())

    def page(**state):
        state = {"text": "", "command": "python search.py --name r --resume", **state}
        Path("r/summary.json").write_text(json.dumps({**summary, "state": state}))
        return text_of(Path(report.write("r")).read_text(encoding="utf-8"))

    text = page(**{"is": "broken off", "text": "interrupted; go on"})
    assert "broken off after epoch 2 of 2: interrupted; go on" in text
    assert summary["how_sure"]["text"] not in text  # of an end that is no longer the end
    assert summary["verdict"]["text"] not in text
    assert "Next: go on with this run python search.py --name r --resume" in text
    # killed: nobody holds the folder any more
    assert "broken off after epoch 2 of 2: its process is gone" in page(**{"is": "running"})
    with filelock.FileLock("r/.lock"):
        text = page(**{"is": "running"})
    assert "running when this page was written" in text
    assert "When it has finished: train the best cell" in text


def test_the_tile_of_decided_edges_is_not_of_a_supernet_that_guesses(search_run, here):
    shutil.copytree(search_run, "r")
    summary = json.loads(Path("r/summary.json").read_text())
    for decided, better, shown in ((3, True, True), (3, False, False), (0, False, True)):
        summary["how_sure"]["decided"] = decided
        summary["verdict"]["better"] = better
        Path("r/summary.json").write_text(json.dumps(summary))
        text = text_of(Path(report.write("r")).read_text(encoding="utf-8"))
        assert ("kept edges that are decided" in text) == shown


def test_a_run_that_is_stopped_draws_its_figures_of_the_last_epoch(search_run, here):
    shutil.copytree(search_run, "r")
    figures = [Path("r", name) for name in (files.CURVES, files.ALPHA_FIGURE)]
    for figure in figures:
        figure.write_text("of an earlier epoch")
    run = SimpleNamespace(
        record_state=lambda *words: None, group=SimpleNamespace(is_main=True),
        files=SimpleNamespace(path="r", file=lambda name: os.path.join("r", name)),
    )  # fmt: skip
    Run._record_end(run, "interrupted")
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_what_is_written_into_the_page_cannot_break_it(search_run, here):
    shutil.copytree(search_run, "r")
    config = json.loads(Path("r/config.json").read_text())
    config["flags"]["data_path"] = "</table><script>alert(1)</script>&amp;"
    Path("r/config.json").write_text(json.dumps(config))
    page = Path(report.write("r")).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "data_path </table><script>alert(1)</script>&amp;" in html.unescape(page).replace(
        '</td><td class="any">', " "
    )


@pytest.mark.parametrize(
    "missing",
    [["plots"], ["alphas.jsonl", "alphas.png"], ["config.json", "summary.json", "genotype.json"],
     ["normal.gif", "loss_accuracy.png"]],
)  # fmt: skip
def test_a_folder_that_lacks_something_has_a_page_all_the_same(search_run, here, missing):
    shutil.copytree(search_run, "r")
    for name in missing:
        shutil.rmtree(f"r/{name}") if os.path.isdir(f"r/{name}") else os.remove(f"r/{name}")
    text = text_of(Path(report.write("r")).read_text(encoding="utf-8"))
    assert "epochs finished 2 of 2" in text
    assert not [name for name in os.listdir("r") if ".tmp" in name]


def test_a_run_in_its_first_epochs(search_run, here):
    shutil.copytree(search_run, "r")
    text = Path("r/metrics.jsonl").read_text().splitlines()
    Path("r/metrics.jsonl").write_text("\n".join(text[:1]) + '\n{"phase": "va')
    page = text_of(Path(report.write("r")).read_text(encoding="utf-8"))
    assert "epochs finished 1 of 2" in page


@pytest.mark.parametrize(("kind", "n_pictures"), [("search_run", 13), ("augment_run", 7)])
def test_one_command_makes_every_picture_again(kind, n_pictures, here, capsys, request):
    shutil.copytree(request.getfixturevalue(kind), "r")
    pictures = [p.relative_to("r") for p in Path("r").rglob("*")
                if p.suffix in (".png", ".gif", ".gv", ".html")
                and "wrong" not in p.name]  # fmt: skip
    assert len(pictures) == n_pictures
    before = {p: Path("r", p).read_bytes() for p in pictures}
    for picture in pictures:
        Path("r", picture).unlink()
    report.main(["r"])
    assert capsys.readouterr() == (f"{os.path.join('r', 'report.html')}\n", "")
    for picture in pictures:
        if picture.suffix in (".gv", ".gif") or picture.parent.name == "plots":
            assert Path("r", picture).read_bytes() == before[picture], picture
        else:
            assert Path("r", picture).stat().st_size > 1000


def test_the_command_without_a_renderer_gives_the_rest(search_run, here, monkeypatch, capsys):
    shutil.copytree(search_run, "r")
    os.remove("r/report.html")
    monkeypatch.setattr(visualize, "find_renderers", list)
    report.main(["r"])
    said = capsys.readouterr()
    assert said.out.strip() == os.path.join("r", "report.html")
    assert "pip install graphviz-pure" in said.err
    assert said.err.count("\n") == 1


def test_the_command_as_a_process(augment_run, here):
    shutil.copytree(augment_run, "a")
    done = subprocess.run([sys.executable, ROOT / "report.py", "a"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("folder", ["missing", "."])
def test_what_is_no_run_ends_in_one_line(here, folder):
    assert ends_in_one_line(report.main, [folder]).startswith("report.py: ")


def test_a_damaged_picture_costs_a_line_and_not_the_page(search_run, here, capsys):
    shutil.copytree(search_run, "r")
    os.remove("r/report.html")
    Path("r/plots/EP01-normal.png").write_bytes(b"")
    Path("r/normal.gif").write_bytes(b"GIF89a")
    report.write("r")  # as it is
    Path("r/alphas.jsonl").write_text("")  # so that nothing is drawn anew
    report.main(["r"])
    said = capsys.readouterr()
    assert said.out.strip() == os.path.join("r", "report.html")
    assert said.err.count("\n") == 2
    assert "holds no epoch" in said.err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (43.2, "43 s"), (59.6, "60 s"), (60, "1 min 0 s"),
     (725, "12 min 5 s"), (3600 * 3 + 20 * 60, "3 h 20 min")],
)  # fmt: skip
def test_durations_in_words(seconds, words):
    assert report.duration(seconds) == words


# --- in a browser -------------------------------------------------------------------------------


def find_chromium():
    """A Chromium to drive: $CHROMIUM, or what Debian and others call it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH or in $CHROMIUM (Debian: apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("kind", ["search_run", "augment_run", "comparison_run"])
def test_the_page_in_a_browser(browser, finished_augment, request, kind, width, scheme):
    run = request.getfixturevalue(kind)
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda asked: wrong.append(asked.url))
    page.goto((run / "report.html").absolute().as_uri())
    for opened in (False, True):  # as it comes, and with everything unfolded
        if opened:
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert page.evaluate("document.scrollingElement.scrollWidth") == width
        # nothing sticks out, but for what stands in a box of its own that scrolls
        assert (
            page.evaluate("""() => [...document.querySelectorAll('main *')].filter(e =>
            !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth
        ).map(e => e.outerHTML.slice(0, 80))""")
            == []
        )
        cut = "e => e.scrollWidth > e.clientWidth"
        assert not page.evaluate(f"[...document.querySelectorAll('.tiles div')].some({cut})")
        if width == 1280:  # all columns are seen at once
            assert not page.evaluate(f"[...document.querySelectorAll('.scroll')].some({cut})")
        broken = "e => e.getClientRects().length > 1"  # a flag that is not on one line
        assert not page.evaluate(f"[...document.querySelectorAll('.flag')].some({broken})")
        assert (
            page.evaluate("""() => [...document.querySelectorAll('.scroll')].filter(
            e => e.querySelector('.bar') && e.scrollWidth > e.clientWidth).length""")
            == 0
        )
    assert page.evaluate("document.querySelectorAll('.flag').length") > 0
    shown = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    n_shown = {"search_run": 6, "augment_run": 4 + 8, "comparison_run": 1 + 2 * 3}
    assert shown == [True] * n_shown[kind]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert brightness < 200 if scheme == "dark" else brightness > 650
    assert wrong == []
    context.close()


def test_the_command_is_copied(browser, search_run):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((search_run / "report.html").absolute().as_uri())
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_text("Copied").wait_for()
    command = json.loads((search_run / "summary.json").read_text())["next"]
    assert page.evaluate("navigator.clipboard.readText()") == command
    context.close()


def test_without_scripts_the_page_is_whole_and_has_no_dead_button(browser, search_run):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((search_run / "report.html").absolute().as_uri())
    assert page.get_by_role("button").count() == 0
    assert page.get_by_text("How alpha decided").is_visible()
    page.get_by_text("In words, and as text").click()
    assert page.get_by_text("node 0 = ").is_visible()
    context.close()


def test_the_page_of_a_run_with_flags_of_several_numbers(finished_search, here):
    shutil.copytree(finished_search[0] / "searchs" / "s", "r")
    config = json.loads(Path("r/config.json").read_text())
    config["flags"]["input_size"] = [6, 9]
    Path("r/config.json").write_text(json.dumps(config))
    assert "6, 9" in Path(report.write("r")).read_text(encoding="utf-8")


def test_a_training_says_what_it_was_scored_on(finished_augment, here):
    shutil.copytree(finished_augment[0] / "augments" / "a", "r")
    summary = json.loads(Path("r/summary.json").read_text())
    assert summary["val_name"] == "test"
    Path("r/summary.json").write_text(json.dumps({**summary, "val_name": "val"}))
    page = Path(report.write("r")).read_text(encoding="utf-8")
    assert "picked on the val split" in page
    assert plot_train_val.val_name("r") == "val"
