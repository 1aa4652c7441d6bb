"""Growth within the Trainer of transformers: real runs that grow, go on, and are resumed before and after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import archir
from archir.errors import FileError, GrowError

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

import transformers

from archir.integrations.model_losses import loss_of_model
from archir.integrations.transformers import GrowCallback, load_grown, recorded

pytestmark = pytest.mark.slow

OPTIONS = archir.GrowOptions(learn_steps=4, score_examples=32, batch_size=16, refine=8, rule="net2net")
STEPS = 12


class Tokens(Dataset[dict[str, Tensor]]):
    """Examples that are told apart by whether one token comes before another; or to be continued."""

    def __init__(self, causal: bool = False) -> None:
        self.ids = torch.randint(0, 20, (96, 8), generator=torch.Generator().manual_seed(0))
        self.labels = self.ids if causal else (self.ids[:, 0] > self.ids[:, 1]).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = {"input_ids": self.ids[index], "labels": self.labels[index]}
        return example if self.labels is self.ids else example | {"attention_mask": torch.ones(8, dtype=torch.long)}


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=16,
    )
    return transformers.BertForSequenceClassification(config)


def gpt() -> Any:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, n_inner=6)
    )


class Watch(transformers.TrainerCallback):
    """Notes the loss and the number of parameters after every step, and checks what the optimiser has gathered."""

    def __init__(self) -> None:
        self.seen = dict[int, tuple[float, int, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"].optimizer
        own = set(model.parameters())
        assert {p for group in optimizer.param_groups for p in group["params"]} == own == optimizer.state.keys()
        assert all(found["exp_avg_sq"].shape == p.shape for p, found in optimizer.state.items())
        assert {int(found["step"]) for found in optimizer.state.values()} == {state.global_step}
        assert model.training
        data = Tokens(causal=hasattr(model, "lm_head"))
        model.eval()
        with torch.no_grad():
            loss = float(model(input_ids=data.ids, labels=data.labels).loss)
        model.train()
        rate = kwargs["lr_scheduler"].get_last_lr()[0]
        self.seen[state.global_step] = (loss, sum(p.numel() for p in own), rate)


def train(folder: Path, model: Any, *callbacks: Any, resume: Any = None, **settings: Any) -> Any:
    given = {"max_steps": STEPS, "save_steps": 2, "learning_rate": 1e-2, "seed": 3, **settings}
    arguments = transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=16,
        logging_strategy="no",
        **given,
    )
    data = Tokens(causal=hasattr(model, "lm_head"))
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def grower(**changes: Any) -> GrowCallback:
    return GrowCallback(**{"budget": lambda step: 1000 + 50 * step, "at": [4, 8], "options": OPTIONS, **changes})


def same(one: nn.Module, other: nn.Module) -> None:
    wanted, found = one.state_dict(), other.state_dict()
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_classifier_grows_and_is_resumed_from_before_and_after(tmp_path: Path) -> None:
    before, watch = Watch(), Watch()
    trainer = train(tmp_path, bert(), before, grower(), watch)
    model, stages = trainer.model, recorded(trainer.model.config)
    assert [stage.step for stage in stages] == [0, 4, 8]
    for step, (loss, size, rate) in before.seen.items():
        assert watch.seen[step][2] == rate == pytest.approx(1e-2 * (1 - step / STEPS), rel=1e-9)
        if step in (4, 8):
            assert watch.seen[step][1] > size and watch.seen[step][0] == pytest.approx(loss, abs=0.02)
        else:
            assert watch.seen[step][:2] == (loss, size)
    assert type(model) is transformers.BertForSequenceClassification
    (grown,) = (entry for entry in trainer.state.log_history if entry["step"] == 8)
    assert grown["growth_parameters"] == model.num_parameters() and grown["growth_specs"] == "; ".join(stages[-1].specs)
    entries = [entry for entry in trainer.state.log_history if "growth_parameters" in entry]
    logged = [(entry.get("growth_expected"), entry["growth_realised"]) for entry in entries]
    assert logged == [(stage.expected, stage.realised) for stage in stages[1:]]
    for step in (2, 6, 10):
        resumed = train(tmp_path, bert(), grower(), resume=str(tmp_path / f"checkpoint-{step}"), save_strategy="no")
        assert recorded(resumed.model.config) == stages
        same(model, resumed.model)
    trainer.save_model(str(tmp_path / "final"))
    same(model, load_grown(bert(), tmp_path / "final"))


def test_a_language_model_grows_and_its_best_weights_of_a_stage_before_are_loaded(tmp_path: Path) -> None:
    model = gpt()
    held_out = torch.utils.data.DataLoader(Tokens(causal=True), 16)
    best = {"metric_for_best_model": "loss", "greater_is_better": True}  # before most of training
    trainer = train(
        tmp_path,
        model,
        grower(at=[], every=3, budget=archir.Budget(parameters=2000), batches=held_out),
        **{
            "max_steps": 4,
            "use_cache": True,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": True,
            **best,
        },
    )
    (grown,) = (entry for entry in trainer.state.log_history if "growth_parameters" in entry)
    assert grown["step"] == 3 and model.config.use_cache is True and "forward" not in vars(model)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert model.num_parameters() == gpt().num_parameters() < grown["growth_parameters"]
    assert model.lm_head.weight is model.transformer.wte.weight
    last = load_grown(gpt(), tmp_path / "checkpoint-4")
    assert last.num_parameters() == grown["growth_parameters"] and last.lm_head.weight is last.transformer.wte.weight
    with pytest.raises(GrowError, match="tells of no growth"):
        load_grown(gpt(), tmp_path / "checkpoint-2")
    with pytest.raises(FileError, match="no configuration to be read"):
        load_grown(gpt(), tmp_path)
    narrow = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16, n_inner=6)
    )
    with pytest.raises(
        GrowError, match=r"the weights are not those of the model\n.*\n  why:   transformer.h.1.*and 7 more"
    ):
        load_grown(narrow, tmp_path / "checkpoint-4")
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(FileError, match="the weights cannot be read"):
        load_grown(gpt(), tmp_path / "broken")
    # The trainer finds nothing of this checkpoint where it looks, so it is loaded first; its optimiser is made after.
    same(train(tmp_path / "other", last, grower(), resume=str(tmp_path / "checkpoint-4"), max_steps=4).model, last)


def test_losses_of_models_are_theirs() -> None:
    data, logits = Tokens(), torch.randn(96, 8, 20, generator=torch.Generator().manual_seed(1))
    outputs = {"logits": logits}
    wanted = gpt().loss_function(logits=logits, labels=data.ids, vocab_size=20)
    torch.testing.assert_close(loss_of_model(gpt(), causal=True)(outputs, data.ids), wanted)
    model = bert()
    for problem, labels in (
        ("single_label_classification", data.labels),
        ("multi_label_classification", nn.functional.one_hot(data.labels, 2).float()),
        ("regression", nn.functional.one_hot(data.labels, 2).float()),
    ):
        model.config.problem_type = problem
        wanted = model.loss_function(labels=labels, pooled_logits=logits[:, 0, :2], config=model.config)
        found = loss_of_model(model, causal=False)({"logits": logits[:, 0, :2]}, labels)
        torch.testing.assert_close(found, wanted)
    tagger = transformers.BertForTokenClassification(model.config)
    tagger.config.num_labels = 20
    wanted = tagger.loss_function(logits=logits, labels=data.ids, config=tagger.config)
    torch.testing.assert_close(loss_of_model(tagger, causal=False)(outputs, data.ids), wanted)
    with pytest.raises(GrowError, match="which loss a BertModel is trained on"):
        loss_of_model(model.bert, causal=False)


def test_what_cannot_be_grown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrowError, match="a Linear is no PreTrainedModel"):
        train(tmp_path, nn.Linear(2, 2), grower())
    with pytest.raises(GrowError, match=r"no module 'body'"):
        train(tmp_path, bert(), grower(module="body"))
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    object.__setattr__(arguments, "_n_gpu", 2)
    with pytest.raises(GrowError, match=r"one device in one process\n  why:   it uses 2 devices"):
        grower().on_train_begin(arguments, None, None, model=bert(), optimizer=None)


def test_an_optimiser_of_other_parameters_is_refused(tmp_path: Path) -> None:
    model = bert()
    optimizer = torch.optim.SGD(bert().parameters(), 0.1)
    with pytest.raises(GrowError, match=r"parameters that are not the model's\n.*\n  hint:  make it of the model"):
        grower().on_train_begin(
            transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]),
            transformers.TrainerState(),
            None,
            model=model,
            optimizer=optimizer,
        )
