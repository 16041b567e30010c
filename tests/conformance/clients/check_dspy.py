"""DSPy: a signature whose form the server keeps, steered by name and by a field."""

from typing import Literal

import dspy

from server import KEY, NAMED, STEERING, V1


class Rain(dspy.Signature):
    """Say whether it rains."""

    question: str = dspy.InputField()
    town: Literal["Ur", "Bath"] = dspy.OutputField()
    wet: bool = dspy.OutputField()


for model, more in ((f"openai/{NAMED}", {}), ("openai/demo", {"extra_body": STEERING})):
    dspy.configure(lm=dspy.LM(model, api_base=V1, api_key=KEY, max_tokens=400, cache=False, temperature=1.0, **more),
                   adapter=dspy.JSONAdapter())  # fmt: skip
    found = dspy.Predict(Rain)(question="Will it rain?")
    assert found.town in ("Ur", "Bath") and isinstance(found.wet, bool)
    print(f"  {model}: {found.town} {found.wet}")
