"""instructor: forms by tools and by schemas, whole and in part."""

import instructor
from openai import OpenAI

from server import KEY, NAMED, SAYING, STEERING, V1, Forecast

client = OpenAI(base_url=V1, api_key=KEY)
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    patched = instructor.from_openai(client, mode=mode)
    found = patched.chat.completions.create(
        model=NAMED, messages=SAYING, response_model=Forecast, max_tokens=300, max_retries=0
    )
    assert isinstance(found, Forecast)
    *_, last = patched.chat.completions.create_partial(
        model="demo", messages=SAYING, response_model=Forecast, max_tokens=300, extra_body=STEERING
    )
    assert last.days == Forecast.model_validate(last.model_dump()).days
    print(f"  {mode}: {found}")
