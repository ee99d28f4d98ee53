"""Random problems against the float64 reference."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truth import DTYPES, LAYOUTS, assert_close_to_truth, random_problem

sizes = st.tuples(st.integers(0, 4), st.integers(1, 80), st.integers(1, 24), st.integers(1, 40))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=sizes,
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    hidden=st.integers(1, 20),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9, 11]),
    biases=st.booleans(),
    residual=st.booleans(),
    relu=st.booleans(),
    float32_parameters=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_error_is_within_twice_that_of_eager(shape, dtype, layout, float32_parameters, **options):
    half = dtype in (torch.float16, torch.bfloat16)
    params = torch.float32 if half and float32_parameters else None
    assert_close_to_truth(random_problem(shape, dtype, layout, params=params, **options))
