"""`report`: a page that shows what is there, loads nothing, runs nothing, and is bounded."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.cli import report_values
from pytreeckpt.cli.outline import outline_of
from pytreeckpt.cli.report_cells import cells_of
from pytreeckpt.cli.report_html import element, name, text
from pytreeckpt.cli.report_treemap import Rectangle, squarify
from pytreeckpt.cli.report_values import bars_of, no_values, read_values, values_of
from tests.cli.running import run
from tests.cli.trees import KEYS, TREES, training_run
from tests.sources import in_boxes, open_bytes

_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "small", "p", "code", "div", "b", "i", "span"),
    *("table", "tr", "td", "details", "summary", "figure", "figcaption", "wbr", "ul", "li", "input", "label"),
    *("svg", "g", "rect", "line", "text"),
}
_VOID = {"meta", "input", "wbr"}


class Page(HTMLParser):
    """The elements of a page, with what is wrong with their nesting."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def assert_harmless(source: str) -> Page:
    """No element and no attribute that is not ours, and nothing that loads or runs."""
    page = Page(source)
    assert len(page.elements) > 20
    assert {tag for tag, _ in page.elements} <= _TAGS
    for _, attributes in page.elements:
        assert not {each for each in attributes if each.startswith("on") or each in {"src", "href", "srcset", "data"}}
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    assert "default-src 'none'" in {attributes.get("content", "")[:18] for _, attributes in page.elements}
    return page


def report(tree: Any, tmp_path: Any, *options: str, metadata: Any = None) -> str:
    ptc.save(tree, tmp_path / "x.ptck", metadata=metadata)
    ran = run("report", tmp_path / "x.ptck", "-o", tmp_path / "x.html", *options)
    assert (ran.code, ran.err) == (0, "")
    return (tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(training_run(3, 32), tmp_path_factory.mktemp("report"), metadata={"lr": 0.1})


def test_a_page_shows_what_there_is(page):
    text_of = assert_harmless(page).text
    for shown in ("x.ptck", "root ", "float32[100, 32]", "[0…2]", "all floats", "lr", "same as params/wte", "20000"):
        assert shown in text_of, shown
    assert [*re.findall(r"<h2>([\w ,]+)", page)] == ["File", "Sizes", "Values", "Metadata", "Tree"]


def test_a_page_is_the_same_each_time_and_takes_the_place_of_an_old_one(tmp_path):
    pages = {report(training_run(2), tmp_path) for _ in range(2)}
    assert len(pages) == 1
    # What could not be made leaves the old one.
    assert run("report", tmp_path / "none.ptck", "-o", tmp_path / "x.html").code == 2
    assert {(tmp_path / "x.html").read_text()} == pages
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.html", "x.ptck"]


def test_the_checkpoint_itself_is_not_overwritten(tmp_path):
    ptc.save([1], tmp_path / "x.ptck")
    before = (tmp_path / "x.ptck").read_bytes()
    ran = run("report", tmp_path / "x.ptck", "-o", tmp_path / "x.ptck")
    assert ran.code == 2
    assert "is the checkpoint itself" in ran.err
    assert (tmp_path / "x.ptck").read_bytes() == before


_HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><a href=javascript:alert(1)>",
    "</style><script>alert(1)</script>",
    "</title></svg>",
    "<!--",
    "]]>",
    "&lt;b&gt;",
    "\u202e\x00\x1b[31m",
]


def test_a_tooltip_has_lines(page):
    titles = re.findall(r"<title>([^<]*)</title>", page)
    assert any(
        re.fullmatch(r"params/wte\nfloat32\[100, 32\]\n3,200 elements, .*\n.* stored, .*", each) for each in titles
    )


def test_a_page_of_very_long_names_is_short(tmp_path):
    tree = {f"{place}{'k' * 60_000}": np.ones(3) if place % 2 else "v" * 60_000 for place in range(40)}
    page = report(tree, tmp_path, metadata=dict.fromkeys(tree, "v" * 60000))
    assert len(page) < 200_000
    assert max(map(len, re.findall("k+", page))) < 500


