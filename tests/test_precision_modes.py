"""In every precision and graph mode the weights learn what they learn in float64, and the student does not notice."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHECKPOINTING, tiny_bert
from peft import LoraConfig, get_peft_model
from test_trainer import METHODS, new_trainer
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import TrainerCallback

from amal_hf import AMALTrainer, CrossEntropy, ExampleTable, amal
from amal_hf.precision import has_fast_bf16, quick_backward


def checkpointing(reentrant):
    return {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
EAGER = {"attn_implementation": "eager"}
FULL, HALF = (0.99999, 1e-3), (0.95, 0.1)
"""Least cosine of the slopes and largest difference of the weights: rounding in fp32, and with 8 or 11 bits. A student
as small as this one, in its first steps, is the hard case; `benchmarks/precision.py` has a pretrained one.
"""
ALL, ADAPTERS, ONE_LAYER = "all parameters", "adapters", "one layer"
MODES = {
    "fused attention": (ALL, {"attn_implementation": "sdpa"}, {}, FULL),
    "reentrant checkpointing": (ALL, {}, checkpointing(True), FULL),
    "compiled, checkpointing": (ONE_LAYER, {}, {**COMPILED, **checkpointing(False)}, FULL),
    "bf16 autocast": (ALL, {}, {"bf16": True}, HALF),
    "bf16 autocast, compiled, adapters": (ADAPTERS, {}, {"bf16": True, **COMPILED}, HALF),
    "bf16 parameters": (ALL, {"dtype": torch.bfloat16}, {}, HALF),
    "fp16 autocast, scaler": (ALL, {}, {"fp16": True}, HALF),
    "fp16 autocast, scaler, adapters, reentrant checkpointing": (
        ADAPTERS,
        {},
        {"fp16": True, **checkpointing(True)},
        HALF,
    ),
}
SLOW = {"bf16 autocast, compiled, adapters"}
LAYERS = {ONE_LAYER: 1, ALL: 2, ADAPTERS: 2}


def student(kind, dtype=torch.float32, **config):
    sizes = {"num_hidden_layers": LAYERS[kind], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny_bert(**sizes, **config)
    if kind == ADAPTERS:
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
        model = get_peft_model(model, lora)
    return model.to(dtype)


def half_on_cpu(trainer, monkeypatch):
    """fp16 autocast and a scaler, which accelerate offers on accelerators only."""
    trainer.args.fp16 = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.accelerator.native_amp = True
    monkeypatch.setattr(type(trainer.accelerator.state), "mixed_precision", "fp16")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains a student with a table of weights: the slopes of all meta steps, and the weights in the end."""

    def measured(model, fp16=False, **options):
        # Along the task loss: so small a student, none of whose answers stands out, turns about with any other.
        method = replace(amal(ExampleTable()), objective=CrossEntropy())
        trainer = new_trainer(tmp_path, lambda: method, model=model, meta_interval=1, max_steps=3, **options)
        if fp16:
            half_on_cpu(trainer, monkeypatch)
        slopes, inner, update = [], AMALTrainer._meta_step, trainer.method.policy.update

        def bits():
            own = list(trainer.model.parameters())
            return [p.detach().clone() for p in own], [p.grad for p in own], [p.requires_grad for p in own]

        def unnoticed(self, *args):
            before, prepared, after = bits(), inner(self, *args), bits()
            assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
            assert all(a is b is None for a, b in zip(before[1], after[1], strict=True))
            assert before[2] == after[2]
            return prepared

        def kept(observation, given):
            slopes.append(given.double())
            update(observation, given)

        with monkeypatch.context() as patch:
            patch.setattr(AMALTrainer, "_meta_step", unnoticed)
            patch.setattr(trainer.method.policy, "update", kept)
            trainer.train()
        return torch.stack(slopes), np.array(trainer.example_weights()["labels"][:])

    return measured


EXACT = {}


def marked(mode):
    return pytest.param(mode, marks=pytest.mark.slow) if mode in SLOW else mode


