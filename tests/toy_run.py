"""A finished run made up of numbers whose meaning is known: wrong labels weigh little, as do rules that are wrong."""

import numpy as np

from amal_hf.run_record import Rules, RunRecord


CLASSES = ["animal", "plant", "stone"]
SCRIPT = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
"""A row that would act, if a page let it."""

BREAKOUT = "</script><script>document.title='run'</script><!-- \u2028 \u202e"
FORMULA = '=HYPERLINK("http://example.invalid","a, b")\nsecond line'


def toy_record(count=300, seed=0):
    """Labels, a teacher and four rules; the first three texts are hostile."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    wrong = rng.random(count) < 0.3
    labels = np.where(wrong, (truth + 1) % 3, truth)
    weights = {
        "labels": np.where(wrong, 0.1, 0.9) + rng.uniform(-0.05, 0.05, count),
        "teacher": np.where(wrong, 0.8, 0.5) + rng.uniform(-0.05, 0.05, count),
    }
    weights["labels"][-2:] = np.nan  # never trained on
    votes, own = toy_votes(rng, truth)
    seen = np.isfinite(own)
    weights["rules"] = np.where(seen.any(1), np.nan_to_num(own).sum(1) / np.maximum(seen.sum(1), 1), np.nan)
    held = np.where(wrong, 0.05, 0.9)
    words = [" ".join(rng.choice(["moss", "cat", "granite", "Föhre", "and"], 6)) for _ in range(count)]
    return RunRecord(
        settings={"method": "amal", "training examples": count, "training seconds": 12.5},
        log_history=history(weights),
        ids=[f"row-{i}" for i in range(count)],
        weights={name: values.astype(np.float32) for name, values in weights.items()},
        losses={name: rng.gamma(2, 0.3, count).astype(np.float32) for name in weights},
        teachers={"teacher": held.astype(np.float32)},
        student=held.astype(np.float32),
        guesses=truth.astype(np.float32),
        classes=CLASSES,
        labels=labels,
        truth=truth,
        rules=Rules(
            [f"rule_{j}" for j in range(4)], votes, own.astype(np.float32), np.full(own.shape, 0.25, np.float32)
        ),
        texts={"text": [SCRIPT, BREAKOUT, FORMULA, *words[3:]]},
    )


def toy_votes(rng, truth):
    """Rules that weigh as much as they are right, in no order."""
    right = np.array([0.7, 0.2, 0.95, 0.5])
    votes = np.where(rng.random((len(truth), 4)) < right, truth[:, None], (truth[:, None] + 1) % 3)
    votes = np.where(rng.random(votes.shape) < 0.3, votes, -1)
    return votes, np.where(votes >= 0, right, np.nan)


def history(weights):
    """A log of weights that spread out over three entries, with entries of other kinds between."""
    entries = []
    for step in (10, 20, 30):
        entries.append({"step": step, "loss": 1.0})
        entry = {"step": step}
        for name, values in weights.items():
            spread = 0.5 + (np.nan_to_num(values, nan=0.5) - 0.5) * step / 30
            entry |= {f"weight_{name}_p{p}": float(np.percentile(spread, p)) for p in (10, 25, 50, 75, 90)}
            entry[f"weight_{name}_mean"] = float(spread.mean())
        entries.append(entry)
    return entries
