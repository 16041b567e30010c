"""What a chat says about the form of its answer: functions that it may call, and a schema or a pattern."""

from __future__ import annotations

from ladle.server.fields.output_format import OutputFields
from ladle.server.tools.choices import ToolFields


class FormFields(ToolFields, OutputFields):
    """Tools and an output format, which a chat may have side by side."""
