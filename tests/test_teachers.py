"""Teachers end to end: frozen, in the student's label order, reading what they understand, live or cached."""

import contextlib
import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from amal_hf import teachers
from amal_hf.label_order import label_order
from amal_hf.teacher_cache import CachedTeacher
from amal_hf.teacher_inputs import TeacherInputs
from amal_hf.teachers import LiveTeacher, open_teacher


WORDS = ["[PAD]", "[UNK]", "a", "b", "c", "d"]
TEXTS = ["a b c d", "d", "c a", "b b b", "d c"]


def config(*labels: str, words: int = len(WORDS), **more: Any) -> BertConfig:
    """A tiny BERT with these labels."""
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: place for place, name in enumerate(labels)},
    }
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    return BertConfig(vocab_size=words, initializer_range=1.0, max_position_embeddings=16, **sizes, **names, **more)


def model(seed: int, *labels: str, kind: Any = BertForSequenceClassification, **more: Any) -> Any:
    """A tiny random model in training mode, as a fresh student is."""
    torch.manual_seed(seed)
    return kind(config(*(labels or ("no", "yes", "perhaps")), **more))


def tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    table = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    table.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=table, pad_token="[PAD]", unk_token="[UNK]")


def dataset() -> Dataset:
    """Tokenised rows of different lengths that kept their text."""
    read = tokenizer()(TEXTS)
    columns = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
    return Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 0, 1], **columns})


COLUMNS = ("input_ids", "attention_mask")


def inputs(**more: Any) -> TeacherInputs:
    """What the trainer would say."""
    options = {"dataset": dataset(), "columns": COLUMNS, "tokenizer": tokenizer(), "batch_size": 2} | more
    return TeacherInputs(collator=DataCollatorWithPadding(tokenizer()), **options)


def batch_of(ids: list[int]) -> dict[str, Any]:
    """A training batch as the student gets it."""
    rows = dataset().select_columns([*COLUMNS, "label"])
    return {**DataCollatorWithPadding(tokenizer())([rows[number] for number in ids]), "example_id": torch.tensor(ids)}


def logits(of: PreTrainedModel, batch: Mapping[str, Any]) -> torch.Tensor:
    """The plain forward pass without dropout."""
    with torch.no_grad():
        return copy.deepcopy(of).eval()(**{name: batch[name] for name in COLUMNS}).logits


def saved(teacher: PreTrainedModel, folder: Path, words: PreTrainedTokenizerFast | None = None) -> Path:
    """A teacher's folder."""
    teacher.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    return folder


