"""The tables in README and docs: they are what the code says, and hold every loss."""

import pytest

from pairops import losses
from support import documentation_tables


@pytest.mark.parametrize("page", documentation_tables.PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_of_the_code(page: documentation_tables.Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert documentation_tables.MADE.search(text), f"{page.name} has no table of its own"
    if documentation_tables.written(text) != text:
        pytest.fail(f"the tables of {page.name} are old; `make api` writes them", pytrace=False)


def test_every_loss_is_in_every_table() -> None:
    for table in (documentation_tables.families(), documentation_tables.formulas()):
        for name in losses.LOSSES:
            assert f"`{name}`" in table
    assert documentation_tables.written("<!-- families: made by make api -->\n<!-- end -->") != ""
