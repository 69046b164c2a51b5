"""Turns, bounds, and workers that are lost: what holds when many ask at once and processes die."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")

from hypothesis import given
from hypothesis import strategies as st

from pulse88.serve.limits import Limits
from pulse88.serve.memory import Seed, Shelf, Snapshots, Take, Takes
from pulse88.serve.messages import packed, receive
from pulse88.serve.metrics import Metrics
from pulse88.serve.problems import Problem
from pulse88.serve.turns import Turns
from serving import SEED, Running, base64_of, notes_of, of_kind, running, tiny_weights

LONG = {"midi_base64": base64_of(SEED), "settings": {"notes": 400}, "random_seed": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def server(weights: Path) -> Running:
    with running(weights, limits=Limits(slice_seconds=0.05, longest_slice_seconds=0.1)) as server:
        yield server


@pytest.mark.parametrize("snapshots", [True, False])
def test_a_killed_worker_is_replaced_and_its_take_goes_on_note_for_note(weights: Path, snapshots: bool) -> None:
    limits = Limits(longest_slice_seconds=0.1, snapshot_bytes=2**29 if snapshots else 0)
    with running(weights, limits=limits) as server:
        whole = notes_of(server.events(LONG))
        pids = server.pids()
        with server.stream(LONG) as stream:
            told = []
            for event in stream:
                told.append(event)
                if event["type"] == "note" and event["index"] == 150:
                    os.kill(pids[0], signal.SIGKILL)
        assert told[-1]["type"] == "done" and [event["index"] for event in of_kind(told, "note")] == list(range(400))
        assert notes_of(told) == whole
        assert server.pids() != pids
        assert "pulse88_workers_lost_total 1.0" in server.ask("GET", "/metrics").body.decode()


def events_where_players_meet(server: Running, sent: signal.Signals) -> list[dict]:
    """What a long take tells while whoever takes it up gets a signal."""
    heard: list[dict] = []
    over = threading.Event()

    def ask() -> None:
        with server.stream(LONG | {"settings": {"notes": 4000, "best_of": 8}}) as stream:
            heard.extend(stream)
        over.set()

    threading.Thread(target=ask, daemon=True).start()
    end = time.monotonic() + 30
    while not over.wait(0.05):
        assert time.monotonic() < end
        for worker in list(server.service.pool._workers):
            if worker.work is not None and worker.work.kind == "play":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, sent)
    return heard


def test_what_kills_every_worker_is_given_up_and_the_server_lives(server: Running) -> None:
    """Whoever takes this one up dies: it is tried three times, and then told."""
    heard = events_where_players_meet(server, signal.SIGKILL)
    assert heard[-1]["type"] == "error" and "ends whoever tries" in heard[-1]["problem"]["detail"]
    server.wait_until_ready()
    assert server.events({**LONG, "settings": {"notes": 3}})[-1]["type"] == "done"


def test_a_work_that_takes_too_long_ends_with_its_worker(weights: Path) -> None:
    """Whoever takes this one up stands still."""
    with running(weights, limits=Limits(work_seconds=0.3, longest_slice_seconds=30.0)) as server:
        pids = server.pids()
        heard = events_where_players_meet(server, signal.SIGSTOP)
        assert heard[-1]["type"] == "error" and "takes too long" in heard[-1]["problem"]["detail"]
        server.wait_until_ready()
        assert not set(pids) & set(server.pids())


def test_first_notes_come_in_the_order_of_asking_while_all_play(server: Running) -> None:
    short = {**LONG, "settings": {"notes": 60}}
    began: list[int] = []
    ended: list[str] = []
    lock = threading.Lock()

    def visit(number: int) -> None:
        with server.stream(short, **{"X-Visitor": f"visitor-{number:02d}"}) as stream:
            for event in stream:
                if event["type"] == "note" and event["index"] == 0:
                    with lock:
                        began.append(number)
        ended.append(event["type"])

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
        time.sleep(0.04)
    for thread in threads:
        thread.join()
    assert ended == ["done"] * 12
    displaced = [abs(place - number) for place, number in enumerate(began)]
    assert max(displaced) <= 2, began


def test_one_visitor_with_many_takes_does_not_hold_up_another(server: Running) -> None:
    with server.stream({**LONG, "settings": {"notes": 4000}, "takes": 8}, **{"X-Visitor": "the-greedy-one"}) as greedy:
        next(event for event in greedy if event["type"] == "note")
        began = time.monotonic()
        told = server.events({**LONG, "settings": {"notes": 40}}, **{"X-Visitor": "the-modest-one"})
        mine = time.monotonic() - began
    assert told[-1]["notes"] == 40
    began = time.monotonic()
    server.events({**LONG, "settings": {"notes": 40}})
    alone = time.monotonic() - began
    assert mine < 8 * alone + 1.0, "eight takes of another took eight turns for one of mine"


def test_the_command_serves_and_stops_cleanly(weights: Path) -> None:
    command = [sys.executable, "-m", "pulse88", "serve", "--port", "0", "--workers", "1", "--weights", str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("Pulse88 listens on http://127.0.0.1:"), line + process.stderr.read()
        assert process.stdout.readline().startswith("Ready")
        address = line.split()[-1]
        with urlopen(address, timeout=30) as page:
            assert b"<html" in page.read()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 0 and out.endswith("Stopped.\n") and not error
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_with_a_server_that_was_killed(weights: Path) -> None:
    command = [sys.executable, "-m", "pulse88", "serve", "--port", "0", "--workers", "1", "--weights", str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() and process.stdout.readline().startswith("Ready")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            pytest.skip("this system doesn't tell the children of a process")
        (worker,) = (int(pid) for pid in children.read_text().split())
        process.kill()
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split():
        assert time.monotonic() < end, "the worker outlives its server"
        time.sleep(0.05)


def test_a_port_that_is_taken_and_weights_that_are_not_there_are_told(server: Running, tmp_path: Path) -> None:
    taken = [sys.executable, "-m", "pulse88", "serve", "--port", str(server.port)]
    told = subprocess.run(taken, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1 and "choose another --port" in told.stderr and "Traceback" not in told.stderr
    missing = [sys.executable, "-m", "pulse88", "serve", "--port", "0", "--weights", str(tmp_path / "no.safetensors")]
    told = subprocess.run(missing, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1 and "no such weights file" in told.stderr and "Traceback" not in told.stderr


def test_without_its_packages_the_command_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('No module named fastapi', name='fastapi')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pulse88", "serve", "--port", "0"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert told.returncode == 1 and "pip install 'pulse88[serve]'" in told.stderr


# Turns


@given(st.lists(st.integers(0, 4), max_size=60))
def test_turns_are_fair(asked: list[int]) -> None:
    """Between two turns of a visitor who waits, no other visitor has more than one."""
    turns: Turns[tuple[int, int]] = Turns()
    for place, visitor in enumerate(asked):
        turns.add(str(visitor), (visitor, place))
    taken = [work for work in iter(turns.next, None)]
    assert sorted(taken) == sorted((visitor, place) for place, visitor in enumerate(asked))
    assert len(turns) == 0 and turns.next() is None
    for visitor in set(asked):
        mine = [index for index, work in enumerate(taken) if work[0] == visitor]
        assert [taken[index][1] for index in mine] == sorted(taken[index][1] for index in mine)
        for earlier, later in itertools.pairwise(mine):
            between = [work[0] for work in taken[earlier + 1 : later]]
            assert len(between) == len(set(between))


def test_turns_drop_and_give_back() -> None:
    turns: Turns[str] = Turns()
    for visitor, work in (("a", "a1"), ("a", "a2"), ("b", "b1")):
        turns.add(visitor, work)
    turns.add("b", "b0", first=True)
    assert turns.before("c") == 2 and turns.before("a") == 4 and turns.of("a") == 2
    assert turns.next() == "a1"
    turns.give_back("a", "a1")
    assert turns.next() == "a1" and turns.next() == "b0"
    assert turns.drop("b", "b1") and not turns.drop("b", "b1") and not turns.drop("z", "z")
    assert [turns.next(), turns.next()] == ["a2", None]


# Memory


def test_shelves_are_bounded_for_each_visitor_and_for_all() -> None:
    shelf: Shelf[Seed] = Shelf("seed", 5, 2, 10**9, Metrics())
    mine = [shelf.add(Seed("me", b"", b"{}")) for _ in range(2)]
    shelf.get(mine[0].id)  # It is newer now than the other.
    mine.append(shelf.add(Seed("me", b"", b"{}")))
    assert shelf.find(mine[1].id) is None and shelf.find(mine[0].id) and shelf.find(mine[2].id)
    for visitor in "abcd":
        shelf.add(Seed(visitor, b"", b"{}"))
    assert len(shelf) == 5
    with pytest.raises(Problem, match="there is no seed"):
        shelf.get(mine[0].id)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(1, 40)), max_size=60))
def test_snapshots_are_bounded_in_bytes_and_in_number(puts: list[tuple[str, int, int]]) -> None:
    limits = Limits(snapshots_per_visitor=3, snapshot_bytes=100)
    snapshots = Snapshots(limits, Metrics())
    for visitor, events, size in puts:
        snapshots.put(visitor, f"take of {visitor}", events, bytes(size))
        held = snapshots._data
        assert snapshots.size == sum(len(data) for _, data in held.values()) <= 100
        for other in "abc":
            assert sum(1 for owner, _ in held.values() if owner == other) <= 3
        found = snapshots.nearest(f"take of {visitor}", events)
        assert found is None or found[0] <= events


def test_what_is_under_way_is_dropped_last() -> None:
    snapshots = Snapshots(Limits(snapshot_bytes=50), Metrics())
    for take in ("one", "two", "three"):
        snapshots.put(take, take, 4, bytes(10), under_way=True)
    snapshots.put("one", "one", 8, bytes(10), under_way=True)
    snapshots.put("done", "done", 4, bytes(10))
    snapshots.put("four", "four", 4, bytes(10), under_way=True)
    assert snapshots.nearest("one", 4) is None, "an older one of a take under way can be spared"
    snapshots.put("five", "five", 4, bytes(10), under_way=True)
    assert snapshots.nearest("done", 4) is None
    snapshots.finish("four")
    snapshots.put("six", "six", 4, bytes(10), under_way=True)
    assert snapshots.nearest("four", 4) is None
    assert snapshots.nearest("two", 4) and snapshots.nearest("one", 8) and snapshots.size == 50


def test_the_nearest_snapshot_is_the_latest_that_is_not_too_late() -> None:
    snapshots = Snapshots(Limits(), Metrics())
    for events in (0, 8, 16):
        snapshots.put("me", "take", events, bytes([events]))
    assert snapshots.nearest("take", 15) == (8, b"\x08")
    assert snapshots.nearest("take", 16) == (16, b"\x10") and snapshots.nearest("other", 9) is None
    snapshots.forget("take")
    assert snapshots.nearest("take", 16) is None and snapshots.size == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abcd"), st.integers(0, 9)), max_size=60))
def test_the_nearest_is_found_and_all_forgotten_whatever_came_between(steps: list[tuple[int, str, int]]) -> None:
    """Beside every snapshot looked at, as nobody would do it among thousands."""
    snapshots = Snapshots(Limits(snapshots_per_visitor=5, snapshot_bytes=300), Metrics())
    for number, (step, owner, events) in enumerate(steps):
        held = {key: data for key, (_, data) in snapshots._data.items()}
        if step < 3:
            snapshots.put("me" if step else "other", owner, events, bytes([number]) * 40, under_way=step == 2)
        elif step == 3:
            late = max((at for of, at in held if of == owner and at <= events), default=None)
            assert snapshots.nearest(owner, events) == (None if late is None else (late, held[owner, late]))
        else:
            snapshots.forget(owner)
            assert list(snapshots._data) == [key for key in held if key[0] != owner]
    for owner in "abcd":
        snapshots.forget(owner)
    assert not snapshots.size and not snapshots._data and not snapshots._events and not snapshots._of


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 6)), max_size=60))
def test_takes_are_bounded_by_their_notes_of_now_while_they_grow(steps: list[tuple[int, int, int]]) -> None:
    takes, seed, made = Takes(Limits(notes_in_all=20), Metrics()), Seed("me", b"", b"{}"), list[Take]()
    held: list[Take] = []  # what has to be there, the oldest first
    for step, which, notes in steps:
        if step < 3 or not held:
            state = "done" if step == 1 else "waiting"
            made.append(Take("me", seed, {}, 0, 0, notes=[[0.0]] * notes, state=state))
            takes.add(made[-1])
            held.append(made[-1])
        else:
            take = held[which % len(held)]
            if step == 3 and take.state != "done":
                take.notes += [[0.0]] * notes
                take.state = "done" if which % 2 else "making"
            elif step == 4:
                takes.drop(take.id)
                held.remove(take)
            else:
                takes.get(take.id)
                held.append(held.pop(which % len(held)))
            takes.settle()
        while len(held) > 1 and sum(len(take.notes) for take in held) > 20:
            del held[0]
        assert list(takes._items.values()) == held
    for take in made:
        takes.drop(take.id)
    assert not takes._size and not takes._sizes and not takes._growing


# Messages


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.lists(st.binary(max_size=100), max_size=4))
def test_messages_come_as_they_went(head: dict, blobs: list[bytes]) -> None:
    head = {name: value for name, value in head.items() if name != "blobs"}
    stream = io.BytesIO(b"".join(packed(head, blobs)) * 2)
    for _ in range(2):
        assert receive(stream) == (head, blobs)
    assert receive(stream) is None


def test_a_message_that_is_cut_or_none_of_ours_is_an_error() -> None:
    whole = b"".join(packed({"is": "it"}, [b"12345"]))
    with pytest.raises(EOFError):
        receive(io.BytesIO(whole[:-1]))
    with pytest.raises(ValueError, match="none of ours"):
        receive(io.BytesIO(b"\xff\xff\xff\xff"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_large_blocks_are_given_back_when_they_are_freed() -> None:
    script = """
import re
from pathlib import Path
from pulse88.serve.heap import map_large_blocks
def kilobytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
map_large_blocks()
for _ in range(3):
    blocks = [bytearray(b"1") * 8_000_000 for _ in range(20)]
    before = kilobytes()
    del blocks[:-1]  # The last one is the last in a heap, too.
    print(before - kilobytes())
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert all(int(freed) > 19 * 7_000 for freed in done.stdout.split()), done.stdout