class TestLabelOrder:
    @pytest.mark.parametrize(
        ("theirs", "ours", "order"),
        [
            (("no", "yes"), ("no", "yes"), None),
            (("no", "yes", "perhaps"), ("perhaps", "no", "yes"), [2, 0, 1]),
            (("LABEL_0", "LABEL_1"), ("no", "yes"), None),
            (("no", "yes"), ("LABEL_0", "LABEL_1"), None),
            (("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1"), None),
        ],
    )
    def test_order(self, theirs: tuple[str, ...], ours: tuple[str, ...], order: list[int] | None) -> None:
        """Named labels are matched by name; generic names say nothing, so their order is taken as it is."""
        assert label_order(config(*theirs), config(*ours)) == order

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [(("no", "yes"), ("no", "perhaps")), (("no", "yes"), ("no", "yes", "x")), (("LABEL_0",), ("no", "yes"))],
    )
    def test_different_labels_are_refused(self, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
        """Other names or another number of classes cannot be matched, and the message shows both."""
        with pytest.raises(ValueError, match="teacher's labels") as refused:
            label_order(config(*theirs), config(*ours))
        assert str(list(theirs)) in str(refused.value)
        assert str(list(ours)) in str(refused.value)

    def test_reordering_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """A silent permutation of classes would surprise whoever compares logits by hand."""
        with caplog.at_level(logging.INFO, logger="amal_hf"):
            label_order(config("yes", "no"), config("no", "yes"))
        assert "['yes', 'no'] are put into the student's order ['no', 'yes']" in caplog.text


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("by_path", [False, True])
def test_logits_in_the_students_order(tmp_path: Path, cached: bool, by_path: bool) -> None:
    """However a teacher is given, its logits are those of the plain model, dropout off, classes in our order."""
    teacher, student = model(1, "yes", "perhaps", "no"), model(0)
    source = saved(teacher, tmp_path / "teacher", tokenizer()) if by_path else teacher
    opened = open_teacher(source, student=student, inputs=inputs(), cache_dir=tmp_path / "cache" if cached else None)
    assert isinstance(opened, CachedTeacher if cached else LiveTeacher)
    batch = batch_of([3, 0, 4])
    found = opened(batch)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, logits(teacher, batch)[:, [2, 0, 1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_tokens(tmp_path: Path, cached: bool) -> None:
    """Token logits stand at the student's tokens; what padding gets does not matter."""
    teacher, student = (model(seed, kind=BertForTokenClassification) for seed in (1, 0))
    source = saved(teacher, tmp_path / "teacher", tokenizer())
    opened = open_teacher(source, student=student, inputs=inputs(), cache_dir=tmp_path / "cache" if cached else None)
    batch = batch_of([1, 0])
    real = batch["attention_mask"].bool()
    assert opened(batch).shape == (2, 4, 3)
    torch.testing.assert_close(opened(batch)[real], logits(teacher, batch)[real], rtol=1e-5, atol=1e-5)


def test_only_what_the_teacher_accepts() -> None:
    """Labels, ids and inputs of another architecture are kept from the teacher, or it would crash."""
    sizes: dict[str, Any] = {"id2label": dict(enumerate("abc")), "label2id": {"a": 0, "b": 1, "c": 2}}
    sizes |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "max_position_embeddings": 16}
    distil = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=len(WORDS), **sizes))
    batch = batch_of([0, 1])
    extra = {"token_type_ids": torch.zeros_like(batch["input_ids"]), "weak_labels": torch.zeros(2, 3)}
    opened = open_teacher(distil, student=model(0, *"abc"), inputs=inputs())
    torch.testing.assert_close(opened({**batch, **extra}), logits(distil, batch))


def test_the_teacher_is_frozen() -> None:
    """A teacher must neither learn nor drop out."""
    teacher = model(1)
    open_teacher(teacher, student=model(0), inputs=inputs())
    assert not teacher.training
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_autocast_is_entered_for_every_batch() -> None:
    """Mixed precision comes from the caller's context, and the logits are float32 again."""
    entered = []

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        entered.append(torch.is_grad_enabled())
        with torch.autocast("cpu", torch.bfloat16):
            yield

    teacher, batch = model(1), batch_of([0, 1])
    opened = open_teacher(teacher, student=model(0), inputs=inputs(), autocast=autocast)
    first, _ = opened(batch), opened(batch)
    assert entered == [False, False]
    assert first.dtype == torch.float32
    exact = logits(teacher, batch)
    assert not torch.equal(first, exact)
    torch.testing.assert_close(first, exact, rtol=0.1, atol=0.1)


def test_a_student_may_teach_itself() -> None:
    """The teacher is the student as it was when opened: it stays put while the student goes on learning."""
    student, batch = model(0), batch_of([2, 3])
    before = logits(student, batch)
    opened = open_teacher(student, student=student, inputs=inputs())
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    torch.testing.assert_close(opened(batch), before)
    assert student.training
    assert all(weight.requires_grad for weight in student.parameters())


def test_a_prepared_student_may_teach_itself() -> None:
    """A `forward` put on the object (as mixed precision does) is bound to the student and must not be copied."""
    student, batch = model(0), batch_of([2, 3])
    before, plain = logits(student, batch), student.forward
    student.forward = lambda *args, **more: plain(*args, **more)
    opened = open_teacher(student, student=student, inputs=inputs())
    with torch.no_grad():
        student.classifier.bias.add_(1.0)
    torch.testing.assert_close(opened(batch), before)


