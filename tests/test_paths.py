import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt import DictKey, Field, Index, Path, PathError
from pytreeckpt.paths import compile_glob
from tests import strategies as some
from tests.exact import element_token

STEPS = st.one_of(
    some.KEYS.map(DictKey),
    st.integers(0, 1 << 70).map(Index),
    st.text(st.characters(exclude_categories=["Cs"])).map(Field),
)
PATHS = st.lists(STEPS, max_size=5).map(Path)


def token(path: Path) -> tuple[object, ...]:
    """Equal for paths of the same steps, by types and bits."""
    return tuple(
        ("key", element_token(step.key)) if isinstance(step, DictKey) else (type(step).__name__, step) for step in path
    )


@given(PATHS)
def test_parsing_the_text_of_a_path_gives_the_path(path):
    assert token(Path.parse(str(path))) == token(path)


@given(PATHS, PATHS)
def test_different_paths_have_different_texts(path, other):
    assert (str(path) == str(other)) == (token(path) == token(other))


@given(st.text() | st.text('ab[]().,/"\\*01 -x:en').map(str))
def test_parsing_any_text_gives_a_path_or_a_path_error(text):
    try:
        path = Path.parse(text)
    except PathError as error:
        assert "position" in str(error)
    else:
        assert token(Path.parse(str(path))) == token(path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (Path(), ""),
        (Path([DictKey("opt"), DictKey("mu"), Index(0)]), "opt/mu[0]"),
        (Path([DictKey("opt"), DictKey(0), DictKey("exp_avg")]), "opt/0/exp_avg"),
        (Path([DictKey("opt"), DictKey("0")]), 'opt/"0"'),
        (Path([DictKey("state"), Field("params"), DictKey("w")]), "state/.params/w"),
        (Path([Index(3), Index(0), DictKey("a")]), "[3][0]/a"),
        (Path([Field("x")]), ".x"),
        (Path([Field("a b")]), '."a b"'),
        (Path([DictKey("a.b")]), "a.b"),
        (Path([DictKey("a"), DictKey("b")]), "a/b"),
        (Path([DictKey("a/b")]), '"a/b"'),
        (Path([DictKey("[0]")]), '"[0]"'),
        (Path([DictKey("")]), '""'),
        (Path([DictKey(".a")]), '".a"'),
        (Path([DictKey("None")]), '"None"'),
        (Path([DictKey(None), DictKey(True), DictKey(False)]), "None/True/False"),
        (Path([DictKey(1.0), DictKey(-0.0), DictKey(1e300), DictKey(float("-inf"))]), "1.0/-0.0/1e+300/-inf"),
        (Path([DictKey(float("nan"))]), "nan:7ff8000000000000"),
        (Path([DictKey(b"\x00\xff"), DictKey(b"")]), "0x00ff/0x"),
        (Path([DictKey((1, "a", (b"b", None)))]), '(1,"a",(0x62,None))'),
        (Path([DictKey(()), DictKey("()")]), '()/"()"'),
        (Path([DictKey("\n\u00e9\u200b")]), '"\\n\\u00e9\\u200b"'),
        (Path([DictKey("\u00e9")]), "\u00e9"),
        (Path([DictKey("-0"), DictKey("007"), DictKey("1e5")]), '"-0"/007/"1e5"'),
    ],
)
def test_the_text_of_a_path_is_as_the_registry_says(path, text):
    assert str(path) == text
    assert repr(path) == f"Path({text!r})"
    assert token(Path.parse(text)) == token(path)


def test_an_integer_key_may_have_more_digits_than_python_converts_at_once():
    path = Path([DictKey(-(1 << 40_000))])
    assert Path.parse(str(path)) == path
    assert Path.parse(f"[{str(path)[1:]}]") == Path([Index(1 << 40_000)])


@pytest.mark.parametrize(
    "text", ["a//b", "/a", "a/", "[", "[x]", "[01]", "a[0", "(a)", "(1", '"a', '"\\q"', ".", ".1", "a]", "a(b"]
)
def test_a_text_that_writes_no_path_is_an_error_with_the_position(text):
    with pytest.raises(PathError, match="position"):
        Path.parse(text)


def test_tuples_without_end_are_an_error():
    with pytest.raises(PathError, match="nest too deeply"):
        Path.parse("(" * 100_000)


def test_something_that_is_no_key_has_no_text():
    with pytest.raises(PathError, match="is not a key"):
        str(Path([DictKey(object)]))


GLOB_CASES = {
    "a": (["a", "a/b", "a[0]/c", "a/.x"], ["ab", "b/a", "[0]/a", '"a/b"']),
    "a/b": (["a/b", "a/b/c"], ["a", "a/c", "b"]),
    "*": (["a", "a/b", "1", '"x/y"', "[0]", ".f"], []),
    "a/*": (["a/b", "a/1", "a/b/c"], ["a", "b/a"]),
    "a?": (["ab", "a1/c"], ["a", "abc"]),
    "**": (["", "a", "a/b[0]"], []),
    "**/bias": (["bias", "a/bias", "a[1]/b/bias", "a/bias/c"], ["biases", "a/bias2"]),
    "a/**/c": (["a/c", "a/b/c", "a/b/b/c/d"], ["a", "c", "a/b"]),
    "a[*]": (["a[0]", "a[12]/b"], ["a", "a/0", "a/b"]),
    "a[1]": (["a[1]"], ["a[0]", "a[12]", "a/1"]),
    "[*]/w": (["[0]/w"], ["a/w", "w"]),
    "layer_*/w": (["layer_0/w", "layer_12/w/x"], ["layer/w", "layer_0/b"]),
    '"a/b"': (['"a/b"', '"a/b"/c'], ["a/b"]),
    '"*"': ([], ["a", "*"]),
    "0": (["0"], ['"0"', "[0]"]),
    "*.weight": (["a.weight", "a.b.weight"], ["a/weight", "a.weights"]),
    ".x": ([".x", ".x/y"], ["x", "a/.x"]),
    ".*": ([".x", ".yz/a"], ["a"]),
    '(1,"a/b")/x': (['(1,"a/b")/x'], ["x", '(1,"a")/x']),
}


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (pattern, text, hit)
        for pattern, both in GLOB_CASES.items()
        for hit, texts in zip((True, False), both)
        for text in texts
    ],
)
def test_a_glob_matches_a_path_or_one_of_its_ancestors(pattern, text, expected):
    assert compile_glob(pattern)(Path.parse(text)) is expected


@given(PATHS)
def test_the_text_of_a_path_is_a_glob_that_matches_it_and_all_below(path):
    matches = compile_glob(str(path))
    assert matches(path)
    assert matches(Path([*path, Index(0)]))


@given(st.text('ab[]()/"*?.\\01'))
def test_any_text_is_a_glob_or_a_path_error(text):
    try:
        matches = compile_glob(text)
    except PathError as error:
        assert repr(text) in str(error)
    else:
        assert matches(Path()) in {True, False}
