"""What functions take, in whatever way they take it."""

import torch

from espnet3_lite.checks.signatures import demands, metric_of_step, taken_of, takes, taking


class Model:
    def __init__(self, width, *, depth=1):
        pass


def test_a_class_gets_the_arguments_that_it_takes():
    given = {"width": 8, "depth": 2, "bias": False}
    assert taken_of(Model, given) == {"width": 8, "depth": 2}
    assert taken_of(lambda **anything: None, given) == given


def test_a_function_is_called_with_what_it_takes():
    call = [taking(function, ("batch", "batch_idx")) for function in (
        lambda batch, batch_idx: (batch, batch_idx),
        lambda *places: places,
        lambda batch, *, batch_idx: (batch, batch_idx),
        lambda **named: tuple(named.values()),
    )]  # fmt: skip
    assert [function("b", 3) for function in call] == [("b", 3)] * 4
    assert taking(lambda batch, *, epoch=7: (batch, epoch), ("batch", "batch_idx"))("b", 3) == ("b", 7)


def test_an_argument_is_taken_by_its_name_or_its_place_and_demanded_without_a_default():
    assert takes(lambda batch, batch_idx, loader: None, "dataloader_idx", place=2)
    assert takes(lambda batch, *, dataloader_idx: None, "dataloader_idx", place=2)
    assert not takes(lambda batch, batch_idx: None, "dataloader_idx", place=2)
    assert demands(lambda dataloader_idx: None, "dataloader_idx")
    assert not demands(lambda dataloader_idx=0: None, "dataloader_idx")


def test_the_metric_of_a_scheduler_is_found_in_the_class_as_in_the_object():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    assert metric_of_step(plateau).name == metric_of_step(plateau(optimizer)).name == "metrics"
    assert metric_of_step(torch.optim.lr_scheduler.StepLR) is None
    assert metric_of_step(lambda optimizer: None) is None  # a function that makes one
