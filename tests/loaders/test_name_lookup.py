import pytest

from dist_scvi.loaders.name_lookup import check_list, describe_missing, nearest_names, split_names


def test_one_text_is_refused_where_a_list_is_needed():
    with pytest.raises(ValueError, match=r"^genes='GATA1' is one text, a list is needed: genes=\['GATA1'\]$"):
        check_list("genes", "GATA1")
    check_list("genes", ["GATA1"])
    check_list("genes", None)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["d1, left"], ["d1, left"]),
        (["a,b"], ["a", "b"]),
        (["d1, left", "a"], ["d1, left", "a"]),
        (["a,,b,"], ["a", "b"]),
        (["d1, left,a"], ["d1", " left", "a"]),
    ],
)
def test_a_name_that_holds_a_comma_is_taken_whole_and_other_texts_are_split(given, names):
    assert split_names(given, {"d1, left", "a", "b"}) == names


def test_names_that_differ_in_case_or_version_come_before_those_spelled_alike():
    present = ["ENSG01.4", "gata1", "GATA2", "GATA3"]
    assert nearest_names("GATA1", present) == ["'gata1'"]
    assert nearest_names("ensg01", present) == ["'ENSG01.4'"]
    assert nearest_names("GATA4", present)[0] in ("'GATA2'", "'GATA3'")
    assert nearest_names("zzz", present) == []


def test_a_symbol_leads_to_the_gene_it_names():
    symbols = {"feature_name": ["GATA1", "CD4"]}
    assert nearest_names("cd4", ["ENSG01", "ENSG02"], symbols) == ["'ENSG02' (its feature_name is 'CD4')"]


def test_missing_names_are_described_with_the_nearest_and_counted():
    assert describe_missing(["Cd4", "x1", "x2", "x3"], ["CD4"]) == "'Cd4' (did you mean 'CD4'?), 'x1', 'x2' and 1 more"
