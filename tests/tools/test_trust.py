from __future__ import annotations

import random
from pathlib import Path

import pytest

from archir.errors import GraphError
from tools.benchmarks.trust import attack_all, figures, run, table
from tools.trust.attack import Attack, Files, Outcome, Ran, Wrong, dice_of
from tools.trust.catalog import ATTACKS
from tools.trust.hostile import CODE
from tools.trust.records import Records, read_record
from tools.trust.runner import pool
from tools.trust.sound import check_source
from tools.trust.watch import VICTIM

CASES = (
    ("", "accepted"),
    ("raise GraphError('no', why='it is not')", "rejected"),
    ("raise GraphError('')", "crashed"),
    ("raise KeyError('x')", "crashed"),
    ("raise Wrong('something else')", "wrong"),
    ("import os; os.abort()", "crashed"),
    ("bytearray(2**33)", "crashed"),
    ("while True: pass", "hung"),
    (f"open('{VICTIM}', 'a')", "ran"),
    ("import canary", "ran"),
    ("import torch; torch.set_default_dtype(torch.float64)", "ran"),
    ("import random; random.random()", "ran"),
    ("import os; os.environ['X'] = '1'", "ran"),
    ("print('hello', flush=True)", "ran"),
    ("import pickle; pickle.loads(pickle.dumps(print))", "ran"),
    (CODE, "ran"),
)


def no_files(dice: random.Random) -> Files:
    return {}


def probe(folder: Path) -> None:
    source = folder.joinpath("probe").read_text()
    exec(compile(source, "probe", "exec"), {"GraphError": GraphError, "Wrong": Wrong})


PROBE = Attack("probe", no_files, probe, seconds=0.5)


@pytest.mark.slow
def test_no_attack_crashes_hangs_runs_or_is_wrong() -> None:
    attacks = list(ATTACKS.values())
    tallies = attack_all(attacks, [attack.short for attack in attacks])
    assert figures(tallies)["failures"] == 0, table(tallies)
    assert [tallies[a.name].counts.total() for a in attacks] == [max(a.short, len(a.known())) for a in attacks]
    assert all(tally.counts["accepted"] for tally in tallies.values())


@pytest.mark.slow
def test_the_harness_sees_what_happens() -> None:
    found: dict[int, Outcome] = {}

    def listen(attack: Attack, number: int, files: Files, outcome: Outcome) -> None:
        found[number] = outcome

    with pool() as workers:
        workers.run(PROBE, iter([(i, {"probe": source.encode()}) for i, (source, _) in enumerate(CASES)]), listen)
    assert [(CASES[i][0], found[i].kind) for i in range(len(CASES))] == list(CASES)
    assert found[3].cause.startswith("KeyError")


def test_trials_are_the_same_every_time() -> None:
    for attack in ATTACKS.values():
        assert attack.make(dice_of(0, attack.name, 5)) == attack.make(dice_of(0, attack.name, 5))


def test_a_record_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"net.txt": b"graph net() { return 1 "}
    keep = Records(tmp_path, 0)
    keep(ATTACKS["text"], 7, files, Outcome("crashed", "somehow", "somewhere"))
    keep(ATTACKS["text"], 8, files, Outcome("rejected", "as it should be"))
    (path,) = tmp_path.iterdir()
    assert read_record(path) == ("text", 7, files)
    assert run(replay=str(path))["text"] == {
        **dict.fromkeys(("tried", "rejected"), 1),
        **dict.fromkeys(("accepted", "crashed", "hung", "ran", "wrong"), 0),
    }
    assert "rejected" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["exec('1')", "x = eval('1')", "().__class__", "torch.os.system('x')"])
def test_source_that_is_no_network_is_seen(text: str) -> None:
    with pytest.raises(Ran):
        check_source(text)
