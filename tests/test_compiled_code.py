"""Reading of compiled code: against counts made by hand, and of code that is compiled here."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments.compiled_code import CompiledCode

TRIPS = 'backend_config={"known_trip_count":{"n":"8"}}'
DEFAULT = 'backend_config={"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}'
HIGHEST = "operand_precision={highest,highest}"
# An outer loop that ends by numbers, but after 5 turns at most; an inner one of 8; a choice; exchanges; products.
TEXT = f"""HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

%fused (p: f32[16,8], q: f32[8,4]) -> f32[16,4] {{
  %p = f32[16,8]{{1,0:T(8,128)S(1)}} parameter(0)
  %q = f32[8,4]{{1,0}} parameter(1)
  ROOT %dot.1 = f32[16,4]{{1,0}} dot(%p, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%inner (t: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {{
  %t = (s32[], f32[16,4]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[16,4]{{1,0}} get-tuple-element(%t), index=1
  %y = f32[16,4]{{1,0}} fusion(%x), kind=kLoop, calls=%fused
  %z = f32[16,4]{{1,0}} custom-call(%y), custom_call_target="tpu_custom_call"
  ROOT %out = (s32[], f32[16,4]{{1,0}}) tuple(%i, %z)
}}

%inner_condition (t: (s32[], f32[16,4])) -> pred[] {{
  %t = (s32[], f32[16,4]{{1,0}}) parameter(0)
  ROOT %l = pred[] fusion(%t), kind=kLoop, calls=%add
}}

%outer (t: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {{
  %t = (s32[], f32[16,4]{{1,0}}) parameter(0)
  %loop.2 = (s32[], f32[16,4]{{1,0}}) while(%t), condition=%inner_condition, body=%inner, {TRIPS}
  %g = f32[16,4]{{1,0}} get-tuple-element(%loop.2), index=1
  %start = (f32[4,4]{{1,0}}, f32[16,4]{{1,0}}) all-gather-start(%g), dimensions={{0}}
  %done = f32[16,4]{{1,0}} all-gather-done(%start)
  ROOT %r = (s32[], f32[16,4]{{1,0}}) tuple(%g, %done)
}}

%outer_condition (t: (s32[], f32[16,4])) -> pred[] {{
  %t = (s32[], f32[16,4]{{1,0}}) parameter(0)
  %most = s32[] constant(5)
  ROOT %less = pred[] fusion(%t, %most), kind=kLoop, calls=%add
}}

%branch_a (x: f32[16,4]) -> f32[16,4] {{
  ROOT %x = f32[16,4]{{1,0}} parameter(0)
}}

%branch_b (x: f32[16,4]) -> f32[16,4] {{
  %x = f32[16,4]{{1,0}} parameter(0)
  %c = f32[16,4]{{1,0}} copy(%x)
  ROOT %d = f32[16,4]{{1,0}} copy(%c)
}}

ENTRY %main (m: f32[16,8], n: f32[8,4]) -> f32[16,4] {{
  %m = f32[16,8]{{1,0}} parameter(0)
  %n = f32[8,4]{{1,0}} parameter(1)
  %true = f32[16,4]{{1,0}} dot(%m, %n), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, {HIGHEST}
  %tf = f32[16,4]{{1,0}} custom-call(%m, %n), custom_call_target="__cublas$gemm", {DEFAULT}
  %init = (s32[], f32[16,4]{{1,0}}) tuple(%true, %tf)
  %loop.1 = (s32[], /*index=1*/f32[16,4]{{1,0}}) while(%init), condition=%outer_condition, body=%outer
  %which = s32[] constant(1)
  %chosen = f32[16,4]{{1,0}} conditional(%which, %true, %tf), branch_computations={{%branch_a, %branch_b}}
  ROOT %all = f32[16,4]{{1,0}} all-reduce(%chosen), to_apply=%add
}}
"""


def test_kernels_exchanges_and_products_are_counted():
    code = CompiledCode(TEXT)
    # 2 products, a copy twice in the larger branch, the sum; in each of 5 turns the condition, the gathering and 8 × 2.
    assert code.launches == (2 + 2 + 1 + 5 * (1 + 1 + 8 * 2), True)
    assert code.innermost == (2, 40)
    assert code.custom_calls() == {"tpu_custom_call": 1, "__cublas$gemm": 1}
    assert code.rough_products() == ["f32[16,4]", "f32[16,4]"]  # one fused, one of cuBLAS
    found = {v.instruction.collective: (v.times, v.bound, v.instruction.nbytes) for v in code.collectives()}
    assert found == {"all-gather": (5, True, 256), "all-reduce": (1, False, 256)}


def test_a_loop_without_a_known_end_counts_as_often_as_is_said():
    text = TEXT.replace("%most = s32[] constant(5)", "%most = s32[] get-tuple-element(%t), index=0")
    assert CompiledCode(text).launches == (5 + 18, True)
    assert CompiledCode(text, 3).launches == (5 + 3 * 18, True)


def test_a_choice_of_two_is_one_too():
    names = "true_computation=%branch_b, false_computation=%branch_a"
    text = TEXT.replace("branch_computations={%branch_a, %branch_b}", names)
    assert text != TEXT and CompiledCode(text).launches == CompiledCode(TEXT).launches


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no text of an HLO module"):
        CompiledCode("module @jit_f {\n}\n")


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_code_compiled_here(precision):
    def f(x):
        def turn(i, x):
            return jnp.sin(lax.dot(x, x, precision=precision)) + i

        return lax.fori_loop(0, 7, turn, x)

    code = CompiledCode(jax.jit(f).lower(jnp.zeros((8, 8))).compile().as_text())
    assert code.innermost[1] == 7 and not code.collectives()
    assert code.launches[0] >= 14  # the product and what is fused
    assert bool(code.rough_products()) == (precision == "default")
