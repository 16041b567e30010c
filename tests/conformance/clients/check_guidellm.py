"""guidellm: a load of a few streams over chat and over text completions, steered by name; no request fails."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from server import KEY, NAMED, URL

program = Path(sys.executable).with_name("guidellm")
with tempfile.TemporaryDirectory() as folder:
    for route in ("/v1/chat/completions", "/v1/completions"):
        out = Path(folder) / f"{route.count('/')}{len(route)}.json"
        command = [
            str(program), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={URL},model={NAMED},api_key={KEY},request_format={route}",
            "--profile", "kind=concurrent,streams=3",
            "--constraint", "kind=max_requests,count=6",
            "--tokenizer", f"kind=hf_auto,model={os.environ['LADLE_TOKENIZER']}",
            "--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
            "--output", f"kind=json,path={out}",
        ]  # fmt: skip
        subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, timeout=200)
        (run,) = json.loads(out.read_text())["benchmarks"]
        requests = run["requests"]
        assert len(requests["successful"]) == 6 and not requests["errored"], run["metrics"]["request_totals"]
        # The tokens that were asked for came, although an end of the text may have been among them.
        assert {request["output_metrics"]["text_tokens"] for request in requests["successful"]} == {8}
        print(f"  {route}: 6 requests")
