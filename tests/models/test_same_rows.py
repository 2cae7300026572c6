"""A row of a product, and a number under an activation, have the same bits at any place in any company (on a CPU)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallelmind.models.cpu.elementwise import VECTOR, EvenActivation, even_count, is_activation
from parallelmind.models.cpu.even_products import even_products, has_loose_products
from parallelmind.models.cpu.instructions import has_native
from parallelmind.models.cpu.optimize import optimize_for_cpu
from parallelmind.models.cpu.packed_linear import PackedLinear
from parallelmind.models.cpu.row_counts import SIZES, Multiply, RowCounts, alike, cancelling, cut
from tests.families import tiny_model

HALF = pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(not has_native(torch.bfloat16), reason="computed in float32 here")
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, HALF])
ROWS = (1, 2, 3, 7, 16, 17, 31, 48, 100, 129, 300, 513)


def summed_in_parts(part_of: Callable[[int], int]) -> Callable[[Tensor], Multiply]:
    """A product whose sum is cut into parts of so many features, by the number of rows."""

    def prepare(weight: Tensor) -> Multiply:
        def multiply(rows: Tensor) -> Tensor:
            parts = zip(rows.split(part_of(len(rows)), 1), weight.split(part_of(len(rows)), 1), strict=True)
            return torch.stack([(some.double() @ one.double().t()).float() for some, one in parts]).cumsum(0)[-1]

        return multiply

    return prepare


def tried(prepare: Callable[[Tensor], Multiply]) -> RowCounts:
    weight, vectors = cancelling(40, 512, torch.float32)
    return alike(prepare(weight), vectors, 40)


def test_products_that_all_sum_alike_are_left_as_they_are() -> None:
    assert tried(summed_in_parts(lambda rows: 64)) == RowCounts(least=2, most=512)
    assert tried(summed_in_parts(lambda rows: 64 if rows > 3 else 128)) == RowCounts(least=4, most=512)


@pytest.mark.parametrize(
    ("part_of", "expected"),
    [
        (lambda rows: 64 if rows <= 32 else 128, SIZES[2:]),
        (lambda rows: 64 if rows <= 128 else 128, SIZES[:6]),
        (lambda rows: 64 if rows in (16, 64, 256) else 32 * (1 + rows % 5), (16, 64, 96, 256)),
    ],
)
def test_the_cheapest_sizes_that_sum_alike_are_found(part_of: Callable[[int], int], expected: tuple[int, ...]) -> None:
    counts = tried(summed_in_parts(part_of))
    assert counts.sizes == expected
    prepare = summed_in_parts(part_of)
    weight, rows = torch.randn(40, 512), torch.randn(700, 512)
    multiply = prepare(weight)
    whole = counts.apply(rows, multiply)
    torch.testing.assert_close(whole, rows @ weight.t(), atol=1e-3, rtol=1e-3)
    for start, end in ((0, 1), (3, 60), (100, 400), (5, 700), (690, 700)):
        assert torch.equal(counts.apply(rows[start:end], multiply), whole[start:end])


@pytest.mark.parametrize("sizes", [SIZES, (16,), (32, 48), (16, 96, 512), (256,)])
def test_rows_are_cut_into_calls_that_hold_them(sizes: tuple[int, ...]) -> None:
    for rows in (*range(1, 600), 1024, 1025, 4000, 10_000):
        calls = cut(rows, sizes)
        assert set(calls) <= set(sizes)
        assert rows <= sum(calls) < rows + max(sizes)
        assert sum(calls) - calls[-1] < rows, "no call is all filling"
    assert RowCounts(sizes=sizes).apply(torch.randn(0, 4), lambda some: some).shape == (0, 4)


def test_no_call_has_more_rows_than_were_tried() -> None:
    for rows in (*range(1, 600), 1024, 1025, 4000):
        calls = RowCounts(least=4, most=256).calls(rows)
        assert rows <= sum(calls) < rows + 64
        assert all(4 <= size <= 256 for size in calls)
    assert RowCounts(most=256).apply(torch.arange(0.0, 2000)[:, None], lambda some: 2 * some).sum() == 2000 * 1999


@DTYPES
@pytest.mark.parametrize(("wide", "out"), [(896, 896), (2816, 1024), (2048, 97), (100, 72), (8, 64), (24, 8)])
def test_a_packed_layer_gives_a_row_the_same_bits(wide: int, out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half = torch.randn(513, wide // 2, dtype=dtype)
    x = torch.cat((half, -half), 1)  # the sums are nothing but rounding
    half = torch.randn(out, wide // 2, dtype=dtype)
    layer = PackedLinear(torch.cat((half, half), 1), torch.randn(out).to(dtype))
    whole = layer(x)
    for rows in ROWS:
        assert torch.equal(layer(x[-rows:]), whole[-rows:]), rows


@DTYPES
def test_products_outside_layers_give_a_row_the_same_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(513, 512, dtype=dtype)
    weight, bias, experts = torch.randn(96, 512).to(dtype), torch.randn(96).to(dtype), torch.randn(3, 512, 96).to(dtype)
    products: list[Callable[[Tensor], Tensor]] = [
        lambda rows: F.linear(rows, weight, bias),
        lambda rows: rows @ weight.T,
        lambda rows: torch.addmm(bias, rows, experts[0]),
        lambda rows: torch.bmm(rows.expand(3, -1, -1), experts)[1],
        lambda rows: torch.mm(rows, experts[2]),
    ]
    for product in products:
        with even_products(wanted=True):
            whole = product(x)
            for rows in ROWS:
                assert torch.equal(product(x[-rows:]), whole[-rows:]), rows
        torch.testing.assert_close(whole, product(x), atol=0.5, rtol=0.02)


@DTYPES
def test_a_token_has_the_same_bits_however_many_go_to_its_expert(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = tiny_model("mixtral", dtype, hidden_size=512, intermediate_size=512)
    experts = model.model.layers[0].mlp.experts
    x, chosen = torch.randn(200, 512).to(dtype), torch.randint(0, 4, (200, 2))
    weights = torch.rand(200, 2).to(dtype)
    with torch.inference_mode(), even_products(wanted=True):
        whole = experts(x, chosen, weights)
        for rows in (1, 2, 5, 40, 133):
            assert torch.equal(experts(x[:rows], chosen[:rows], weights[:rows]), whole[:rows])
    with torch.inference_mode():
        torch.testing.assert_close(whole, experts(x, chosen, weights), atol=0.05, rtol=0.05)


@DTYPES
@pytest.mark.parametrize("name", ["SiLU", "GELU", "Sigmoid", "Tanh", "Mish"])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_activation_gives_a_number_the_same_bits(name: str, threads: int, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        activation = getattr(nn, name)()
        assert is_activation(activation) or name == "GELU"
        numbers = torch.randn(97).to(dtype) * 3
        even = EvenActivation(activation)
        expected = even(numbers)
        for times in (2, 5, 64, 700, 2999):
            many = numbers.repeat(times).view(times, 97)
            assert torch.equal(even(many), expected.expand(times, 97)), times
            assert torch.equal(even(many.t().contiguous().t()), expected.expand(times, 97)), times
        torch.testing.assert_close(expected, activation(numbers))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_arrays_are_filled_up_by_little(threads: int) -> None:
    for count in (*range(1, 300), 2**14, 2**14 + 1, 50_000, 10**6 + 3, 10**8 + 7):
        for is_gelu in (False, True):
            even = even_count(count, threads, is_gelu=is_gelu)
            assert count <= even < count + 2 * VECTOR * threads
            assert even % VECTOR == 0


def test_packed_models_have_no_loose_products_but_mixtures() -> None:
    dense, mixture, conv = (tiny_model(family) for family in ("qwen2", "mixtral", "gpt2"))
    assert all(map(has_loose_products, (dense, mixture, conv)))
    for model in (dense, mixture, conv):
        optimize_for_cpu(model)
    assert [has_loose_products(model) for model in (dense, mixture, conv)] == [False, True, False]
    assert isinstance(dense.model.layers[0].mlp.act_fn, EvenActivation)
