"""The report in a real browser: marks move, nothing is fetched, nothing hostile runs."""

import dataclasses
import math
import os
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from documents import make

from posthoc.analysis.audit import audit
from posthoc.analysis.documents import SIGN_WORDS
from posthoc.analysis.health import Ailment, Symptom
from posthoc.analysis.metrics import compute_metrics
from posthoc.analysis.records import psi_with
from posthoc.analysis.verdicts import verdict
from posthoc.cli import main
from posthoc.report.answers import advice, matrix
from posthoc.report.figures import FIGURES
from posthoc.report.page import page
from posthoc.report.sources import Several, Source, as_runs
from posthoc.shown import shown as as_shown
from posthoc.store import open_activations

HOSTILE = (
    "</script><script>window.harm = 1</script><img src=x onerror=window.harm=1>\"'`${harm} \u202e\u2028" + "long" * 60
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "Chromium must be installed here"
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-background-networking"]
        )
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Open a file and return its page; at the end nothing must have failed or gone out."""
    opened, complaints = [], []

    def open_page(path, width=1000, scheme="light"):
        shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=True)
        opened.append(shown)
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("request", lambda request: request.url == path.as_uri() or complaints.append(request.url))
        shown.goto(path.as_uri())
        shown.wait_for_selector("html[data-drawn]", state="attached")
        return shown

    yield open_page
    for shown in opened:
        shown.close()
    assert complaints == []


@pytest.fixture(scope="module")
def run_of(activations_file):
    with open_activations(activations_file) as activations:
        metrics = compute_metrics(activations, nulls=19)
        return metrics, audit(activations, count=10)


@pytest.fixture(scope="module")
def one(run_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "one.html"
    path.write_text(page([Source("run", "metrics.json", *run_of)]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def three(run_of, tmp_path_factory):
    metrics, verdicts = run_of
    accuracy = metrics.measures["accuracy"]
    sources = [
        Source(name, "metrics.json", dataclasses.replace(metrics, measures={
            **metrics.measures, "accuracy": dataclasses.replace(accuracy, value=accuracy.value - 0.01 * k)
        }), verdicts)
        for k, name in enumerate(("a", "b", HOSTILE))
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("report") / "three.html"
    path.write_text(page(sources), encoding="utf-8")
    return path


def marked(shown, figure):
    """Where the marks of the chosen epoch are: x of every rule and ring in its colour."""
    return shown.evaluate(
        """id => [...document.querySelectorAll(`#${id} svg [aria-roledescription]`)]
            .filter(mark => getComputedStyle(mark).stroke === getComputedStyle(
                document.querySelector('nav input')).accentColor)
            .map(mark => Math.round(mark.getBoundingClientRect().x))""",
        figure,
    )


def point(shown, figure, x, y):
    """Move the pointer to a place in a chart, in shares of its width and height."""
    chart = shown.locator(f"#{figure} svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    shown.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def shot(shown, figure):
    return shown.locator(f"#{figure}").screenshot()


def test_hovering_marks_the_epoch_in_every_chart(visit, one):
    shown = visit(one)
    before = {name: marked(shown, f"run0-{name}") for name in ("measures", "stability", "trajectory", "layers")}
    assert all(before.values())
    assert shown.locator("nav output").inner_text() == "4"
    point(shown, "run0-measures", 0.45, 0.2)
    shown.wait_for_function("document.querySelector('nav output').textContent !== '4'")
    at = shown.locator("nav output").inner_text()
    assert at in ("1", "2")
    after = {name: marked(shown, f"run0-{name}") for name in before}
    assert all(after[name] != before[name] for name in before)
    assert f"(epoch {at})" in shown.locator("#run0-locking-title").inner_text()
    shown.mouse.move(5, 5)
    shown.wait_for_function("document.querySelector('nav output').textContent === '4'")
    assert {name: marked(shown, f"run0-{name}") for name in before} == before


def test_a_click_keeps_the_epoch(visit, one):
    shown = visit(one)
    point(shown, "run0-stability", 0.5, 0.2)
    shown.wait_for_function("document.querySelector('nav output').textContent !== '4'")
    at = shown.locator("nav output").inner_text()
    shown.mouse.down()
    shown.mouse.up()
    shown.mouse.move(5, 5)
    shown.wait_for_timeout(200)
    assert shown.locator("nav output").inner_text() == at
    assert shown.locator("#slider").input_value() == at


def test_the_slider_moves_through_the_epochs(visit, one, run_of):
    shown = visit(one)
    pictures = {name: shot(shown, f"run0-{name}") for name in ("locking", "similarity", "fluctuation")}
    places = marked(shown, "run0-measures")
    shown.locator("#slider").focus()
    shown.keyboard.press("ArrowLeft")
    shown.keyboard.press("ArrowLeft")
    shown.wait_for_function("document.querySelector('nav output').textContent === '2'")
    shown.wait_for_timeout(200)
    assert shown.locator("#slider").get_attribute("aria-valuetext") == "epoch 2"
    for name, picture in pictures.items():
        assert shot(shown, f"run0-{name}") != picture
    assert marked(shown, "run0-measures") != places
    written = shown.locator("#run0-similarity svg text").all_text_contents()
    assert {f"{round(v, 3):.2f}" for row in run_of[0].representation.cka_layers[2] for v in row} <= set(written)


FAINT = """() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => parts(colour).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const ground = (part) => {
        for (let at = part; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((parts(colour)[3] ?? 1) > 0) return colour;
        }
    };
    const written = [...document.querySelectorAll('body *')].filter(part => part.checkVisibility() && part.textContent.trim() &&
        [...part.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && !part.closest('#run0-locking, #run0-similarity, script'));
    return written.filter(part => {
        const style = getComputedStyle(part), colour = part.closest('svg') ? style.fill : style.color;
        if (!colour.startsWith('rgb')) return false;
        const [a, b] = [light(colour), light(ground(part))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05) < 4.5;
    }).map(part => part.textContent);
}"""
"""Texts whose contrast is below 4.5 to 1 (WCAG 2, AA), but for the numbers in the cells of matrices."""


def test_dark_mode_by_preference_and_by_button(visit, one):
    def ground(shown):
        return shown.evaluate("getComputedStyle(document.body).backgroundColor")

    def line(shown):
        return shown.evaluate("getComputedStyle(document.querySelector('#run0-measures .mark-line path')).stroke")

    light, dark = visit(one), visit(one, scheme="dark")
    assert ground(light) == "rgb(255, 255, 255)"
    assert ground(dark) == "rgb(20, 23, 27)"
    assert line(light) != line(dark)
    for shown in (light, dark):
        assert shown.evaluate(FAINT) == []
    light.locator("#theme").click()
    assert (ground(light), line(light)) == (ground(dark), line(dark))
    dark.locator("#theme").click()
    assert ground(dark) == "rgb(255, 255, 255)"


OVERLAPS = r"""() => [...document.querySelectorAll('.chart svg')].flatMap(svg => {
    const frame = svg.getBoundingClientRect(), boxes = new Map();
    for (const text of svg.querySelectorAll('text')) {
        const box = text.getBoundingClientRect();
        if (text.textContent.trim() && box.width && getComputedStyle(text).opacity > 0)
            boxes.set([text.textContent, Math.round(box.x), Math.round(box.y)].join(), [text.textContent, box, text]);
    }
    const all = [...boxes.values()];
    const turned = all.filter(([, box, text]) => box.height < 60 && !/rotate\((-45|315)\)/.test(text.getAttribute('transform')));  // names at 45 degrees lie in larger boxes
    return [
        ...all.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 3 || b.bottom > frame.bottom + 3)
            .map(([text]) => `${svg.parentElement.id}: ${text} is cut`),
        ...turned.flatMap(([a, p], k) => turned.slice(k + 1)
            .filter(([, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
                               Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4)
            .map(([b]) => `${svg.parentElement.id}: ${a} on ${b}`)),
    ];
})"""
"""Texts in charts that are cut, or lie on others."""
OUTSIDE = """() => [...document.querySelectorAll('main *')]
    .filter(part => part.checkVisibility() && !part.closest('.wide, svg, script') && part.getBoundingClientRect().right > innerWidth + 1)
    .map(part => part.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_charts_fit_the_screen(visit, one, width):
    shown = visit(one, width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    for chart in shown.locator(".chart").all():
        room, used = chart.bounding_box()["width"], chart.locator("svg").bounding_box()["width"]
        assert used <= room + 1
    assert shown.locator("#run0-measures svg").bounding_box()["width"] > 0.9 * min(width, 864) - 40
    assert shown.evaluate(OVERLAPS) == []
    assert shown.evaluate(OUTSIDE) == []


def drawn_well(shown):
    """Nothing lies on another or sticks out, everything can be read, and the keyboard passes the parts from top to bottom."""
    assert shown.evaluate(OVERLAPS) == []
    assert shown.evaluate(OUTSIDE) == []
    assert shown.evaluate(FAINT) == []
    stops = []
    for _ in range(8):
        shown.keyboard.press("Tab")
        stops.append(shown.evaluate("document.activeElement.getBoundingClientRect().top + scrollY"))
    assert stops[1:] == sorted(stops[1:])


@pytest.fixture(scope="module")
def diverged(run_of, tmp_path_factory):
    """A page of a run whose weights stop being finite at epoch 3."""
    metrics, _ = run_of

    def lost(values):
        return np.where(np.arange(5) > 2, np.nan, values) if len(values) else values

    measures = {
        key: dataclasses.replace(m, value=lost(m.value), low=lost(m.low), high=lost(m.high), nulls={
            name: dataclasses.replace(null, low=lost(null.low), high=lost(null.high)) for name, null in m.nulls.items()
        })
        for key, m in metrics.measures.items()
    }  # fmt: skip
    symptoms = (
        Symptom(Ailment.WEIGHTS, 3, 2, None, 9.0, math.nan),
        Symptom(Ailment.SIGNALS, 3, 2, metrics.layers[0], 9.0, math.nan),
    )
    path = tmp_path_factory.mktemp("report") / "diverged.html"
    spoilt = dataclasses.replace(metrics, measures=measures, health=symptoms)
    path.write_text(page([Source("run", "metrics.json", spoilt)]), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (900, "light")])
def test_a_run_that_breaks_shows_where(visit, diverged, width, scheme):
    shown = visit(diverged, width, scheme)
    drawn_well(shown)
    for figure in ("training", "measures", "stability"):
        assert "not finite" in shown.locator(f"#run0-{figure} svg text").all_text_contents()
    assert "not finite" not in shown.locator("#run0-weights svg text").all_text_contents()  # its distances are known


@pytest.fixture(scope="module")
def documents_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with open_activations(
        make(folder / "a.h5", 6, 256, order=0.6, steps=(0, 1, 4, 16, 1000), untrained=2)
    ) as activations:
        metrics = compute_metrics(activations, nulls=9, max_nulls=9)
    (folder / "a.html").write_text(page([Source("run", "metrics.json", metrics)]), encoding="utf-8")
    return folder / "a.html"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (900, "light"), (1400, "light")])