class TestOwnTokenizer:
    OTHER = [*WORDS[:2], "d", "c", "x", "b", "a"]

    def expected(self, teacher: PreTrainedModel, ids: list[int]) -> torch.Tensor:
        """The teacher on the texts in its own tokens."""
        read = tokenizer(self.OTHER)([TEXTS[number] for number in ids], padding=True, return_tensors="pt")
        return logits(teacher, read)

    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("by_path", [False, True])
    def test_reads_the_text(self, tmp_path: Path, cached: bool, by_path: bool) -> None:
        """With another vocabulary the teacher reads the raw text of the rows, whatever the student's ids are."""
        teacher, own = model(1, words=7), tokenizer(self.OTHER)
        source = saved(teacher, tmp_path / "teacher", own) if by_path else teacher
        opened = open_teacher(
            source,
            student=model(0),
            inputs=inputs(text_columns=["text"]),
            tokenizer=None if by_path else own,
            cache_dir=tmp_path / "cache" if cached else None,
        )
        found = opened(batch_of([4, 0, 2]))
        torch.testing.assert_close(found, self.expected(teacher, [4, 0, 2]), rtol=1e-5, atol=1e-5)

    def test_unknown_text_is_refused(self) -> None:
        """Without text columns such a teacher would read the wrong words."""
        with pytest.raises(ValueError, match=r"text columns \[\]"):
            open_teacher(model(1, words=7), student=model(0), inputs=inputs(), tokenizer=tokenizer(self.OTHER))

    def test_sizes_of_models_in_memory(self) -> None:
        """A model without tokenizer and with another vocabulary size cannot share the student's ids."""
        with pytest.raises(ValueError, match="7 tokens and the student 6"):
            open_teacher(model(1, words=7), student=model(0), inputs=inputs())

    def test_tokens_are_refused(self, tmp_path: Path) -> None:
        """Two tokenizers put tokens at different positions."""
        teacher, student = (
            model(1, kind=BertForTokenClassification, words=7),
            model(0, kind=BertForTokenClassification),
        )
        source = saved(teacher, tmp_path, tokenizer(self.OTHER))
        with pytest.raises(ValueError, match="different positions"):
            open_teacher(source, student=student, inputs=inputs(text_columns=["text"]))

    def test_evaluation_batches_are_refused(self) -> None:
        """Only training rows can be looked up."""
        teacher = model(1, words=7)
        opened = open_teacher(
            teacher, student=model(0), inputs=inputs(text_columns=["text"]), tokenizer=tokenizer(self.OTHER)
        )
        batch = batch_of([0])
        del batch["example_id"]
        with pytest.raises(ValueError, match="training batches only"):
            opened(batch)


class TestCache:
    def test_a_hit_does_not_load_the_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A cached teacher of any size costs no memory and no loading time."""
        source, student = saved(model(1), tmp_path / "teacher", tokenizer()), model(0)
        first = open_teacher(source, student=student, inputs=inputs(), cache_dir=tmp_path / "cache")

        def refuse(*args: Any, **more: Any) -> None:
            raise RuntimeError("the model was loaded")

        monkeypatch.setattr(BertForSequenceClassification, "from_pretrained", refuse)
        again = open_teacher(source, student=student, inputs=inputs(), cache_dir=tmp_path / "cache")
        assert torch.equal(again(batch_of([1, 2])), first(batch_of([1, 2])))
        with pytest.raises(RuntimeError, match="was loaded"):
            open_teacher(source, student=student, inputs=inputs(), cache_dir=tmp_path / "other")

    @pytest.mark.parametrize("by_path", [False, True])
    def test_one_changed_weight_is_another_cache(self, tmp_path: Path, by_path: bool) -> None:
        """A teacher trained on must not be served its old logits."""
        teacher, student = model(1), model(0)
        for _ in range(2):
            source = saved(teacher, tmp_path / "teacher", tokenizer()) if by_path else teacher
            opened = open_teacher(source, student=student, inputs=inputs(), cache_dir=tmp_path / "cache")
            found, expected = opened(batch_of([0])), logits(teacher, batch_of([0]))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            with torch.no_grad():
                teacher.classifier.bias[0] += 1
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_precision_is_another_cache(self, tmp_path: Path) -> None:
        """Logits computed in bfloat16 are not those of float32."""
        teacher, student = model(1), model(0)
        for autocast in (contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)):
            open_teacher(teacher, student=student, inputs=inputs(), cache_dir=tmp_path, autocast=autocast)
        assert len(list(tmp_path.iterdir())) == 2

    def test_labels_and_text_do_not_count(self, tmp_path: Path) -> None:
        """Relabelled data has the same teacher logits."""
        teacher, student = model(1), model(0)
        relabelled = dataset().remove_columns("label").map(lambda row: {"text": row["text"] + "!"})
        for rows in (dataset(), relabelled):
            open_teacher(teacher, student=student, inputs=inputs(dataset=rows), cache_dir=tmp_path)
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_moved_teacher_has_the_same_cache(self, tmp_path: Path) -> None:
        """What it answers does not depend on the folder that it, and the tokenizer of its own, are read from."""
        teacher, own = model(1, words=7), tokenizer(TestOwnTokenizer.OTHER)
        for place in ("here", "there"):
            source = saved(teacher, tmp_path / place, own)
            rows = inputs(text_columns=["text"])
            open_teacher(source, student=model(0), inputs=rows, cache_dir=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_one_cache_serves_every_label_order(self, tmp_path: Path) -> None:
        """Logits are kept in the teacher's order, so another student needs no other cache."""
        teacher, batch = model(1, "no", "yes", "perhaps"), batch_of([0, 1])
        first, second = (
            open_teacher(teacher, student=model(0, *labels), inputs=inputs(), cache_dir=tmp_path)(batch)
            for labels in (("no", "yes", "perhaps"), ("perhaps", "no", "yes"))
        )
        assert torch.equal(second, first[:, [2, 0, 1]])
        (folder,) = tmp_path.iterdir()
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["label2id"] == {"no": 0, "yes": 1, "perhaps": 2}
        assert manifest["rows"] == len(TEXTS)

    def test_streams_are_refused(self, tmp_path: Path) -> None:
        """A stream has no rows to look up."""
        stream = dataset().to_iterable_dataset()
        with pytest.raises(ValueError, match="IterableDataset does not allow"):
            open_teacher(model(1), student=model(0), inputs=inputs(dataset=stream), cache_dir=tmp_path)
        open_teacher(model(1), student=model(0), inputs=inputs(dataset=stream))(batch_of([0]))


