"""JSON and other trees from files that nobody vouches for: refused in a line, within a second and 100 MB."""

import json
import time
import tracemalloc

import pytest

from dist_scvi.loaders.arrays.bounded_json import Budget, check_bytes, check_tree, parse_json, parse_json_object

DEEP = 10**5
HOSTILE = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and never closed": b"[" * (1 << 23),
    "wide": b"[" + b"1," * (1 << 22) + b"1]",
    "wide objects": b"[" + b"{}," * (1 << 21) + b"1]",
    "closed before opened": b"]" * (1 << 23),
    "a text without an end": b'"' + b'\\"' * (1 << 22),
    "long": b'"' + b"a" * (1 << 25) + b'"',
    "a number of a million digits": b"1" * 10**6,
    "not UTF-8": b'{"a": "\xff"}',
    "cut": b'{"a": [1, 2',
    "empty": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.timeout(20)
def test_a_hostile_document_is_refused_in_one_line_within_a_second_and_100_mb(content):
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"^zarr.json of a.zarr (has|is not valid JSON)") as refused:
        parse_json(content, "zarr.json of a.zarr")
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 3  # of a machine that others use too
    assert peak < 100 << 20
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, None, True], "b": {"c": 'a "quoted" [text], {with} \\ structure'}}, [], "ä\x1b", 1, [[[[]]]]],
)
def test_what_is_within_the_budget_is_parsed_as_json_does(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(text, "here") == value


def test_brackets_in_texts_are_no_depth():
    assert parse_json(json.dumps(["[" * 1000, '"' + "{" * 1000]), "here") == ["[" * 1000, '"' + "{" * 1000]


def test_depth_and_leaves_are_counted_exactly():
    budget = Budget(max_depth=3, max_leaves=5)
    assert parse_json("[[[1]]]", "here", budget) == [[[1]]]
    assert parse_json("[1,2,3,4,5]", "here", budget) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="here has 4 levels of lists or mappings, at most 3"):
        parse_json("[[[[1]]]]", "here", budget)
    with pytest.raises(ValueError, match="here has 6 values, at most 5"):
        parse_json("[1,2,3,4,5,6]", "here", budget)
    with pytest.raises(ValueError, match="here has 4 bytes, at most 3"):
        check_bytes(4, "here", Budget(max_bytes=3))


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ('"a"', "str"), ("null", "NoneType")])
def test_where_an_object_is_needed_nothing_else_is_taken(content, kind):
    assert parse_json_object('{"a": 1}', "here") == {"a": 1}
    with pytest.raises(ValueError, match=f"here holds a JSON {kind} where an object is needed"):
        parse_json_object(content, "here")


@pytest.mark.timeout(20)
def test_shared_lists_count_as_often_as_they_are_visited():
    laugh = ["ha"] * 10
    for _ in range(30):
        laugh = [laugh] * 10
    with pytest.raises(ValueError, match=r"model\.pt has more than 524,288 values"):
        check_tree({"a": laugh}, "model.pt")
    check_tree({"a": [["ha"] * 10] * 10, 1: (2, 3)}, "model.pt")


def test_a_tree_that_holds_itself_is_refused():
    tree: dict = {}
    tree["self"] = tree
    with pytest.raises(ValueError, match="has 65 levels"):
        check_tree(tree, "config.yaml")