def test_the_page_of_a_language_model_fits_the_screen(visit, documents_page, width, scheme):
    shown = visit(documents_page, width, scheme)
    assert shown.locator("#run0-positions svg").count() == 1
    drawn_well(shown)
    panels = shown.locator("#run0-measures svg [class*=concat_] > g > path.background").all()
    assert min(panel.bounding_box()["width"] for panel in panels) > (
        200 if width == 400 else 300
    )  # whatever their titles' length


def test_a_sheet_of_paper_holds_two_figures(visit, diverged):
    shown = visit(diverged)
    shown.emulate_media(media="print", color_scheme="light")
    shown.set_viewport_size({"width": 688, "height": 1017})  # A4 without the margins
    figures = [figure.bounding_box() for figure in shown.locator("main > section > figure").all()]
    assert len(figures) > 5
    heights = sorted(box["height"] for box in figures)
    assert heights[-2] < 500  # but for the path of the weights, of four panels
    assert heights[-1] < 600
    for figure in shown.locator("main > section > figure").all():
        chart, caption = (figure.locator(part).bounding_box() for part in ("svg", "figcaption"))
        assert chart["x"] + chart["width"] <= caption["x"] + 1
        assert caption["x"] + caption["width"] <= 688
    assert not shown.locator("nav, .screen").filter(visible=True).count()
    assert shown.evaluate(OUTSIDE) == []
    pages = shown.pdf(format="A4").count(b"/Type /Page\n")
    assert 0 < pages < 8  # were figures alone on their pages, more


