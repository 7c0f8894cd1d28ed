"""torchvision, datasets, transformers, webdataset, lhotse: trained and resumed in mid-epoch to the same bits."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference
LAB = Path(__file__).parents[1] / "golden" / "pipelines_lab.py"

#: Each case, how many batches its two epochs have, and what a batch is.
CASES = {
    "torchvision_images": (6, "list"), "datasets_table": (8, "dict"), "datasets_stream": (12, "dict"),
    "transformers_batches": (8, "BatchEncoding"), "transformers_model": (8, "BatchEncoding"),
    "webdataset_shards": (12, "list"), "lhotse_cuts": (20, "dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_trains_and_resumes_to_the_same_bits(pipelines, tmp_path, case):
    done = pipelines.run("-W", "ignore", LAB, case, tmp_path)  # it fails where a resumed run differs
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    batches, kind = CASES[case]
    for found in json.loads(line.removeprefix("RESULT ")).values():
        assert (found["batches"], found["distinct"], found["kind"]) == (batches, batches, kind)
        assert 0 < found["valid"] < 10
