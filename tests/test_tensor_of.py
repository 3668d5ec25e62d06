"""Features, labels and logits come as whatever holds numbers."""

import pandas
import pytest
import torch
from datasets import Dataset

from amal_hf import label_posterior, out_of_fold_logits
from amal_hf.tensor_of import tensor_of


ROWS = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
LABELS = [0, 1, 2, 0, 1, 2, -100]
DATA = Dataset.from_dict({"row": ROWS.tolist(), "label": LABELS})
NAMED = pandas.DataFrame(ROWS.numpy(), index=range(20, 13, -1)).assign(label=LABELS)

HOLDERS = {
    "a list of tensors": (list(ROWS), LABELS),
    "columns": (DATA["row"], DATA["label"]),
    "columns of tensors": (DATA.with_format("torch")["row"], DATA.with_format("torch")["label"]),
    "columns of arrays": (DATA.with_format("numpy")["row"], DATA.with_format("numpy")["label"]),
    "a table": (NAMED[[0, 1, 2]], NAMED["label"]),
    "what has a graph": (ROWS.clone().requires_grad_(), torch.tensor(LABELS)),
}


@pytest.mark.parametrize(("rows", "labels"), HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("reads", [out_of_fold_logits, lambda *given: label_posterior(*given).classes])
def test_all_that_holds_numbers_is_read_alike(reads, rows, labels):
    """Of a table by the places of its rows, whatever their names; of a column as it is formatted."""
    expected = reads(ROWS.numpy(), LABELS)
    torch.testing.assert_close(reads(rows, labels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [None, ["a"], [[1.0], [1.0, 2.0]], NAMED.assign(name="a"), [0, None]])
def test_what_is_no_number_is_an_error(wrong):
    """Of a kind that its readers turn into words."""
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        tensor_of(wrong)