def test_charts_fit_again_when_the_window_changes(visit, one):
    shown = visit(one, 1200)
    wide = shown.locator("#run0-measures svg").bounding_box()["width"]
    shown.set_viewport_size({"width": 500, "height": 900})
    shown.wait_for_function("document.querySelector('#run0-measures svg').getBoundingClientRect().width < 480")
    assert wide > 800


def test_several_runs_and_hostile_names(visit, three):
    shown = visit(three)
    assert shown.locator("details.run").count() == 3
    assert shown.locator("thead th").nth(1).inner_text() == "a"
    assert as_shown(HOSTILE) in shown.locator("details.run > summary h2").nth(2).text_content()
    assert shown.locator("#run1-measures svg").count() == 0
    shown.locator("details.run > summary").nth(1).click()
    shown.wait_for_selector("#run1-audit svg")
    assert shown.evaluate("window.harm") is None
    assert shown.evaluate("document.documentElement.scrollWidth") <= 1000
    shown.locator("#slider").fill("1")
    shown.wait_for_timeout(200)
    assert len(marked(shown, "all-runs")) == 18  # a rule and a ring in each of nine panels
    point(shown, "all-runs", 0.27, 0.12)
    shown.wait_for_function("document.querySelector('nav output').textContent !== '1'")
    assert shown.locator("#all-stopping svg").count() == 1