def test_arrays_of_few_numbers_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr("pytreeckpt.cli.report_values._N_TOGETHER", 7)
    generator = np.random.default_rng(0)
    dtypes = (np.float32, np.float64, np.float16)
    tree = [generator.standard_normal(1 + place % 9).astype(dtypes[place % 3]) for place in range(50)]
    ptc.save(tree, tmp_path / "x.ptck")
    together = np.concatenate(tree).astype(np.float64)
    with ptc.open(tmp_path / "x.ptck") as checkpoint:
        found = read_values(checkpoint, [*range(50)], [8, 17], "all", None)
    assert found.of_all.n_read == found.of_all.n_items == len(together) == found.of_all.counts.sum()
    assert found.of_all.statistics.mean == pytest.approx(together.mean(), rel=1e-6)
    assert found.of_all.statistics.std == pytest.approx(together.std(), rel=1e-6)
    assert {array: values.n_read for array, values in found.of_arrays.items()} == {8: 9, 17: 9}
    assert found.of_arrays[8].statistics.minimum == tree[8].min()


def test_no_markup_gets_through(tmp_path):
    inner = {each: np.arange(100.0) + place for place, each in enumerate(_HOSTILE)}
    tree = {each: {**inner, "text": each, "set": {each}} for each in _HOSTILE}
    named = tmp_path / "<b onclick=x>.ptck"
    ptc.save(tree, named, metadata={each: [each] for each in _HOSTILE})
    assert run("report", named, "-o", tmp_path / "x.html").code == 0
    source = (tmp_path / "x.html").read_text(encoding="utf-8")
    shown = assert_harmless(source).text
    assert "<script>alert(1)</script>" in shown
    assert "<b onclick=x>.ptck" in shown
    assert not {"\u202e", "\x00", "\x1b"} & set(source)


@given(TREES, st.dictionaries(KEYS, st.text(max_size=5) | st.none(), max_size=3))
def test_any_tree_makes_a_harmless_page(tmp_path_factory, tree, metadata):
    metadata = {key: value for key, value in metadata.items() if not isinstance(value, str) or value.isprintable()}
    source = report({"x": tree}, tmp_path_factory.mktemp("report"), metadata=metadata)
    assert_harmless(source)


def test_a_large_tree_makes_a_page_of_bounded_size_that_says_what_is_left_out(tmp_path):
    generator = np.random.default_rng(0)
    # No two alike, so that nothing is one row for many.
    names = [f"n{number:x}" for number in generator.permutation(1 << 18)[:20_000]]
    tree: dict[str, Any] = {}
    for place, each in enumerate(names):
        tree.setdefault(f"q{place % 97}" + "x" * (place % 97), {})[each] = (
            place if place % 3 else np.full(place % 31, 1.0)
        )
    source = report(tree, tmp_path)
    assert len(source) < 3_000_000
    page = assert_harmless(source)
    assert re.search(r"[0-9,]+ parts not shown: pytreeckpt inspect FILE PATH shows any part", page.text)
    assert page.text.count("more left out") + page.text.count("not opened here") > 10


def test_a_deep_tree_is_no_problem(tmp_path):
    tree: Any = np.ones(500)
    for _ in range(3000):
        tree = {"k": tree, "n": 1}
    assert "not opened here" in assert_harmless(report(tree, tmp_path)).text


def test_a_file_without_arrays_and_an_empty_one_have_pages(tmp_path):
    assert "'text'" in assert_harmless(report({"a": "text"}, tmp_path)).text
    assert_harmless(report(None, tmp_path))
    assert_harmless(report({"z": np.zeros((0, 3)), "s": np.array(["a", "b"])}, tmp_path))