@pytest.mark.parametrize("mode", [marked(mode) for mode in MODES])
def test_slopes_and_weights_are_those_of_float64(run, mode):
    """Each mode has its tolerance, all of parameters and gradients are left bit for bit, and slopes are not zero.

    Compiled, there are three graphs, however many steps: for training, for the meta gradient and for slopes. Up to
    torch 2.11 each is in two parts where activations are checkpointed.
    """
    kind, config, options, (cosine, difference) = MODES[mode]
    if kind not in EXACT:
        EXACT[kind] = run(student(kind, torch.float64, **EAGER))
    exact_slopes, exact = EXACT[kind]
    torch.compiler.reset()
    counters.clear()
    slopes, weights = run(student(kind, **config), **options)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == (3 if "torch_compile" in options else 0) or (graphs == 6 and "compiled, checkpointing" in mode)
    assert exact_slopes.abs().mean(dim=(1, 2)).min() > 0.5
    assert torch.cosine_similarity(slopes.flatten(1), exact_slopes.flatten(1)).min() > cosine
    assert np.abs(weights - exact).max() < difference


@pytest.mark.parametrize("bf16", [True, False])
def test_only_a_cpu_in_bf16_goes_back_through_plain_attention(run, bf16):
    """Its fused kernel has a slow backward pass: the meta gradient does without, steps and slopes keep it."""
    model = student(ALL)
    fused = {True: set(), False: set()}

    def look(*_):
        goes_back = torch.is_grad_enabled() and not model.training
        fused[goes_back].add(torch.backends.cuda.flash_sdp_enabled())

    model.register_forward_pre_hook(look)
    run(model, bf16=bf16)
    assert fused == {True: {not bf16}, False: {True}}


def test_fused_attention_stays_on(run):
    """With the flash kernel alone allowed, meta gradient and slopes run, and are those of plain attention."""
    if ALL not in EXACT:
        EXACT[ALL] = run(student(ALL, torch.float64, **EAGER))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        slopes, _ = run(student(ALL, attn_implementation="sdpa"))
    assert torch.cosine_similarity(slopes.flatten(1), EXACT[ALL][0].flatten(1)).min() > FULL[0]


LEARNED = ["network", "table", "learning to reweight", "token mask"]


class Overflow(TrainerCallback):
    """Puts an infinite gradient into some steps, and notes which steps changed what was learned."""

    def __init__(self, steps):
        self.steps = steps
        self.changed = []

    def state(self):
        policies = (self.trainer.method.policy, self.trainer.method.batch_policy)
        learned = [copy.deepcopy(policy.state_dict()) for policy in policies if policy is not None]
        return [learned, self.trainer._learner.steps_taken]

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = self.state()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            next(model.parameters()).grad[0, 0] = float("inf")

    def on_step_end(self, args, state, control, **kwargs):
        now = self.state()
        self.changed.append(str(now) != str(self.before))
        self.before = now


@pytest.mark.parametrize("name", LEARNED)
def test_a_step_that_the_scaler_skips_teaches_nothing(tmp_path, name):
    """Policy, its optimizer and the place in the meta set are as before wherever the student was left alone, the first
    step included, and nowhere else.
    """
    watch = Overflow(steps=(0, 3))
    watch.trainer = trainer = new_trainer(
        tmp_path, METHODS[name], callbacks=[watch], meta_interval=1, max_steps=5, max_grad_norm=0.0
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.train()
    assert watch.changed == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("dtype", "checkpointed", "plain"),
    [(torch.bfloat16, False, True), (torch.bfloat16, True, False), (torch.float32, False, False)],
)
@pytest.mark.parametrize("kind", [ALL, ADAPTERS])
def test_attention_is_plain_where_the_fused_one_goes_back_slowly(kind, dtype, checkpointed, plain):
    """On a CPU in bfloat16, unless layers run again in the backward pass; of a student with adapters too. Nothing is
    asked that the libraries warn of.
    """
    model = student(kind)
    if checkpointed:
        getattr(model, f"{CHECKPOINTING}_enable")()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quick_backward(model, dtype):
            assert torch.backends.cuda.flash_sdp_enabled() != plain
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_torch_that_tells_no_instructions_has_no_fast_bf16(monkeypatch):
    """The lower end of the range does not; recipes, which ask for a default, run there too."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_fast_bf16()