def test_stopping_rules_are_those_of_the_runs_that_have_a_score(run_of):
    metrics, _ = run_of
    bare = dataclasses.replace(metrics, summary=dataclasses.replace(metrics.summary, best_epoch=None))
    text = page([Source(name, "metrics.json", run) for name, run in (("a", metrics), ("b", metrics), ("c", bare))])
    assert "All stopping rules" in text
    assert "Without an accuracy or other score, and not judged: c." in text
    assert "All stopping rules" not in page([Source(name, "metrics.json", bare) for name in "ab"])
    losses = []
    for name in ("cross-entropy", "mean squared error"):
        related = metrics.summary.correlations
        related = related | {psi_with(name): related["stability_index_accuracy"]}
        summary = dataclasses.replace(metrics.summary, judged_by="loss", correlations=related)
        named = dataclasses.replace(metrics.measures["loss"], symbol=name, title=name)
        losses.append(dataclasses.replace(metrics, summary=summary, measures=metrics.measures | {"loss": named}))
    of_two = [Source(name, "metrics.json", run) for name, run in zip("ab", losses, strict=True)]
    text = page(of_two)
    assert "All stopping rules" not in text
    specification = FIGURES["runs"].build(Several(as_runs(of_two)), 500).specification
    titles = [panel["title"] for panel in specification["vconcat"]]
    assert titles[-2:] == ["cross-entropy", "mean squared error"]