def test_other_formats_have_pages_too(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.random.default_rng(0).standard_normal((50, 60)))
    assert run("report", tmp_path / "x.npz", "-o", tmp_path / "x.html").code == 0
    source = (tmp_path / "x.html").read_text()
    shown = assert_harmless(source).text
    assert "float64[50, 60]" in shown
    assert "stored" not in shown


def test_a_step_of_a_run_shows_its_metrics(tmp_path):
    with ptc.CheckpointManager(tmp_path / "run") as manager:
        manager.save(7, {"w": np.ones(300)}, metrics={"val_loss": 0.125, "<b>": 3.0}, epoch=2)
    assert run("report", tmp_path / "run" / "step-00000007.ptck", "-o", tmp_path / "x.html").code == 0
    shown = assert_harmless((tmp_path / "x.html").read_text()).text
    assert "Step 7" in shown
    assert re.search("val_loss *0.125", shown)


def test_nan_and_infinities_are_told(tmp_path):
    shown = assert_harmless(report({"w": np.array([1.0, np.nan, np.inf] * 50)}, tmp_path)).text
    assert "50 NaN" in shown
    assert "50 infinite" in shown


# What is read.


def test_without_values_no_array_is_read(tmp_path):
    ptc.save({"w": np.arange(100_000.0)}, tmp_path / "x.ptck", compression="none")
    content = bytearray((tmp_path / "x.ptck").read_bytes())
    content[1000] ^= 1
    (tmp_path / "x.ptck").write_bytes(content)
    ran = run("report", tmp_path / "x.ptck", "-o", tmp_path / "x.html")
    assert ran.code == 1
    assert "leaf w" in ran.err
    assert not (tmp_path / "x.html").exists()
    assert run("report", tmp_path / "x.ptck", "-o", tmp_path / "x.html", "--values", "none").code == 0
    assert "<figure" not in (tmp_path / "x.html").read_text()


def test_a_sample_is_bounded_and_evenly_spread(monkeypatch):
    monkeypatch.setattr(report_values, "SAMPLE_NBYTES", 1 << 20)
    ramp = np.linspace(-1, 1, 1_000_000)
    tree = {
        "big": ramp.reshape(1000, 1000),
        "turned": np.asfortranarray(ramp.reshape(1000, 1000)),
        "boxes": in_boxes(ramp.reshape(1000, 1000), [[300], [500]]),
        "small": [np.full(1000, 0.5, np.float32) for _ in range(100)],
    }
    with open_bytes(ptc.encode(tree)) as checkpoint:
        floats = list(range(len(checkpoint.index.arrays)))
        sampled = read_values(checkpoint, floats, [0, 1, 2], "sample", None)
        every = read_values(checkpoint, floats, [0, 1, 2], "all", None)
    assert every.of_all.n_read == every.of_all.n_items == 3_100_000
    assert sampled.of_all.n_items == 3_100_000
    assert sampled.of_all.n_read < (1 << 20) / 4
    for array in range(3):
        found = sampled.of_arrays[array].statistics
        assert (found.minimum, found.maximum) == (-1, 1)
        assert abs(found.mean) < 0.05
        assert every.of_arrays[array].statistics.n_items == 1_000_000


@given(st.lists(st.floats(width=32), min_size=1, max_size=60), st.integers(1, 40))
def test_a_histogram_has_all_values_but_a_thousandth(numbers, n_bars):
    items = np.array(numbers, np.float32)
    values = no_values()
    values.add(values_of(items[:7]))
    values.add(values_of(items[7:]))
    finite = items[np.isfinite(items)].astype(np.float64)
    bars = bars_of(values, n_bars)
    if bars is None:
        assert not finite.size
        return
    assert len(bars.counts) == n_bars
    assert bars.low < bars.high
    assert min(bars.counts) >= 0
    n_drawn = finite.size - bars.n_zeros
    assert sum(bars.counts) == pytest.approx(n_drawn, abs=1e-6 + n_drawn / 500)
    assert bars.n_zeros in {0, np.count_nonzero(np.abs(finite) < 2.0**-135)}


