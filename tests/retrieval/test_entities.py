import pytest

from dakera_cluster.retrieval.entities import MAX_NAMES, proper_nouns


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What did Caroline's sister say to Mel about O'Brien-Smith?", ("Caroline", "Mel", "O'Brien-Smith")),
        ("What did Zoë’s sister say to Jürgen-Karl?", ("Zoë", "Jürgen-Karl")),
        ("does nobody here bear a name", ()),
        ("WHO KNOWS", ()),
        ("Bob Ross", ()),
        ("", ()),
        ("Did I see Ann on Monday in May, or Ann's 3D_Printer?", ("Ann", "D_Printer")),
        ("Summarize what Ann said", ("Ann",)),
        (" ".join(f"the Name{number}" for number in range(20)), tuple(f"Name{number}" for number in range(MAX_NAMES))),
    ],
)
def test_names_are_the_capitalised_words_that_are_no_habit(question: str, names: tuple[str, ...]) -> None:
    assert proper_nouns(question) == names