def test_the_page_answers_in_order_and_defines_its_symbols(visit, one):
    shown = visit(one, 400)
    assert shown.locator("h2").all_inner_texts() == [
        "What happened?", "Is the run healthy?", "Which checkpoint, and was the end needed?",
        "What do the measures say, and can they be believed?", "The measures over training, layer by layer",
    ]  # fmt: skip
    assert shown.locator("#run0-training svg").bounding_box()["y"] < 900  # seen without scrolling
    tip, symbol = shown.locator("#tip"), shown.locator(".matrix tbody th .term").first
    stops = []
    for _ in range(3):
        shown.keyboard.press("Tab")
        stops.append(shown.evaluate("document.activeElement.textContent"))
    assert stops[:2] == ["Light / dark", "How to read this"]
    meaning = "integration H_eff: nearness of the mean Hurst exponent to its optimum, from 0 to 1"
    symbol.focus()
    assert tip.inner_text() == meaning
    assert shown.locator(f"#{symbol.get_attribute('aria-describedby')}").text_content() == meaning
    shown.keyboard.press("Escape")
    assert not tip.is_visible()
    shown.keyboard.press("Tab")
    assert re.fullmatch(r"H_eff (differs|cannot).* images in .*epochs.*", tip.inner_text())
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 400
    shown.evaluate("document.activeElement.blur()")
    assert not tip.is_visible()
    symbol.tap()
    assert tip.inner_text() == meaning
    shown.locator("h1").tap()
    assert not tip.is_visible()


@pytest.mark.parametrize(
    ("differs", "wanting", "kind", "says"),
    [
        (
            3,
            0,
            "mostly",
            "Do not interpret M yet: it differs from that of another order of the same images in most epochs, and all",
        ),
        (2, 2, "some", "Read M with care: it differs from its null in some epochs only (M in 2 of 4)."),
        (0, 1, "unknown", "Of M too little was drawn to tell"),
        (0, 0, "none", "Do not interpret M: it cannot be distinguished from that of another order of the same"),
    ],
)
def test_the_advice_goes_by_the_same_verdict_as_the_cell(run_of, differs, wanting, kind, says):
    m = run_of[0].measures["metastability"]
    null = dataclasses.replace(m.summary.nulls[m.decided_by], differs=differs, wanting=wanting, epochs=4)
    of_m = dataclasses.replace(m, summary=dataclasses.replace(m.summary, nulls={m.decided_by: null}))
    metrics = dataclasses.replace(run_of[0], measures={"metastability": of_m})
    assert matrix(metrics).rows[0][1][0].kind == kind
    assert advice(metrics, run_of[1])[0].startswith(says)


def test_the_advice_says_what_was_there_before_training(run_of):
    m = run_of[0].measures["metastability"]
    assert run_of[0].checkpoints[0].untrained
    null = dataclasses.replace(m.summary.nulls[m.decided_by], differs=4, wanting=0, epochs=4)
    for p, said in ((0.04, True), (0.2, False), (np.nan, False)):
        beside = dataclasses.replace(m.nulls[m.decided_by], p=np.array([p, *m.nulls[m.decided_by].p[1:]]))
        of_m = dataclasses.replace(
            m, nulls={m.decided_by: beside}, summary=dataclasses.replace(m.summary, nulls={m.decided_by: null})
        )
        sentences = advice(dataclasses.replace(run_of[0], measures={"metastability": of_m}), run_of[1])
        assert (f"Before training M (p {p}) differs from its null, too: what makes" in " ".join(sentences)) == said


def test_of_adapters_the_base_is_not_called_untrained_nor_what_it_shows_not_learned(run_of):
    metrics = run_of[0]
    m = metrics.measures["metastability"]
    null = dataclasses.replace(m.summary.nulls[m.decided_by], differs=4, wanting=0, epochs=4)
    beside = dataclasses.replace(m.nulls[m.decided_by], p=np.full(5, 0.04))
    of_m = dataclasses.replace(
        m, nulls={m.decided_by: beside}, summary=dataclasses.replace(m.summary, nulls={m.decided_by: null})
    )
    provenance = dataclasses.replace(metrics.recording.provenance, adapters="LORA")
    recording = dataclasses.replace(metrics.recording, provenance=provenance)
    adapted = dataclasses.replace(
        metrics,
        measures={**metrics.measures, "metastability": of_m},
        input=dataclasses.replace(metrics.input, recording=recording),
    )
    (said,) = [sentence for sentence in advice(adapted, run_of[1]) if sentence.startswith("Before")]
    assert said.startswith(
        "Before fine-tuning M (p 0.04) differs from its null, too: what makes the difference was there "
    )
    assert "learned" not in said
    text = page([Source("run", "metrics.json", adapted)])
    assert "untrained" not in text.split("<main>")[1].split('<script type="application/json"')[0].replace(
        "cka_untrained", ""
    )
    assert "a hollow diamond is the network before fine-tuning." in text
    both = page([Source("run", "metrics.json", adapted), Source("other", "metrics.json", metrics)])
    assert "a hollow diamond is the network before fine-tuning or the untrained network." in both