def test_a_histogram_is_that_of_numpy_but_for_the_width_of_a_key():
    items = np.random.default_rng(0).standard_normal(100_000)
    values = no_values()
    values.add(values_of(items))
    bars = bars_of(values, 30)
    expected, _ = np.histogram(items, 30, (bars.low, bars.high))
    assert np.abs(np.array(bars.counts) - expected).max() < 0.02 * expected.max()


# The treemap.

SIZES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60).map(lambda sizes: sorted(sizes, reverse=True))


@given(SIZES, st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_treemap_fills_its_rectangle_in_proportion(sizes, width, height):
    whole = Rectangle(3, 5, width, height)
    found = squarify(sizes, whole)
    assert len(found) == len(sizes)
    for size, each in zip(sizes, found, strict=True):
        assert each.area == pytest.approx(size / sum(sizes) * whole.area, rel=1e-6, abs=1e-9 * whole.area)
        assert whole.x - 1e-6 <= each.x <= each.x + each.width <= whole.x + width + 1e-6 * width
        assert whole.y - 1e-6 <= each.y <= each.y + each.height <= whole.y + height + 1e-6 * height
    # As the areas sum up to the whole, no two overlap if none does in the middle of another.
    centres = [(each.x + each.width / 2, each.y + each.height / 2) for each in found]
    for place, each in enumerate(found):
        others = [centre for other, centre in enumerate(centres) if other != place]
        assert not [1 for x, y in others if each.x < x < each.x + each.width and each.y < y < each.y + each.height]


def test_a_treemap_is_that_of_the_paper():
    found = squarify([6, 6, 4, 3, 2, 2, 1], Rectangle(0, 0, 6, 4))
    assert [tuple(round(number, 6) for number in each) for each in found[:4]] == [
        (0, 0, 3, 2),
        (0, 2, 3, 2),
        (3, 0, 1.714286, 2.333333),
        (4.714286, 0, 1.285714, 2.333333),
    ]


@given(TREES)
def test_rectangles_lie_within_their_containers_and_cover_all_arrays(tree):
    with open_bytes(ptc.encode({"x": tree, "y": np.zeros(50)})) as checkpoint:
        outline = outline_of(checkpoint.index)
        whole = Rectangle(0, 0, 1200, 600)
        cells = cells_of(outline, outline.tree, whole)
    assert cells
    for cell in cells:
        box = cell.rectangle
        assert -1e-6 <= box.x <= box.x + box.width <= 1200 + 1e-6
        assert -1e-6 <= box.y <= box.y + box.height <= 600 + 1e-6
    assert sum(cell.rectangle.area for cell in cells if not cell.is_divided) <= whole.area * (1 + 1e-9)


def test_a_flat_dict_of_dotted_names_is_drawn_as_if_it_were_nested():
    tree = {
        f"encoder.layer.{i}.{each}": np.zeros((60, 60)) for i in range(3) for each in ("query.weight", "key.weight")
    }
    with open_bytes(ptc.encode({**tree, "head.weight": np.zeros((60, 60))})) as checkpoint:
        outline = outline_of(checkpoint.index)
        cells = cells_of(outline, outline.tree, Rectangle(0, 0, 1200, 600))
    labels = {cell.path: cell.label for cell in cells}
    assert labels["encoder.layer"] == "encoder.layer"
    assert labels["encoder.layer.1"] == "1"
    assert labels["encoder.layer.1.query.weight"] == "query.weight"
    assert labels["head.weight"] == "head.weight"


# HTML.


@given(st.text())
def test_a_text_comes_back_as_what_is_visible_of_it(value):
    for made in (text(value), name(value), element("p", text(value)), element("p", title=value)):
        assert "<script" not in made
        parser = Page(made) if made.startswith("<p") else Page(f"<p>{made}</p>")
        assert parser.elements[0][0] == "p"
        assert {tag for tag, _ in parser.elements} <= {"p", "wbr"}
