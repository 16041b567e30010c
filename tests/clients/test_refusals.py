"""Names that nobody has are refused at once, with what was probably meant, and what servers say is shown as it is."""

import pytest
from mock_server import MockServer

from ladle.clients.chat_session import ChatSession
from ladle.clients.display import family_tables, output
from ladle.clients.family_responses import Family


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/method bone_soop", "there is no method 'bone_soop' (did you mean 'bone_soup'?); known: bone_soup"),
        ("/method mage", "'mage' is not available: the family has no value models; available: bone_soup"),
        ("/prefer postive=1", "no objective 'postive' (did you mean 'positive'?); known: positive, concise"),
        ("/methd base", "there is no /methd (did you mean 'method'?); /help lists what there is"),
    ],
)
def test_a_name_that_nobody_has_is_refused_at_once(line, told, connect, capsys):
    with connect(MockServer()) as client:
        session = ChatSession(client, {"model": "demo"})
        session.run([line])
    assert told in " ".join(capsys.readouterr().err.split())
    assert session.options == {"model": "demo"}


def test_what_a_server_says_is_no_markup(capsys):
    reason = "the family has no amateur ([[models]] with amateur = true)"
    family = Family.model_validate(
        {
            "name": "demo",
            "objectives": ["positive"],
            "methods": {"contrastive": {"available": False, "reason": reason}},
            "sampling": {"temperature": 0.6, "methods": {"base": {"top_k": 5}}},
        }
    )
    for table in family_tables(family):
        output.print(table)
    shown = capsys.readouterr().out
    assert "[[models]]" in shown and "temperature=0.6" in shown and "top_k=5" in shown