def test_the_advice_names_what_would_help(run_of):
    metrics, audited = run_of
    m = metrics.measures["metastability"]
    null = dataclasses.replace(m.summary.nulls[m.decided_by], differs=0, wanting=1, epochs=4, draws=15)
    of_m = dataclasses.replace(m, summary=dataclasses.replace(m.summary, nulls={m.decided_by: null}))
    signs = {**metrics.nulls, m.decided_by: SIGN_WORDS}
    of_documents = dataclasses.replace(metrics, measures={"metastability": of_m}, nulls=signs)
    assert "with more --documents" in advice(of_documents, audited)[0]
    said = verdict(of_documents, "metastability").sentence()
    assert "too few documents in 1 of 4 epochs (15 ways to flip their signs: no p below 0.12)" in said
    aside = dataclasses.replace(metrics, measures={"metastability": dataclasses.replace(of_m, headline=False)})
    assert not any("No nulls were drawn" in sentence for sentence in advice(aside, audited))


def test_screen_readers_are_told_what_each_chart_shows(visit, one):
    shown = visit(one)
    for chart in shown.locator(".chart").all():
        assert chart.get_attribute("role") == "graphics-document"
        assert len(chart.get_attribute("aria-label")) > 80


def test_a_page_opens_at_the_last_epoch_that_was_measured(run_of):
    metrics, _ = run_of

    def broken(measured):
        return dataclasses.replace(measured, value=np.where(np.arange(5) > 2, np.nan, measured.value))

    spoilt = dataclasses.replace(metrics, measures={key: broken(m) for key, m in metrics.measures.items()})
    for run, last in ((metrics, 4), (spoilt, 2)):
        content = page([Source("run", "metrics.json", run)])
        assert f'"chosen": {last}' in content
        assert f'max="4" value="{last}"' in content


def test_a_report_is_one_small_file(one, three):
    assert one.stat().st_size < 1_500_000
    content = one.read_text()
    assert "src=" not in content.split("<script>")[0]
    assert HOSTILE not in three.read_text()


@pytest.mark.slow
def test_sixty_epochs_stay_below_three_megabytes(run_of):
    metrics, verdicts = run_of

    def longer(value):
        """Everything of a record 12 times over, epoch after epoch."""
        if isinstance(value, np.ndarray):
            return value[np.arange(60) % 5] if len(value) == 5 else value
        if isinstance(value, dict):
            return {key: longer(inner) for key, inner in value.items()}
        if not dataclasses.is_dataclass(value):
            return value
        return dataclasses.replace(
            value, **{field.name: longer(getattr(value, field.name)) for field in dataclasses.fields(value)}
        )

    long = dataclasses.replace(
        longer(metrics),
        checkpoints=tuple(dataclasses.replace(metrics.checkpoints[k % 5], epoch=k) for k in range(60)),
        fluctuation=tuple(metrics.fluctuation[k % 5] for k in range(60)),
    )
    assert len(page([Source("run", "metrics.json", long, verdicts)]).encode()) < 3_000_000


def test_the_command_finds_the_audit_beside_the_metrics(run_of, activations_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_of[0].save("metrics.json")
    done = CliRunner().invoke(main, ["report", "metrics.json"])
    assert done.exit_code == 0, done.output
    assert "Run <code>posthoc audit</code> to see" in (tmp_path / "report.html").read_text()
    with open_activations(activations_file) as activations:
        audit(activations, count=10).save("audit.json")
    assert CliRunner().invoke(main, ["report", "metrics.json"]).exit_code == 1
    done = CliRunner().invoke(main, ["report", "metrics.json", "--force"])
    assert done.output == "report.html\n"
    assert "</button> of pure noise, which takes channels for independent, is" in (tmp_path / "report.html").read_text()