class TestLoading:
    @pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForTokenClassification])
    def test_another_task_is_refused(self, tmp_path: Path, kind: Any) -> None:
        """An encoder without a trained head would teach random labels, a tagger the wrong thing."""
        with pytest.raises(ValueError, match="was saved as"):
            open_teacher(saved(model(1, kind=kind), tmp_path), student=model(0), inputs=inputs())

    def test_missing_weights_are_refused(self, tmp_path: Path) -> None:
        """If the configuration does not say what was saved, the missing head does."""
        saved(model(1, kind=BertModel), tmp_path)
        told = json.loads((tmp_path / "config.json").read_text())
        del told["architectures"]
        (tmp_path / "config.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=r"lacks weights.*classifier"):
            open_teacher(tmp_path, student=model(0), inputs=inputs())

    def test_unknown_tasks_are_refused(self, tmp_path: Path) -> None:
        """Which head to load follows from the student; where it does not, the user must load the teacher."""
        with pytest.raises(ValueError, match="BertForMaskedLM cannot be loaded by name"):
            open_teacher(saved(model(1), tmp_path), student=model(0, kind=BertForMaskedLM), inputs=inputs())

    def test_no_such_folder(self, tmp_path: Path) -> None:
        """A path is never taken for a Hub id."""
        with pytest.raises(FileNotFoundError, match="no folder"):
            open_teacher(tmp_path / "nowhere", student=model(0), inputs=inputs())

    @pytest.mark.parametrize("pickled", [False, True])
    def test_hub_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bool) -> None:
        """A Hub id is fetched (pickled weights only where there are no others) and then opened as a folder."""
        teacher = model(1)
        saved(teacher, tmp_path, tokenizer())
        if pickled:
            (tmp_path / "model.safetensors").unlink()
        asked = []

        def snapshot(repository: str, *, allow_patterns: Any, ignore_patterns: str) -> str:
            asked.append((repository, "pytorch_model*.bin" in allow_patterns))
            if asked[-1][1]:
                torch.save(teacher.state_dict(), tmp_path / "pytorch_model.bin")
            return str(tmp_path)

        monkeypatch.setattr(teachers, "snapshot_download", snapshot)
        opened = open_teacher("someone/teacher", student=model(0), inputs=inputs())
        torch.testing.assert_close(opened(batch_of([0])), logits(teacher, batch_of([0])), rtol=1e-5, atol=1e-5)
        assert asked == [("someone/teacher", False), ("someone/teacher", True)][: 2 if pickled else 1]
